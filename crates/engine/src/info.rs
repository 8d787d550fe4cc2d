//! What a running engine tells about itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use vecmill_model::{Model, ScoreActivation};

use crate::settings::Settings;
use crate::tokenize::Tokenizer;

/// What a model is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Task {
    /// Vectors of texts: [`Engine::embed`](crate::Engine::embed).
    #[default]
    Embed,
    /// Scores of texts, or of pairs of them: [`Engine::score`](crate::Engine::score).
    Score {
        /// What each score is about. A model that ranks has one.
        labels: Arc<[String]>,
        /// What is applied to scores unless a request says otherwise.
        activation: ScoreActivation,
    },
}

impl Task {
    pub(crate) fn of(model: &Model) -> Self {
        match &model.task {
            vecmill_model::Task::Classify(head) => {
                Self::Score { labels: head.labels.as_slice().into(), activation: head.activation }
            }
            _ => Self::Embed,
        }
    }

    /// What it gives.
    pub(crate) fn words(&self) -> &'static str {
        match self {
            Self::Embed => "vectors",
            Self::Score { .. } => "scores",
        }
    }

    pub(crate) fn labels(&self) -> Arc<[String]> {
        match self {
            Self::Embed => Arc::default(),
            Self::Score { labels, .. } => Arc::clone(labels),
        }
    }
}

/// A model that an engine runs, and its limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info {
    /// The Hugging Face id or folder that the model came from.
    pub model_id: String,
    /// The revision asked for; `None` for a folder.
    pub revision: Option<String>,
    /// What it is for.
    pub task: Task,
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

impl Info {
    /// About a model of an engine, of which `engine` says what is the same for all.
    pub(crate) fn of(
        settings: &Settings,
        model: &Model,
        tokenizer: &Tokenizer,
        max_batch_tokens: usize,
        engine: Self,
    ) -> Self {
        let (model_id, revision) = settings.model_name();
        let (before, after) = tokenizer.special_tokens();
        Self {
            model_id,
            revision,
            task: Task::of(model),
            architecture: model.config.model_type.into(),
            pooling: model.pipeline.pooling.to_string(),
            normalized: model.pipeline.normalize,
            dimensions: model.dimensions(),
            max_input_tokens: model.max_input_tokens(),
            max_batch_tokens,
            prompts: model.pipeline.prompts.clone(),
            tokens_before: before.to_vec(),
            tokens_after: after.to_vec(),
            ..engine
        }
    }
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
