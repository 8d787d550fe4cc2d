//! Every field that some embedding server's contract has, and what becomes of it here.
//!
//! The choice behind it: what other servers understand either works here or is refused by its name.
//! A field that is dropped without a word may decide on the vectors, and nobody would see it. What
//! no server knows is ignored, as OpenAI, TEI and vLLM do: clients add fields of their own, such as
//! LiteLLM's or those of `extra_body` in OpenAI's clients, for whoever stands between.
//!
//! The table says what becomes of a field wherever vectors are made; a dialect says in its own file
//! where its [`Contract`] differs. `docs/clients.md` shows all of it; a test of `dialects` holds the
//! two together, and another sends each field to each route.

/// What one kind of body may have in it.
#[derive(Debug)]
pub(crate) struct Contract {
    /// Its addresses, as the head of its column in the document.
    #[cfg_attr(not(test), expect(dead_code, reason = "only the document shows it"))]
    pub(crate) title: &'static str,
    /// The field with the inputs.
    pub(crate) inputs: &'static str,
    /// Whether token ids may be OpenAI's, where the settings say so.
    pub(crate) takes_openai_ids: bool,
    /// Whether more dimensions than the model has are all that it has.
    pub(crate) caps_dimensions: bool,
    /// What it does otherwise than most, by the fields' names.
    pub(crate) own: &'static [(&'static [&'static str], Treatment)],
}

impl Contract {
    /// What most contracts for vectors have in common.
    pub(crate) const VECTORS: Self = Self {
        title: "",
        inputs: "input",
        takes_openai_ids: false,
        caps_dimensions: false,
        own: &[],
    };

