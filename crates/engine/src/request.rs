//! What callers ask for, and what they get.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use vecmill_scheduler::Priority;

/// One thing to turn into a vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Text, tokenised by the model's tokenizer, with the prompt in front if one is set.
    Text(String),
    /// Token ids, used as they are: the caller has already added special tokens and prompt.
    Tokens(Vec<u32>),
}

impl From<&str> for Input {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Input {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// What happens to an input that is longer than the model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Truncation {
    /// Cut at the end; the reply says so.
    #[default]
    End,
    /// Cut at the start; the reply says so.
    Start,
    /// Refuse the request with [`RequestError::TooManyTokens`](crate::RequestError::TooManyTokens).
    Refuse,
}

/// The text that some models expect in front of each input.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Prompt {
    /// The engine's default prompt, if it has one.
    #[default]
    Default,
    /// No prompt.
    None,
    /// One of the model's named prompts (`config_sentence_transformers.json`).
    Named(String),
    /// This text.
    Text(String),
}

/// Something that is kept for as long as the engine holds anything of a request, answered or given
/// up: a place in an account of memory, say. Requests that differ in it alone are equal.
#[derive(Clone, Default)]
pub struct Keep(Option<Arc<dyn Send + Sync>>);

impl Keep {
    /// Keeps `kept`.
    pub fn new(kept: impl Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(kept)))
    }
}

impl fmt::Debug for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Keep(..)" } else { "Keep" })
    }
}

impl PartialEq for Keep {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Keep {}

/// A request for embeddings. Its inputs are batched with everybody else's.
///
/// ```
/// use vecmill_engine::{Request, Truncation};
///
/// let request = Request { truncation: Truncation::Refuse, ..Request::new(["a quick brown fox"]) };
/// assert_eq!(request.inputs.len(), 1);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// The model that is asked, by its name; the engine's first one if none is given.
    pub model: Option<String>,
    /// What to embed; the reply has one embedding for each, in the same order.
    pub inputs: Vec<Input>,
    /// What happens to inputs that are too long.
    pub truncation: Truncation,
    /// Scale each vector to length one? `None` does as the model's own pipeline says.
    pub normalize: Option<bool>,
    /// Keep only so many leading dimensions (Matryoshka models), before normalising.
    pub dimensions: Option<usize>,
    /// The prompt for inputs that are text.
    pub prompt: Prompt,
    /// Whether it goes before others.
    pub priority: Priority,
    /// From now on, how long the answer may take to be of any use. A request that can't be answered
    /// so soon is refused at once, or when that turns out.
    pub timeout: Option<Duration>,
    /// Dropped when the engine holds nothing of the request any more.
    pub keep: Keep,
}

impl Request {
    /// A request for `inputs` with everything else at its default.
    pub fn new<I: Into<Input>>(inputs: impl IntoIterator<Item = I>) -> Self {
        Self { inputs: inputs.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// One input's vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// The vector.
    pub vector: Vec<f32>,
    /// Tokens that went into it, special tokens included.
    pub tokens: usize,
    /// Whether the input was cut to the model's limit.
    pub truncated: bool,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// One embedding for each input, in the order of the request.
    pub embeddings: Vec<Embedding>,
    /// Where the time went.
    pub timings: Timings,
}

impl Reply {
    /// Tokens of all inputs together.
    pub fn tokens(&self) -> usize {
        self.embeddings.iter().map(|embedding| embedding.tokens).sum()
    }
}

/// How long the stages of a request took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// Turning text into tokens.
    pub tokenization: Duration,
    /// Waiting for a device, the longest of the request's inputs.
    pub queue: Duration,
    /// Running on a device, the longest of the request's batches.
    pub inference: Duration,
    /// From the call to the reply.
    pub total: Duration,
}
