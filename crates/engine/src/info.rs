//! What a running engine tells about itself.

use std::collections::BTreeMap;

/// The model that an engine runs, and its limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info {
    /// The Hugging Face id or folder that the model came from.
    pub model_id: String,
    /// The revision asked for; `None` for a folder.
    pub revision: Option<String>,
    /// `model_type` of its `config.json`.
    pub architecture: String,
    /// The number format that the first device computes in, for example `float32`.
    pub dtype: String,
    /// How token vectors become one vector: `mean`, `cls`, `max` or `lasttoken`.
    pub pooling: String,
    /// Whether vectors have length one unless a request says otherwise.
    pub normalized: bool,
    /// Dimensions of a vector.
    pub dimensions: usize,
    /// The most tokens that one input may have.
    pub max_input_tokens: usize,
    /// The most tokens that run in one batch, on the device that takes most.
    pub max_batch_tokens: usize,
    /// The most inputs that may wait.
    pub queue_capacity: usize,
    /// Threads that tokenise.
    pub tokenization_workers: usize,
    /// The model's prompts by name.
    pub prompts: BTreeMap<String, String>,
    /// Ids of the special tokens that the tokenizer puts in front of each text.
    pub tokens_before: Vec<u32>,
    /// Ids of the special tokens that it puts behind each text.
    pub tokens_after: Vec<u32>,
    /// The devices that run batches.
    pub devices: Vec<DeviceSummary>,
}

/// A place that runs batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSummary {
    /// Its name, for example `cpu`.
    pub name: String,
    /// What it is, for example `2 threads, AVX2`.
    pub description: String,
    /// The number format that it computes in, for example `float32`.
    pub dtype: String,
}
