//! Errors, by whose fault they are.

use std::time::Duration;

use vecmill_encoder::{BackendError, FitError, LoadError};
use vecmill_model::ModelError;
use vecmill_scheduler::Health;

use vecmill_hub::FetchError;

/// When to come back where no device serves.
const NO_DEVICE_RETRY: Duration = Duration::from_secs(5);

/// Who can do something about a [`RequestError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The caller: the same request will fail again.
    Caller,
    /// Nobody: the server is busy; try again later.
    Load,
    /// The server or a device.
    Server,
}

/// Why a request got no vectors, or no scores.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The request has no inputs.
    #[error("the request has no inputs: send at least one")]
    NoInputs,
    /// An input is empty.
    #[error("input {index} is empty: send at least one character or token")]
    EmptyInput {
        /// Its place in the request, from 0.
        index: usize,
    },
    /// An input is longer than the model takes, and the request said not to cut it.
    #[error(
        "input {index} has {tokens} tokens, but the model takes {limit}: shorten it or allow truncation"
    )]
    TooManyTokens {
        /// Its place in the request, from 0.
        index: usize,
        /// Its tokens, special tokens and prompt included.
        tokens: usize,
        /// The most that the model takes.
        limit: usize,
    },
    /// A token id is not in the model's vocabulary.
    #[error("input {index} has token id {token}, but the model's vocabulary ends at {last}")]
    UnknownToken {
        /// The input's place in the request, from 0.
        index: usize,
        /// The id.
        token: u32,
        /// The highest id that the model knows.
        last: u32,
    },
    /// A token that the tokenizer makes of an input has no embedding in the model.
    #[error(
        "input {index} has a token (id {token}) that the model's tokenizer knows and its {rows} embeddings don't: leave that token out, or mend the model's files, which don't fit each other"
    )]
    NoEmbedding {
        /// The input's place in the request, from 0.
        index: usize,
        /// The id.
        token: u32,
        /// Embeddings that the model has: ids below this are known.
        rows: usize,
    },
    /// The model makes numbers of an input that nobody can use, and JSON can't hold.
    #[error(
        "input {index}: what the model makes of it has an element that is not a finite number: the model's weights are damaged, or too large for float16 (bfloat16 and float32 have more range)"
    )]
    NotFinite {
        /// The input's place in the request, from 0.
        index: usize,
    },
    /// More dimensions, or none, were asked for than the model has.
    #[error(
        "{asked} dimensions were asked for, but the model has {available}: ask for 1 to {available}"
    )]
    Dimensions {
        /// Dimensions asked for.
        asked: usize,
        /// Dimensions that the model has.
        available: usize,
    },
    /// No model of this name is loaded.
    #[error("there is no model '{name}': {}", known_models(known))]
    UnknownModel {
        /// The name asked for.
        name: String,
        /// The models that are loaded.
        known: Vec<String>,
    },
    /// The model is for something else.
    #[error(
        "the model '{model}' gives {does}, and {asked} were asked for: ask for {does}, or another model"
    )]
    WrongTask {
        /// Its name.
        model: String,
        /// What it gives: `vectors` or `scores`.
        does: &'static str,
        /// What was asked for.
        asked: &'static str,
    },
    /// The model's tokenizer has no way of putting two texts side by side.
    #[error("input {index} is a pair of texts, but the model's tokenizer takes one at a time")]
    NoPairs {
        /// Its place in the request, from 0.
        index: usize,
    },
    /// The model is being loaded.
    #[error("the model '{name}' is being loaded: try again in a moment")]
    ModelLoading {
        /// Its name.
        name: String,
    },
    /// The named prompt does not exist.
    #[error("the model has no prompt '{name}': {}", known_prompts(known))]
    UnknownPrompt {
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// The model leaves its prompt out of pooling, which vecmill does not do.
    #[error("this model leaves the prompt out of pooling, which is not supported: send no prompt")]
    PromptNotPooled,
    /// More tokens were asked for than are listed in one reply.
    #[error("the texts have more than {limit} tokens together: send several requests")]
    TooMuchToTokenize {
        /// The most tokens of one request.
        limit: usize,
    },
    /// All that may be tokenised for people to look at at once is being tokenised, or still read.
    #[error("all {places} places for lists of tokens are taken: try again in a moment")]
    TokenizersBusy {
        /// How many there are.
        places: usize,
    },
    /// The tokenizer refused the text.
    #[error("input {index} can't be tokenised: {reason}")]
    Tokenizer {
        /// Its place in the request, from 0.
        index: usize,
        /// The tokenizer's words.
        reason: String,
    },
    /// The queue is full.
    #[error("the queue is full ({waiting} inputs waiting): try again in {} s", retry_after.as_secs().max(1))]
    Busy {
        /// Inputs that wait already.
        waiting: usize,
        /// When there will probably be room.
        retry_after: Duration,
    },
    /// The request's timeout is too short for what waits before it.
    #[error(
        "the answer would take {} ms, and may only take {}: allow more time, or try again later", predicted.as_millis(), left.as_millis()
    )]
    TooLate {
        /// How long the devices will take for what waits already.
        predicted: Duration,
        /// How long the answer may take.
        left: Duration,
    },
    /// The request's timeout came too near while it waited.
    #[error(
        "the answer can't be given within the request's timeout any more: allow more time, or try again later"
    )]
    Expired,
    /// No device serves: all are drained, out or gone.
    #[error(
        "no device serves ({}): restore one, or send the request to another instance",
        states(standing)
    )]
    NoDevice {
        /// How each device stands, by its name.
        standing: Vec<(String, Health)>,
    },
    /// Others use the device's memory, and none came free in time.
    #[error(
        "device {device} has no memory for this request now: {reason}; try again in {} s", retry_after.as_secs().max(1)
    )]
    NoMemory {
        /// The device's name, for example `cpu`.
        device: String,
        /// What the device's memory said.
        reason: String,
        /// When there will probably be some.
        retry_after: Duration,
    },
    /// One input alone needs more memory than the budget leaves.
    #[error(
        "input {index} needs {needed} bytes of memory, but the budget leaves {available} beside the weights: raise the budget or shorten the input"
    )]
    InputTooLarge {
        /// Its place in the request, from 0.
        index: usize,
        /// Bytes that it needs.
        needed: usize,
        /// Bytes that the budget leaves.
        available: usize,
    },
    /// The caller dropped the request's future before it was answered; only metrics see this.
    #[error("the caller gave the request up before it was answered")]
    GivenUp,
    /// The engine is shutting down.
    #[error("the engine is shutting down: send the request to another instance")]
    Stopped,
    /// A thread of the engine ended with the request in its hands: a defect of vecmill.
    #[error(
        "the request was lost by a defect of vecmill: please report what its log says; try again"
    )]
    Lost,
    /// The device failed at this batch.
    #[error("device {device} failed: {reason}")]
    Device {
        /// The device's name, for example `cpu`.
        device: String,
        /// What went wrong.
        reason: String,
    },
}

