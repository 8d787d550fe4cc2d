//! The middle of an engine: accepts requests, tokenises them and holds the queue that the devices'
//! threads draw from.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use rayon::ThreadPool;
use vecmill_encoder::{Limits, model::Pipeline};
use vecmill_scheduler::{Job, Terms};

use crate::dispatch::Dispatch;
use crate::error::RequestError;
use crate::experiment::Experiment;
use crate::metrics::Metrics;
use crate::pending::{Answer, Finish, Pending};
use crate::request::{Input, Prompt, Request, Truncation};
use crate::tokenizer::{Tokenizer, Tokens};

/// Inputs that are tokenised as one task: a large request reaches the device in parts, early.
const INPUTS_PER_TASK: usize = 32;

/// Bytes of a lone text up to which it is tokenised on the caller's thread: that takes less time
/// than waking another.
const TOKENIZED_AT_ONCE: usize = 512;

/// Shared by the engine's handles, its tokenising threads and its device workers.
pub(crate) struct Core {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) tokenizers: ThreadPool,
    pub(crate) pipeline: Pipeline,
    pub(crate) default_prompt: Prompt,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    pub(crate) dispatch: Dispatch,
}

/// One tokenised input of a request.
pub(crate) struct Work {
    pub(crate) index: usize,
    pub(crate) tokens: Tokens,
    pub(crate) queued: Instant,
    pub(crate) pending: Arc<Pending>,
}

/// How a request's inputs become tokens, and on which terms these wait.
#[derive(Clone)]
struct Tokenize {
    prompt: Arc<str>,
    truncation: Truncation,
    terms: Terms,
}

/// The parts of a [`Core`] that its builder chooses.
pub(crate) struct Parts {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) tokenizers: ThreadPool,
    pub(crate) pipeline: Pipeline,
    pub(crate) default_prompt: Prompt,
    pub(crate) limits: Limits,
    pub(crate) dispatch: Dispatch,
    pub(crate) experiment: Option<Arc<Experiment>>,
}

