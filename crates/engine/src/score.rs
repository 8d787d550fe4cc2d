//! What callers ask to have scored, and what they get.

use std::sync::Arc;
use std::time::Duration;

use vecmill_model::ScoreActivation;

use crate::request::{Embedding, Keep, Priority, Reply, Timings, Truncation};

/// One thing to score.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScoreInput {
    /// A text alone.
    Text(String),
    /// Two texts side by side, such as a query and a document. Pairs that follow each other and have
    /// the same first text share its tokens.
    Pair(Arc<str>, String),
}

/// A request for scores: of how well documents answer a query, of the labels that texts have. Its
/// inputs are batched with everybody else's.
///
/// ```
/// use vecmill_engine::{ScoreActivation, ScoreRequest};
///
/// let ranked = ScoreRequest::rerank("capital of Kenya", ["Lagos", "Nairobi"]);
/// assert_eq!(ranked.inputs.len(), 2);
/// let raw = ScoreRequest { activation: Some(ScoreActivation::Identity), ..ranked };
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScoreRequest {
    /// The model that is asked, by its name; the engine's first one if none is given.
    pub model: Option<String>,
    /// What to score; the reply has scores for each, in the same order.
    pub inputs: Vec<ScoreInput>,
    /// What happens to inputs that are too long. Of a pair, tokens go one by one from the longer text.
    pub truncation: Truncation,
    /// What is applied to scores; [`Identity`](ScoreActivation::Identity) leaves them as they are.
    /// `None` does as the model's own files say.
    pub activation: Option<ScoreActivation>,
    /// Whether it goes before others.
    pub priority: Priority,
    /// From now on, how long the answer may take to be of any use. A request that can't be answered
    /// so soon is refused at once, or when that turns out.
    pub timeout: Option<Duration>,
    /// Dropped when the engine holds nothing of the request any more.
    pub keep: Keep,
}

impl ScoreRequest {
    /// A request for `inputs` with everything else at its default.
    pub fn new(inputs: impl IntoIterator<Item = ScoreInput>) -> Self {
        Self { inputs: inputs.into_iter().collect(), ..Self::default() }
    }

    /// How well each of `documents` answers `query`.
    pub fn rerank<D: Into<String>>(query: &str, documents: impl IntoIterator<Item = D>) -> Self {
        let query: Arc<str> = query.into();
        let pair = |document: D| ScoreInput::Pair(Arc::clone(&query), document.into());
        Self::new(documents.into_iter().map(pair))
    }
}

/// The scores of one input.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// One for each label.
    pub scores: Vec<f32>,
    /// Tokens that went into them, special tokens included.
    pub tokens: usize,
    /// Whether the input was cut to the model's limit.
    pub truncated: bool,
}

/// The answer to a [`ScoreRequest`].
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreReply {
    /// Of each input, in the order of the request.
    pub scores: Vec<Score>,
    /// What each number of a [`Score`] is about.
    pub labels: Arc<[String]>,
    /// Where the time went.
    pub timings: Timings,
}

impl ScoreReply {
    pub(crate) fn of(reply: Reply, labels: Arc<[String]>) -> Self {
        let score = |row: Embedding| {
            let Embedding { vector: scores, tokens, truncated } = row;
            Score { scores, tokens, truncated }
        };
        let scores = reply.embeddings.into_iter().map(score).collect();
        Self { scores, labels, timings: reply.timings }
    }

    /// Tokens of all inputs together.
    pub fn tokens(&self) -> usize {
        self.scores.iter().map(|score| score.tokens).sum()
    }
}