impl RequestError {
    /// Who can do something about it.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Busy { .. }
            | Self::ModelLoading { .. }
            | Self::NoDevice { .. }
            | Self::NoMemory { .. }
            | Self::TokenizersBusy { .. }
            | Self::TooLate { .. }
            | Self::Expired => Fault::Load,
            Self::Stopped
            | Self::Lost
            | Self::Device { .. }
            | Self::NotFinite { .. }
            | Self::InputTooLarge { .. } => Fault::Server,
            _ => Fault::Caller,
        }
    }

    /// The input that it belongs to, by its place in the request from 0, if it is one input's.
    pub fn input(&self) -> Option<usize> {
        match *self {
            Self::EmptyInput { index }
            | Self::TooManyTokens { index, .. }
            | Self::UnknownToken { index, .. }
            | Self::NoEmbedding { index, .. }
            | Self::NoPairs { index }
            | Self::NotFinite { index }
            | Self::Tokenizer { index, .. }
            | Self::InputTooLarge { index, .. } => Some(index),
            _ => None,
        }
    }

    /// When the same request may succeed, where that is only a matter of time.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } | Self::NoMemory { retry_after, .. } => {
                Some(*retry_after)
            }
            Self::NoDevice { .. } => Some(NO_DEVICE_RETRY),
            Self::TokenizersBusy { .. } | Self::ModelLoading { .. } => Some(Duration::from_secs(1)),
            Self::TooLate { predicted, left } => Some(predicted.saturating_sub(*left)),
            _ => None,
        }
    }
}

