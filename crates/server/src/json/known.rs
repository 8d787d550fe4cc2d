//! Every field that some embedding or ranking server's contract has, and what becomes of it here.
//!
//! The choice behind it: what other servers understand either works here or is refused by its name.
//! A field that is dropped without a word may decide on the vectors, and nobody would see it. What
//! no server knows is ignored, as OpenAI, TEI and vLLM do: clients add fields of their own, such as
//! LiteLLM's or those of `extra_body` in OpenAI's clients, for whoever stands between.
//!
//! The table says what becomes of a field wherever vectors or scores are made; a dialect says in its
//! own file where its [`Contract`](super::object::Contract) differs. `docs/clients.md` shows all of
//! it; a test of `dialects` holds the two together, and another sends each field to each route.

/// What becomes of a field that is not `null`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Treatment {
    /// It is read.
    Works,
    /// Whatever its value, nothing would be done differently.
    NoEffect,
    /// It is refused, but for values that ask for what is done anyway.
    Refused {
        /// These values, as JSON.
        except: &'static [&'static str],
        /// What is wrong, to be read behind the field's name.
        because: &'static str,
    },
}

/// A field, and what becomes of it unless a contract says otherwise.
pub(crate) struct Known {
    pub(crate) name: &'static str,
    /// Where vectors are made.
    pub(crate) vectors: Treatment,
    /// Where scores are made.
    pub(crate) scores: Treatment,
}

const fn known(name: &'static str, vectors: Treatment, scores: Treatment) -> Known {
    Known { name, vectors, scores }
}

/// A field that is the same to vectors and to scores.
const fn both(name: &'static str, treatment: Treatment) -> Known {
    known(name, treatment, treatment)
}

pub(crate) const WORKS: Treatment = Treatment::Works;
pub(crate) const NO_EFFECT: Treatment = Treatment::NoEffect;

/// Refused, whatever its value.
pub(crate) const fn refused(because: &'static str) -> Treatment {
    only(&[], because)
}

/// Refused but for these values.
pub(crate) const fn only(except: &'static [&'static str], because: &'static str) -> Treatment {
    Treatment::Refused { except, because }
}

const TEXTS: &str = "is another server's name for texts: send `input` to /v1/embeddings, `inputs` to /embed and /tokenize";
const SEND_INPUTS: &str = "is OpenAI's name for texts, on /v1/embeddings: here it is `inputs`";
const SEND_INPUT: &str = "is TEI's name for texts, on /embed: here it is `input`";
const SEND_DOCUMENTS: &str = "is another contract's name for texts: send `query` and `documents`, or `texts` as to TEI's server";
const RANKS: &str = "belongs to ranking: send it to /rerank";
const FLOATS: &str = "must be 'float': vectors are not quantised here";
const MESSAGES: &str = "is not supported: send texts, not messages";
const NO_PROMPTS: &str = "is not supported: texts are scored as they are, with nothing in front";
const NO_CHUNKS: &str = "must be 1: a document is scored whole, as far as the model's limit";
pub(crate) const FALSE: &[&str] = &["false"];
const EMPTY: &[&str] = &["{}"];

