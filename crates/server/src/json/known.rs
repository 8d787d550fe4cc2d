//! Every field that some embedding server's contract has, and what each of our routes does with it.
//!
//! The choice behind it: what other servers understand either works here or is refused by its name.
//! A field that is dropped without a word may decide on the vectors, and nobody would see it. What
//! no server knows is ignored, as OpenAI, TEI and vLLM do: clients add fields of their own, such as
//! LiteLLM's or those of `extra_body` in OpenAI's clients, for whoever stands between.
//!
//! `docs/clients.md` shows this table; a test holds the two together, and another sends each field
//! to each route.

/// A contract with fields of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/v1/embeddings` and `/embeddings`.
    OpenAi,
    /// `/embed` and `/`.
    Embed,
    /// `/tokenize`.
    Tokenize,
}

/// What a route does with a field that is not `null`.
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

/// A field, and what each route does with it.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) name: &'static str,
    /// Whose contracts have it. For the document, as the next one.
    #[cfg_attr(not(test), expect(dead_code, reason = "only the document shows it"))]
    whose: &'static str,
    /// What it asks for.
    #[cfg_attr(not(test), expect(dead_code, reason = "only the document shows it"))]
    asks: &'static str,
    openai: Treatment,
    embed: Treatment,
    tokenize: Treatment,
}

impl Known {
    /// What `route` does with it.
    pub(crate) fn treatment(&self, route: Route) -> Treatment {
        match route {
            Route::OpenAi => self.openai,
            Route::Embed => self.embed,
            Route::Tokenize => self.tokenize,
        }
    }
}

const WORKS: Treatment = Treatment::Works;
const NO_EFFECT: Treatment = Treatment::NoEffect;
/// The treatments on `/v1/embeddings`, `/embed` and `/tokenize`.
type Treatments = [Treatment; 3];
const WORK: Treatments = [WORKS; 3];
const WORK_ON_VECTORS: Treatments = [WORKS, WORKS, NO_EFFECT];
const NONE_MATTER: Treatments = [NO_EFFECT; 3];

const fn refused(because: &'static str) -> Treatment {
    only(&[], because)
}

const fn only(except: &'static [&'static str], because: &'static str) -> Treatment {
    Treatment::Refused { except, because }
}

/// For a way to write vectors: `/tokenize` writes none.
const fn vectors_only(except: &'static [&'static str], because: &'static str) -> Treatments {
    [only(except, because), only(except, because), NO_EFFECT]
}

const fn nowhere(because: &'static str) -> Treatments {
    [refused(because); 3]
}

const fn known(
    name: &'static str,
    whose: &'static str,
    asks: &'static str,
    [openai, embed, tokenize]: Treatments,
) -> Known {
    Known { name, whose, asks, openai, embed, tokenize }
}

const TEXTS: &str = "is another server's name for texts: send `input` to /v1/embeddings, `inputs` to /embed and /tokenize";
const SEND_INPUTS: &str = "is OpenAI's name for texts, on /v1/embeddings: here it is `inputs`";
const SEND_INPUT: &str = "is TEI's name for texts, on /embed: here it is `input`";
const FLOATS: &str = "must be 'float': vectors are not quantised here";
const NOT_CUT: &str = "is not supported: /tokenize cuts nothing";
const MESSAGES: &str = "is not supported: send texts, not messages";
const FALSE: &[&str] = &["false"];
const EMPTY: &[&str] = &["{}"];