    /// What becomes of a field.
    pub(crate) fn treatment(&self, known: &Known) -> Treatment {
        let own = self.own.iter().find(|(names, _)| names.contains(&known.name));
        own.map_or(known.treatment, |(_, treatment)| *treatment)
    }
}

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

/// A field, and what becomes of it.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) name: &'static str,
    /// Whose contracts have it. For the document, as the next one.
    #[cfg_attr(not(test), expect(dead_code, reason = "only the document shows it"))]
    pub(crate) whose: &'static str,
    /// What it asks for.
    #[cfg_attr(not(test), expect(dead_code, reason = "only the document shows it"))]
    pub(crate) asks: &'static str,
    /// Where vectors are made, unless a contract says otherwise.
    treatment: Treatment,
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

const fn known(
    name: &'static str,
    whose: &'static str,
    asks: &'static str,
    treatment: Treatment,
) -> Known {
    Known { name, whose, asks, treatment }
}

const TEXTS: &str = "is another server's name for texts: send `input` to /v1/embeddings, `inputs` to /embed and /tokenize";
const SEND_INPUTS: &str = "is OpenAI's name for texts, on /v1/embeddings: here it is `inputs`";
const SEND_INPUT: &str = "is TEI's name for texts, on /embed: here it is `input`";
const FLOATS: &str = "must be 'float': vectors are not quantised here";
const MESSAGES: &str = "is not supported: send texts, not messages";
pub(crate) const FALSE: &[&str] = &["false"];
const EMPTY: &[&str] = &["{}"];

/// All of them.
pub(crate) const FIELDS: [Known; 53] = [
    // What to embed.
    known("input", "OpenAI", "what to embed", refused(SEND_INPUTS)),
    known("inputs", "TEI", "what to embed", refused(SEND_INPUT)),
    known("texts", "Cohere", "what to embed", refused(TEXTS)),
    known("text", "Cohere, Weaviate", "what to embed", refused(TEXTS)),
    known("content", "llama.cpp", "what to embed", refused(TEXTS)),
    known("messages", "vLLM", "a conversation to embed", refused(MESSAGES)),
    known("chat_template", "vLLM", "how messages become text", refused(MESSAGES)),
    known("images", "Cohere", "pictures to embed", refused("is not supported: send texts")),
    known(
        "mm_processor_kwargs",
        "vLLM",
        "how pictures are read",
        refused("is not supported: send texts"),
    ),
    known(
        "modality",
        "Infinity, NIM",
        "what kind the input is of",
        only(&["\"text\""], "must be 'text': nothing else can be embedded"),
    ),
    known("model", "OpenAI", "the model, by any name", NO_EFFECT),
    // What goes in front of it.
    known("prompt_name", "TEI", "the model's prompt of this name", WORKS),
    known("input_type", "Cohere, Voyage, NIM", "the model's prompt for this task", WORKS),
    known("task", "Jina", "the model's prompt for this task", WORKS),
    known("prompt", "sentence-transformers", "this text in front of each input", WORKS),
    known(
        "instruction",
        "vLLM",
        "an instruction for the model",
        refused("is not supported: send the whole text that goes in front as `prompt`"),
    ),
    known(
        "add_special_tokens",
        "TEI, vLLM",
        "the model's special tokens around each text",
        only(&["true"], "must be true: the model needs its special tokens"),
    ),
    known(
        "add_special",
        "llama.cpp",
        "the same",
        only(&["true"], "must be true: `add_special_tokens` can say otherwise, on /tokenize"),
    ),
    // What happens to what is too long.
    known(
        "truncate",
        "TEI, Jina, Ollama; Cohere, NIM",
        "cut what is too long, or refuse it: true, false, NONE, START, END",
        WORKS,
    ),
    known("truncation", "Voyage", "cut what is too long: true, false", WORKS),
    known("truncation_direction", "TEI", "where to cut: left, right", WORKS),
    known("truncation_side", "vLLM", "where to cut: left, right", WORKS),
    known(
        "truncate_prompt_tokens",
        "vLLM",
        "cut to so many tokens; -1 is the model's limit, and no less is taken",
        WORKS,
    ),
    known(
        "max_tokens",
        "Cohere",
        "cut to so many tokens; no less than the model's limit is taken",
        WORKS,
    ),
    known("padding", "vLLM", "padding, of which there is none", NO_EFFECT),
    // What the vectors are like.
    known("normalize", "TEI", "vectors of length one", WORKS),
    known("normalized", "Jina", "vectors of length one", WORKS),
    known("use_activation", "vLLM", "vectors of length one", WORKS),
    known("embd_normalize", "llama.cpp", "vectors of length one: 2, or -1 for not", WORKS),
    known("dimensions", "OpenAI, TEI, Jina", "so many leading dimensions", WORKS),
    known("output_dimension", "Voyage, Cohere, Mistral", "so many leading dimensions", WORKS),
    known(
        "late_chunking",
        "Jina",
        "inputs as parts of one text",
        only(FALSE, "must be false: each input is embedded by itself"),
    ),
    known(
        "return_multivector",
        "Jina",
        "a vector for each token",
        only(FALSE, "must be false: each input gets one vector"),
    ),
    // How they are written.
    known(
        "encoding_format",
        "OpenAI",
        "numbers as text, or base64 of little-endian f32: float, base64",
        only(&["\"float\""], "must be 'float' here: /v1/embeddings has base64"),
    ),
    known("output_dtype", "Voyage, Mistral", "the numbers' format", only(&["\"float\""], FLOATS)),
    known("embedding_types", "Cohere", "the numbers' formats", only(&["[\"float\"]"], FLOATS)),
    known("embedding_type", "Jina", "the numbers' format", only(&["\"float\""], FLOATS)),
    known("encoding_type", "Jina", "the numbers' format", only(&["\"float\""], FLOATS)),
    known(
        "embed_dtype",
        "vLLM",
        "the numbers' format",
        only(&["\"float32\""], "must be 'float32': vectors are not quantised here"),
    ),
    known(
        "endianness",
        "vLLM",
        "the order of a number's bytes in base64",
        only(&["\"little\"", "\"native\""], "must be 'little', as in all base64 here"),
    ),
    known(
        "raw",
        "Ollama",
        "a text as it is",
        only(FALSE, "must be false: it belongs to generating text"),
    ),
    known(
        "raw_scores",
        "TEI, Infinity",
        "scores that are not scaled",
        only(FALSE, "must be false: it belongs to ranking"),
    ),
    known(
        "stream",
        "OpenAI",
        "the reply in parts",
        only(FALSE, "must be false: replies come whole"),
    ),
    known("return_token_strs", "vLLM", "tokens as text, which are always there", NO_EFFECT),
    known("with_pieces", "llama.cpp", "another form of reply", NO_EFFECT),
    // How it is served.
    known("priority", "vLLM, Cohere", "who goes first: above 0 is bulk work", WORKS),
    known("user", "OpenAI", "who asks", NO_EFFECT),
    known("request_id", "vLLM", "the request's id; here it is the header x-request-id", NO_EFFECT),
    known("cache_salt", "vLLM", "apart from others in a cache, of which there is none", NO_EFFECT),
    known("metadata", "Mistral, LiteLLM", "notes on the request", NO_EFFECT),
    known("keep_alive", "Ollama", "how long the model stays loaded: always", NO_EFFECT),
    known(
        "options",
        "Ollama; Hugging Face",
        "the model's settings; on /embed, whether to wait for the model",
        only(EMPTY, "is not supported: the model's settings are the server's"),
    ),
    known(
        "parameters",
        "Hugging Face",
        "fields, one level down",
        only(EMPTY, "is not supported: send its fields beside the texts"),
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_is_there_once() {
        for (place, known) in FIELDS.iter().enumerate() {
            let first = FIELDS.iter().position(|other| other.name == known.name);
            assert_eq!(first, Some(place), "{}", known.name);
        }
    }
}