impl Core {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            tokenizer: parts.tokenizer,
            tokenizers: parts.tokenizers,
            pipeline: parts.pipeline,
            default_prompt: parts.default_prompt,
            limits: parts.limits,
            metrics: Metrics::new(parts.experiment),
            dispatch: parts.dispatch,
        })
    }

    /// Checks a request, makes room for it and starts tokenising. `answer` gets its vectors or the
    /// error, whatever happens; `None` means that it has the error already.
    pub(crate) fn submit(
        self: &Arc<Self>,
        request: Request,
        answer: Answer,
    ) -> Option<Arc<Pending>> {
        let answer = self.metrics.counting(answer);
        let checked = self.check(&request).and_then(|finish| {
            let prompt = self.prompt(&request.prompt)?;
            Ok((finish, prompt))
        });
        let (finish, prompt) = match checked {
            Ok(checked) => checked,
            Err(error) => {
                answer(Err(error));
                return None;
            }
        };
        let inputs = request.inputs.len();
        let deadline = request.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let terms = self.dispatch.terms(request.priority, deadline);
        if let Err(error) = self.dispatch.admit(inputs, terms) {
            answer(Err(error));
            return None;
        }
        let pending = Pending::new(inputs, finish, self.releasing(inputs, answer));
        let how = Tokenize { prompt, truncation: request.truncation, terms };
        if let [Input::Text(text)] = request.inputs.as_slice()
            && text.len() <= TOKENIZED_AT_ONCE
        {
            let inputs = request.inputs.into_iter().enumerate().collect();
            self.tokenize(inputs, &how, &pending);
            return Some(pending);
        }
        let mut rest = request.inputs.into_iter().enumerate();
        for _ in (0..inputs).step_by(INPUTS_PER_TASK) {
            let part: Vec<(usize, Input)> = rest.by_ref().take(INPUTS_PER_TASK).collect();
            let (core, pending) = (Arc::clone(self), Arc::clone(&pending));
            let how = how.clone();
            self.tokenizers.spawn(move || core.tokenize(part, &how, &pending));
        }
        Some(pending)
    }

    fn check(&self, request: &Request) -> Result<Finish, RequestError> {
        if request.inputs.is_empty() {
            return Err(RequestError::NoInputs);
        }
        let available = self.limits.dimensions;
        let dimensions = request.dimensions.unwrap_or(available);
        if dimensions == 0 || dimensions > available {
            return Err(RequestError::Dimensions { asked: dimensions, available });
        }
        let known = self.limits.vocabulary;
        for (index, input) in request.inputs.iter().enumerate() {
            let empty = match input {
                Input::Text(text) => text.is_empty(),
                Input::Tokens(tokens) => tokens.is_empty(),
            };
            if empty {
                return Err(RequestError::EmptyInput { index });
            }
            let Input::Tokens(tokens) = input else { continue };
            if let Some(&token) = tokens.iter().find(|&&token| token as usize >= known) {
                let last = u32::try_from(known - 1).unwrap_or(u32::MAX);
                return Err(RequestError::UnknownToken { index, token, last });
            }
        }
        let normalize = request.normalize.unwrap_or(self.pipeline.normalize);
        Ok(Finish { dimensions, normalize })
    }

    /// The text that goes in front of each input.
    pub(crate) fn prompt(&self, prompt: &Prompt) -> Result<Arc<str>, RequestError> {
        let prompt = match prompt {
            Prompt::Default => &self.default_prompt,
            other => other,
        };
        let named = |name: &String| {
            self.pipeline.prompts.get(name).map(String::as_str).ok_or_else(|| {
                let known = self.pipeline.prompts.keys().cloned().collect();
                RequestError::UnknownPrompt { name: name.clone(), known }
            })
        };
        let text = match prompt {
            Prompt::None => "",
            Prompt::Text(text) => text,
            Prompt::Named(name) => named(name)?,
            Prompt::Default => self.pipeline.default_prompt.as_ref().map_or(Ok(""), named)?,
        };
        if text.is_empty() || self.pipeline.pool_prompt {
            Ok(text.into())
        } else {
            Err(RequestError::PromptNotPooled)
        }
    }

    /// An answer that makes room for other requests when it is given, before its caller hears it.
    fn releasing(self: &Arc<Self>, inputs: usize, answer: Answer) -> Answer {
        let core = Arc::clone(self);
        Box::new(move |result| {
            core.dispatch.release(inputs);
            answer(result);
        })
    }

    /// Runs on a tokenising thread.
    fn tokenize(&self, inputs: Vec<(usize, Input)>, how: &Tokenize, pending: &Arc<Pending>) {
        if !pending.wanted() {
            return;
        }
        let started = Instant::now();
        // A tokenizer's regular expressions are not ours: if one panics, the request fails alone.
        let result = catch_unwind(AssertUnwindSafe(|| {
            let tokenize = |(index, input)| Ok((index, self.tokens(index, input, how)?));
            inputs.into_iter().map(tokenize).collect::<Result<Vec<_>, RequestError>>()
        }));
        match result {
            Ok(Ok(tokens)) => {
                self.metrics.tokenization.observe(started.elapsed().as_secs_f64());
                pending.tokenized();
                self.push(tokens, how.terms, pending);
            }
            Ok(Err(error)) => pending.fail(error),
            Err(_) => pending.fail(RequestError::Tokenizer {
                index: 0,
                reason: "the tokenizer panicked".into(),
            }),
        }
    }

    fn tokens(&self, index: usize, input: Input, how: &Tokenize) -> Result<Tokens, RequestError> {
        let (prompt, truncation) = (&how.prompt, how.truncation);
        let tokens = match input {
            Input::Tokens(ids) => self.tokenizer.limit(index, ids, truncation)?,
            Input::Text(text) if prompt.is_empty() => {
                self.tokenizer.encode(index, &text, truncation)?
            }
            Input::Text(text) => {
                self.tokenizer.encode(index, &format!("{prompt}{text}"), truncation)?
            }
        };
        // Only possible with a tokenizer that adds nothing and drops what it doesn't know.
        if tokens.ids.is_empty() {
            return Err(RequestError::EmptyInput { index });
        }
        Ok(tokens)
    }

    fn push(&self, inputs: Vec<(usize, Tokens)>, terms: Terms, pending: &Arc<Pending>) {
        let queued = Instant::now();
        let jobs = inputs.into_iter().map(|(index, tokens)| {
            let length = tokens.ids.len();
            Job::new(length, Work { index, tokens, queued, pending: Arc::clone(pending) })
        });
        self.dispatch.push(terms, jobs);
    }
}