/// All of them.
pub(crate) const FIELDS: [Known; 53] = [
    // What to embed.
    known("input", "OpenAI", "what to embed", [WORKS, refused(SEND_INPUTS), refused(SEND_INPUTS)]),
    known("inputs", "TEI", "what to embed", [refused(SEND_INPUT), WORKS, WORKS]),
    known("texts", "Cohere", "what to embed", nowhere(TEXTS)),
    known("text", "Cohere, Weaviate", "what to embed", nowhere(TEXTS)),
    known("content", "llama.cpp", "what to embed", nowhere(TEXTS)),
    known("messages", "vLLM", "a conversation to embed", nowhere(MESSAGES)),
    known("chat_template", "vLLM", "how messages become text", nowhere(MESSAGES)),
    known("images", "Cohere", "pictures to embed", nowhere("is not supported: send texts")),
    known(
        "mm_processor_kwargs",
        "vLLM",
        "how pictures are read",
        nowhere("is not supported: send texts"),
    ),
    known(
        "modality",
        "Infinity, NIM",
        "what kind the input is of",
        [only(&["\"text\""], "must be 'text': nothing else can be embedded"); 3],
    ),
    known("model", "OpenAI", "the model, by any name", [WORKS, NO_EFFECT, NO_EFFECT]),
    // What goes in front of it.
    known("prompt_name", "TEI", "the model's prompt of this name", WORK),
    known("input_type", "Cohere, Voyage, NIM", "the model's prompt for this task", WORK),
    known("task", "Jina", "the model's prompt for this task", WORK),
    known(
        "prompt",
        "sentence-transformers",
        "this text in front of each input",
        [
            WORKS,
            WORKS,
            refused(
                "is vLLM's name for a text: here it is `inputs`, and a prompt has its name in `prompt_name`",
            ),
        ],
    ),
    known(
        "instruction",
        "vLLM",
        "an instruction for the model",
        nowhere("is not supported: send the whole text that goes in front as `prompt`"),
    ),
    known(
        "add_special_tokens",
        "TEI, vLLM",
        "the model's special tokens around each text",
        [
            only(&["true"], "must be true: the model needs its special tokens"),
            only(&["true"], "must be true: the model needs its special tokens"),
            WORKS,
        ],
    ),
    known(
        "add_special",
        "llama.cpp",
        "the same",
        [only(&["true"], "must be true: `add_special_tokens` can say otherwise, on /tokenize"); 3],
    ),
    // What happens to what is too long.
    known(
        "truncate",
        "TEI, Jina, Ollama; Cohere, NIM",
        "cut what is too long, or refuse it: true, false, NONE, START, END",
        [WORKS, WORKS, only(&["false", "\"NONE\""], NOT_CUT)],
    ),
    known(
        "truncation",
        "Voyage",
        "cut what is too long: true, false",
        [WORKS, WORKS, only(FALSE, NOT_CUT)],
    ),
    known("truncation_direction", "TEI", "where to cut: left, right", WORK_ON_VECTORS),
    known("truncation_side", "vLLM", "where to cut: left, right", WORK_ON_VECTORS),
    known(
        "truncate_prompt_tokens",
        "vLLM",
        "cut to so many tokens; -1 is the model's limit, and no less is taken",
        [WORKS, WORKS, refused(NOT_CUT)],
    ),
    known(
        "max_tokens",
        "Cohere",
        "cut to so many tokens; no less than the model's limit is taken",
        [WORKS, WORKS, refused(NOT_CUT)],
    ),
    known("padding", "vLLM", "padding, of which there is none", NONE_MATTER),
    // What the vectors are like.
    known("normalize", "TEI", "vectors of length one", WORK_ON_VECTORS),
    known("normalized", "Jina", "vectors of length one", WORK_ON_VECTORS),
    known("use_activation", "vLLM", "vectors of length one", WORK_ON_VECTORS),
    known(
        "embd_normalize",
        "llama.cpp",
        "vectors of length one: 2, or -1 for not",
        WORK_ON_VECTORS,
    ),
    known("dimensions", "OpenAI, TEI, Jina", "so many leading dimensions", WORK_ON_VECTORS),
    known(
        "output_dimension",
        "Voyage, Cohere, Mistral",
        "so many leading dimensions",
        WORK_ON_VECTORS,
    ),
    known(
        "late_chunking",
        "Jina",
        "inputs as parts of one text",
        vectors_only(FALSE, "must be false: each input is embedded by itself"),
    ),
    known(
        "return_multivector",
        "Jina",
        "a vector for each token",
        vectors_only(FALSE, "must be false: each input gets one vector"),
    ),
    // How they are written.
    known(
        "encoding_format",
        "OpenAI",
        "numbers as text, or base64 of little-endian f32: float, base64",
        [WORKS, only(&["\"float\""], "must be 'float' here: /v1/embeddings has base64"), NO_EFFECT],
    ),
    known(
        "output_dtype",
        "Voyage, Mistral",
        "the numbers' format",
        vectors_only(&["\"float\""], FLOATS),
    ),
    known(
        "embedding_types",
        "Cohere",
        "the numbers' formats",
        vectors_only(&["[\"float\"]"], FLOATS),
    ),
    known("embedding_type", "Jina", "the numbers' format", vectors_only(&["\"float\""], FLOATS)),
    known("encoding_type", "Jina", "the numbers' format", vectors_only(&["\"float\""], FLOATS)),
    known(
        "embed_dtype",
        "vLLM",
        "the numbers' format",
        vectors_only(&["\"float32\""], "must be 'float32': vectors are not quantised here"),
    ),
    known(
        "endianness",
        "vLLM",
        "the order of a number's bytes in base64",
        vectors_only(&["\"little\"", "\"native\""], "must be 'little', as in all base64 here"),
    ),
    known(
        "raw",
        "Ollama",
        "a text as it is",
        [only(FALSE, "must be false: it belongs to generating text"); 3],
    ),
    known(
        "raw_scores",
        "TEI, Infinity",
        "scores that are not scaled",
        [only(FALSE, "must be false: it belongs to ranking"); 3],
    ),
    known(
        "stream",
        "OpenAI",
        "the reply in parts",
        [only(FALSE, "must be false: replies come whole"); 3],
    ),
    known("return_token_strs", "vLLM", "tokens as text, which are always there", NONE_MATTER),
    known(
        "with_pieces",
        "llama.cpp",
        "another form of reply",
        [NO_EFFECT, NO_EFFECT, only(FALSE, "must be false: each token comes with its text")],
    ),
    // How it is served.
    known("priority", "vLLM, Cohere", "who goes first: above 0 is bulk work", WORK_ON_VECTORS),
    known("user", "OpenAI", "who asks", NONE_MATTER),
    known(
        "request_id",
        "vLLM",
        "the request's id; here it is the header x-request-id",
        NONE_MATTER,
    ),
    known(
        "cache_salt",
        "vLLM",
        "apart from others in a cache, of which there is none",
        NONE_MATTER,
    ),
    known("metadata", "Mistral, LiteLLM", "notes on the request", NONE_MATTER),
    known("keep_alive", "Ollama", "how long the model stays loaded: always", NONE_MATTER),
    known(
        "options",
        "Ollama; Hugging Face",
        "the model's settings; on /embed, whether to wait for the model",
        [
            only(EMPTY, "is not supported: the model's settings are the server's"),
            NO_EFFECT,
            NO_EFFECT,
        ],
    ),
    known(
        "parameters",
        "Hugging Face",
        "fields, one level down",
        [only(EMPTY, "is not supported: send its fields beside the texts"); 3],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// As the document says it.
    fn cell(treatment: Treatment) -> String {
        match treatment {
            Treatment::Works => "works".to_owned(),
            Treatment::NoEffect => "no effect".to_owned(),
            Treatment::Refused { except: [], .. } => "refused".to_owned(),
            Treatment::Refused { except, .. } => {
                let values: Vec<_> = except.iter().map(|value| format!("`{value}`")).collect();
                format!("only {}", values.join(", "))
            }
        }
    }

    fn row(known: &Known) -> String {
        let Known { name, whose, asks, .. } = known;
        let cells = [Route::OpenAi, Route::Embed, Route::Tokenize];
        let [openai, embed, tokenize] = cells.map(|route| cell(known.treatment(route)));
        format!("| `{name}` | {whose} | {asks} | {openai} | {embed} | {tokenize} |\n")
    }

    #[test]
    fn the_document_shows_this_table() {
        let document = include_str!("../../../../docs/clients.md");
        let rows: String = FIELDS.iter().map(row).collect();
        assert!(document.contains(&rows), "docs/clients.md should have these lines:\n{rows}");
    }

    #[test]
    fn each_field_is_there_once() {
        for (place, known) in FIELDS.iter().enumerate() {
            let first = FIELDS.iter().position(|other| other.name == known.name);
            assert_eq!(first, Some(place), "{}", known.name);
        }
    }

    #[test]
    fn what_is_accepted_is_json() {
        for known in &FIELDS {
            for route in [Route::OpenAi, Route::Embed, Route::Tokenize] {
                if let Treatment::Refused { except, because } = known.treatment(route) {
                    assert!(!because.is_empty());
                    for value in except {
                        serde_json::from_str::<serde_json::Value>(value).unwrap();
                    }
                }
            }
        }
    }
}