/// All of them.
pub(crate) const FIELDS: [Known; 64] = [
    // What to embed or to score.
    known("input", refused(SEND_INPUTS), refused(SEND_DOCUMENTS)),
    known("inputs", refused(SEND_INPUT), refused(SEND_DOCUMENTS)),
    known("texts", refused(TEXTS), refused(SEND_DOCUMENTS)),
    known("text", refused(TEXTS), refused(SEND_DOCUMENTS)),
    known("content", refused(TEXTS), refused(SEND_DOCUMENTS)),
    known("query", refused(RANKS), WORKS),
    known("documents", refused(RANKS), refused(SEND_DOCUMENTS)),
    known("passages", refused(RANKS), refused(SEND_DOCUMENTS)),
    known(
        "rank_fields",
        refused(RANKS),
        only(&["[\"text\"]"], "must be ['text']: the rest of a document is not read"),
    ),
    both("messages", refused(MESSAGES)),
    both("chat_template", refused(MESSAGES)),
    both("images", refused("is not supported: send texts")),
    both("mm_processor_kwargs", refused("is not supported: send texts")),
    both("modality", only(&["\"text\""], "must be 'text': nothing else can be read")),
    both("model", NO_EFFECT),
    // What goes in front of it.
    known("prompt_name", WORKS, refused(NO_PROMPTS)),
    known("input_type", WORKS, refused(NO_PROMPTS)),
    known("task", WORKS, refused(NO_PROMPTS)),
    known("prompt", WORKS, refused(NO_PROMPTS)),
    known(
        "instruction",
        refused("is not supported: send the whole text that goes in front as `prompt`"),
        refused(NO_PROMPTS),
    ),
    both("add_special_tokens", only(&["true"], "must be true: the model needs its special tokens")),
    both(
        "add_special",
        only(&["true"], "must be true: `add_special_tokens` can say otherwise, on /tokenize"),
    ),
    // What happens to what is too long.
    both("truncate", WORKS),
    both("truncation", WORKS),
    both("truncation_direction", WORKS),
    both("truncation_side", WORKS),
    both("truncate_prompt_tokens", WORKS),
    both("max_tokens", WORKS),
    known("max_tokens_per_query", refused(RANKS), WORKS),
    known("max_tokens_per_doc", refused(RANKS), WORKS),
    known("max_chunks_per_doc", refused(RANKS), only(&["1"], NO_CHUNKS)),
    both("padding", NO_EFFECT),
    // What the vectors or the scores are like.
    known("normalize", WORKS, NO_EFFECT),
    known("normalized", WORKS, NO_EFFECT),
    both("use_activation", WORKS),
    known("embd_normalize", WORKS, NO_EFFECT),
    known("dimensions", WORKS, NO_EFFECT),
    known("output_dimension", WORKS, NO_EFFECT),
    known(
        "late_chunking",
        only(FALSE, "must be false: each input is embedded by itself"),
        NO_EFFECT,
    ),
    known(
        "return_multivector",
        only(FALSE, "must be false: each input gets one vector"),
        NO_EFFECT,
    ),
    known("raw_scores", only(FALSE, "must be false: it belongs to ranking"), WORKS),
    known("top_n", refused(RANKS), WORKS),
    known("top_k", refused(RANKS), WORKS),
    known("return_documents", refused(RANKS), WORKS),
    known("return_text", refused(RANKS), WORKS),
    // How they are written.
    known(
        "encoding_format",
        only(&["\"float\""], "must be 'float' here: /v1/embeddings has base64"),
        NO_EFFECT,
    ),
    known("output_dtype", only(&["\"float\""], FLOATS), NO_EFFECT),
    known("embedding_types", only(&["[\"float\"]"], FLOATS), NO_EFFECT),
    known("embedding_type", only(&["\"float\""], FLOATS), NO_EFFECT),
    known("encoding_type", only(&["\"float\""], FLOATS), NO_EFFECT),
    known(
        "embed_dtype",
        only(&["\"float32\""], "must be 'float32': vectors are not quantised here"),
        NO_EFFECT,
    ),
    known(
        "endianness",
        only(&["\"little\"", "\"native\""], "must be 'little', as in all base64 here"),
        NO_EFFECT,
    ),
    both("raw", only(FALSE, "must be false: it belongs to generating text")),
    both("stream", only(FALSE, "must be false: replies come whole")),
    both("return_token_strs", NO_EFFECT),
    both("with_pieces", NO_EFFECT),
    // How it is served.
    both("priority", WORKS),
    both("user", NO_EFFECT),
    both("request_id", NO_EFFECT),
    both("cache_salt", NO_EFFECT),
    both("metadata", NO_EFFECT),
    both("keep_alive", NO_EFFECT),
    both("options", only(EMPTY, "is not supported: the model's settings are the server's")),
    both("parameters", only(EMPTY, "is not supported: send its fields beside the texts")),
];

/// Where in [`FIELDS`] a name is.
pub(crate) fn place_of(name: &str) -> Option<usize> {
    FIELDS.iter().position(|known| known.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_is_there_once() {
        for (place, known) in FIELDS.iter().enumerate() {
            assert_eq!(place_of(known.name), Some(place), "{}", known.name);
        }
    }
}
