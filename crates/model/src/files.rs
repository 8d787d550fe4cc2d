//! Which files make a model: the name of each, once.
//!
//! What a model is read from and what is fetched of it go by these names and by [`OPTIONAL_FILES`], so
//! that no file is read that was never fetched. Of a tokenizer's own file only the engine knows.

/// Of a transformer, and of each module that has settings.
pub const CONFIG_FILE: &str = "config.json";

/// Weights, of a transformer or a dense layer.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// In its place, where weights are in several files: their names.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Weights that PyTorch has pickled.
pub const PICKLE_FILE: &str = "pytorch_model.bin";

/// In its place, where they are in several files: their names.
pub const PICKLE_INDEX_FILE: &str = "pytorch_model.bin.index.json";

/// What weights come as, in the order in which it is looked for: a file, or an index of several.
pub const WEIGHTS_FILES: [[&str; 2]; 2] =
    [[WEIGHTS_FILE, INDEX_FILE], [PICKLE_FILE, PICKLE_INDEX_FILE]];

/// The modules of a sentence-transformers model, and their folders.
pub const MODULES_FILE: &str = "modules.json";

/// Prompts, and what holds for the whole model.
pub(crate) const PROMPTS: &str = "config_sentence_transformers.json";

/// Where sentence-transformers keeps the transformer's settings, in the order in which it looks.
pub(crate) const TRANSFORMER: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(crate) const SPECIAL_TOKENS: &str = "special_tokens_map.json";
pub(crate) const ADDED_TOKENS: &str = "added_tokens.json";

/// Weights that only change those of another model.
pub(crate) const ADAPTERS: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// The settings of Stanford's ColBERT.
pub(crate) const COLBERT: &str = "artifact.metadata";

/// Files of settings beside `config.json` that count where they are there: in a model's own folder
/// and in its transformer's. Of some only that they are there counts, against the model.
pub const OPTIONAL_FILES: [&str; 15] = {
    let others = [
        MODULES_FILE,
        PROMPTS,
        TOKENIZER_CONFIG,
        SPECIAL_TOKENS,
        ADDED_TOKENS,
        ADAPTERS[0],
        ADAPTERS[1],
        COLBERT,
    ];
    let mut all = [""; TRANSFORMER.len() + 8];
    let mut at = 0;
    while at < all.len() {
        all[at] = if at < others.len() { others[at] } else { TRANSFORMER[at - others.len()] };
        at += 1;
    }
    all
};
