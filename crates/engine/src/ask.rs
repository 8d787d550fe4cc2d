//! What is asked of a model, whatever it is for: inputs on their way to tokens, and what is wanted of
//! the rows that become of them.
//!
//! - [`Ask`] is a [`Request`] or a [`ScoreRequest`]; [`Ask::check`] says whether a model can answer it.

use std::sync::Arc;
use std::time::Duration;

use vecmill_encoder::{Scaling, finish};
use vecmill_model::ScoreActivation;

use crate::error::RequestError;
use crate::info::Task;
use crate::models::Served;
use crate::request::{Input, Keep, Priority, Prompt, Request, Truncation};
use crate::score::{ScoreInput, ScoreRequest};
use crate::tokenize::Side;

/// A request of any kind.
pub(crate) struct Ask {
    pub(crate) model: Option<String>,
    pub(crate) texts: Vec<Texts>,
    pub(crate) truncation: Truncation,
    pub(crate) prompt: Prompt,
    pub(crate) priority: Priority,
    pub(crate) timeout: Option<Duration>,
    pub(crate) keep: Keep,
    wants: Wants,
}

/// One input.
pub(crate) enum Texts {
    One(String),
    Pair(Arc<Side>, String),
    Tokens(Vec<u32>),
}

/// What is wanted.
#[derive(Debug, Clone, Copy)]
enum Wants {
    Vectors { normalize: Option<bool>, dimensions: Option<usize> },
    Scores { activation: Option<ScoreActivation> },
}

/// What becomes of a row that was computed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Finish {
    Vector { dimensions: usize, scaling: Scaling },
    Scores(ScoreActivation),
}

impl Finish {
    /// The numbers that are wanted; `None` if the row has some that are not finite.
    pub(crate) fn of(self, row: &[f32]) -> Option<Vec<f32>> {
        let is_finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        match self {
            Self::Vector { dimensions, scaling } => {
                Some(finish(row, dimensions, scaling)).filter(|vector| is_finite(vector))
            }
            Self::Scores(activation) => is_finite(row).then(|| {
                let mut scores = row.to_vec();
                activation.apply(&mut scores);
                scores
            }),
        }
    }
}

impl From<Request> for Ask {
    fn from(request: Request) -> Self {
        let Request { model, inputs, truncation, normalize, dimensions, prompt, .. } = request;
        let texts = inputs.into_iter().map(|input| match input {
            Input::Text(text) => Texts::One(text),
            Input::Tokens(ids) => Texts::Tokens(ids),
        });
        Self {
            model,
            texts: texts.collect(),
            truncation,
            prompt,
            priority: request.priority,
            timeout: request.timeout,
            keep: request.keep,
            wants: Wants::Vectors { normalize, dimensions },
        }
    }
}

impl From<ScoreRequest> for Ask {
    fn from(request: ScoreRequest) -> Self {
        let mut side: Option<Arc<Side>> = None;
        let texts = request.inputs.into_iter().map(|input| match input {
            ScoreInput::Text(text) => Texts::One(text),
            ScoreInput::Pair(first, second) => {
                // Most often it is the same allocation: a query in front of each of its documents.
                let same = side
                    .take()
                    .filter(|side| std::ptr::eq(side.text(), &*first) || side.text() == &*first);
                let shared = same.unwrap_or_else(|| Arc::new(Side::new(first)));
                side = Some(Arc::clone(&shared));
                Texts::Pair(shared, second)
            }
        });
        Self {
            model: request.model,
            texts: texts.collect(),
            truncation: request.truncation,
            prompt: Prompt::None,
            priority: request.priority,
            timeout: request.timeout,
            keep: request.keep,
            wants: Wants::Scores { activation: request.activation },
        }
    }
}

impl Texts {
    /// Their bytes; `None` of ids.
    pub(crate) fn bytes(&self) -> Option<usize> {
        match self {
            Self::One(text) => Some(text.len()),
            Self::Pair(side, second) => Some(side.text().len() + second.len()),
            Self::Tokens(_) => None,
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Tokens(ids) => ids.is_empty(),
            texts => texts.bytes() == Some(0),
        }
    }
}

impl Ask {
    /// Whatever a model is for, of texts in tokens.
    pub(crate) fn practice(model: &Served, texts: Vec<Vec<u32>>) -> Self {
        let wants = match model.info.task {
            Task::Embed => Wants::Vectors { normalize: None, dimensions: None },
            Task::Score { .. } => Wants::Scores { activation: None },
        };
        let texts = texts.into_iter().map(Texts::Tokens).collect();
        let plain =
            Request { prompt: Prompt::None, priority: Priority::Bulk, ..Request::default() };
        Self { texts, wants, ..plain.into() }
    }

    /// What is wanted of rows, if the model can answer this.
    pub(crate) fn check(&self, model: &Served) -> Result<Finish, RequestError> {
        if self.texts.is_empty() {
            return Err(RequestError::NoInputs);
        }
        let finish = self.wants.finish(model)?;
        let known = model.limits.vocabulary;
        for (index, texts) in self.texts.iter().enumerate() {
            if texts.is_empty() {
                return Err(RequestError::EmptyInput { index });
            }
            let Texts::Tokens(ids) = texts else { continue };
            if let Some(&token) = ids.iter().find(|&&token| token as usize >= known) {
                let last = u32::try_from(known - 1).unwrap_or(u32::MAX);
                return Err(RequestError::UnknownToken { index, token, last });
            }
        }
        Ok(finish)
    }
}

impl Wants {
    fn finish(self, model: &Served) -> Result<Finish, RequestError> {
        let wrong = || RequestError::WrongTask {
            model: model.name.to_string(),
            does: model.info.task.words(),
            asked: match self {
                Self::Vectors { .. } => "vectors",
                Self::Scores { .. } => "scores",
            },
        };
        let (normalize, dimensions) = match (self, &model.info.task) {
            (Self::Vectors { normalize, dimensions }, Task::Embed) => (normalize, dimensions),
            (Self::Scores { activation: asked }, Task::Score { activation, .. }) => {
                return Ok(Finish::Scores(asked.unwrap_or(*activation)));
            }
            _ => return Err(wrong()),
        };
        let row = model.limits.dimensions;
        let available = model.pipeline.truncate.map_or(row, |kept| kept.min(row));
        let kept = dimensions.unwrap_or(available);
        if kept == 0 || kept > available {
            return Err(RequestError::Dimensions { asked: kept, available });
        }
        let scaling = match normalize.unwrap_or(model.pipeline.normalize) {
            false => Scaling::AsIs,
            // By itself a model normalises before it cuts; what a request asks for comes after.
            true if normalize.is_none() && dimensions.is_none() => Scaling::Whole,
            true => Scaling::Kept,
        };
        Ok(Finish::Vector { dimensions: kept, scaling })
    }
}