fn states(standing: &[(String, Health)]) -> String {
    let states: Vec<_> =
        standing.iter().map(|(device, health)| format!("{device} is {}", health.name())).collect();
    states.join(", ")
}

/// Where the number format has less range than weights may need.
fn or_too_large(format: &str) -> String {
    match format {
        "float32" | "bfloat16" => String::new(),
        _ => format!(", or too large for {format}: try bfloat16 or float32 (--dtype)"),
    }
}

fn known_models(known: &[String]) -> String {
    if known.is_empty() {
        "none is loaded".into()
    } else {
        format!("loaded are {}", known.join(", "))
    }
}

fn known_prompts(known: &[String]) -> String {
    if known.is_empty() { "it has none".into() } else { format!("it has {}", known.join(", ")) }
}

/// Why an engine could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The model could not be found or fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The model's files are not what vecmill can run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model could not be loaded onto a device.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A device could not be used.
    #[error(transparent)]
    Device(#[from] BackendError),
    /// A device that was asked for is not there, or can't run models.
    #[error("device {device} can't be used: {reason}")]
    NoDevice {
        /// Its name, for example `cuda:0`.
        device: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer's file is missing or broken.
    #[error("{}: the tokenizer can't be read: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer makes ids that the model has no embeddings for, of ordinary words.
    #[error(
        "the tokenizer's vocabulary has {tokens} tokens, but the model has {rows} embeddings: tokenizer.json and the weights are not of the same model"
    )]
    Vocabulary {
        /// Tokens of the vocabulary, added ones apart.
        tokens: usize,
        /// Embeddings of the model.
        rows: usize,
    },
    /// No text can be embedded.
    #[error("the model can embed none of the practice texts: {reason}")]
    Practice {
        /// Why not.
        reason: String,
    },
    /// The model's vectors are of no use.
    #[error(
        "on device {device}, the model's vectors for all practice texts have elements that are not finite numbers: its weights are damaged{}",
        or_too_large(format)
    )]
    NotFinite {
        /// The device's name, for example `cuda:0`.
        device: String,
        /// The number format that it computes in, for example `float16`.
        format: String,
    },
    /// A setting contradicts the model or the machine.
    #[error("{setting}: {reason}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// The weights and the longest input do not fit into the memory budget.
    #[error("the memory budget is too small: {0}")]
    Budget(FitError),
    /// The budget allows it, but the memory could not be had.
    #[error("the memory for one batch can't be taken: {0}")]
    Memory(#[from] vecmill_memory::LeaseError),
    /// The system refused a thread.
    #[error("a worker thread could not be started: {0}")]
    Thread(std::io::Error),
}

impl StartError {
    /// There is no device to run on.
    pub(crate) fn no_device() -> Self {
        let reason = "expected at least one, found none".into();
        Self::Setting { setting: "device", reason }
    }
}

impl From<FitError> for StartError {
    fn from(error: FitError) -> Self {
        match error {
            FitError::Model(error) => Self::Load(error.into()),
            error => Self::Budget(error),
        }
    }
}
