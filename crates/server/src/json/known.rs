//! Every field that some embedding server's contract has, and what becomes of it here.
//!
//! The choice behind it: what other servers understand either works here or is refused by its name.
//! A field that is dropped without a word may decide on the vectors, and nobody would see it. What
//! no server knows is ignored, as OpenAI, TEI and vLLM do: clients add fields of their own, such as
//! LiteLLM's or those of `extra_body` in OpenAI's clients, for whoever stands between.
//!
//! The table says what becomes of a field wherever vectors are made; a dialect says in its own file
//! where its [`Contract`](super::object::Contract) differs. `docs/clients.md` shows all of it; a test of `dialects` holds the
//! two together, and another sends each field to each route.

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

/// A field's name, and what becomes of it where vectors are made, unless a contract says otherwise.
pub(crate) type Known = (&'static str, Treatment);

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
const FLOATS: &str = "must be 'float': vectors are not quantised here";
const MESSAGES: &str = "is not supported: send texts, not messages";
pub(crate) const FALSE: &[&str] = &["false"];
const EMPTY: &[&str] = &["{}"];

/// All of them.
pub(crate) const FIELDS: [Known; 53] = [
    // What to embed.
    ("input", refused(SEND_INPUTS)),
    ("inputs", refused(SEND_INPUT)),
    ("texts", refused(TEXTS)),
    ("text", refused(TEXTS)),
    ("content", refused(TEXTS)),
    ("messages", refused(MESSAGES)),
    ("chat_template", refused(MESSAGES)),
    ("images", refused("is not supported: send texts")),
    ("mm_processor_kwargs", refused("is not supported: send texts")),
    ("modality", only(&["\"text\""], "must be 'text': nothing else can be embedded")),
    ("model", NO_EFFECT),
    // What goes in front of it.
    ("prompt_name", WORKS),
    ("input_type", WORKS),
    ("task", WORKS),
    ("prompt", WORKS),
    (
        "instruction",
        refused("is not supported: send the whole text that goes in front as `prompt`"),
    ),
    ("add_special_tokens", only(&["true"], "must be true: the model needs its special tokens")),
    (
        "add_special",
        only(&["true"], "must be true: `add_special_tokens` can say otherwise, on /tokenize"),
    ),
    // What happens to what is too long.
    ("truncate", WORKS),
    ("truncation", WORKS),
    ("truncation_direction", WORKS),
    ("truncation_side", WORKS),
    ("truncate_prompt_tokens", WORKS),
    ("max_tokens", WORKS),
    ("padding", NO_EFFECT),
    // What the vectors are like.
    ("normalize", WORKS),
    ("normalized", WORKS),
    ("use_activation", WORKS),
    ("embd_normalize", WORKS),
    ("dimensions", WORKS),
    ("output_dimension", WORKS),
    ("late_chunking", only(FALSE, "must be false: each input is embedded by itself")),
    ("return_multivector", only(FALSE, "must be false: each input gets one vector")),
    // How they are written.
    ("encoding_format", only(&["\"float\""], "must be 'float' here: /v1/embeddings has base64")),
    ("output_dtype", only(&["\"float\""], FLOATS)),
    ("embedding_types", only(&["[\"float\"]"], FLOATS)),
    ("embedding_type", only(&["\"float\""], FLOATS)),
    ("encoding_type", only(&["\"float\""], FLOATS)),
    ("embed_dtype", only(&["\"float32\""], "must be 'float32': vectors are not quantised here")),
    ("endianness", only(&["\"little\"", "\"native\""], "must be 'little', as in all base64 here")),
    ("raw", only(FALSE, "must be false: it belongs to generating text")),
    ("raw_scores", only(FALSE, "must be false: it belongs to ranking")),
    ("stream", only(FALSE, "must be false: replies come whole")),
    ("return_token_strs", NO_EFFECT),
    ("with_pieces", NO_EFFECT),
    // How it is served.
    ("priority", WORKS),
    ("user", NO_EFFECT),
    ("request_id", NO_EFFECT),
    ("cache_salt", NO_EFFECT),
    ("metadata", NO_EFFECT),
    ("keep_alive", NO_EFFECT),
    ("options", only(EMPTY, "is not supported: the model's settings are the server's")),
    ("parameters", only(EMPTY, "is not supported: send its fields beside the texts")),
];

/// Where in [`FIELDS`] a name is.
pub(crate) fn place_of(name: &str) -> Option<usize> {
    FIELDS.iter().position(|(known, _)| *known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_is_there_once() {
        for (place, (name, _)) in FIELDS.iter().enumerate() {
            assert_eq!(place_of(name), Some(place), "{name}");
        }
    }
}
