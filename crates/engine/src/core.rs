//! The middle of an engine: accepts requests, tokenises them and holds the queue that the devices'
//! threads draw from.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use vecmill_encoder::{Limits, Practised, model::Pipeline};
use vecmill_scheduler::{Full, Job};

use crate::dispatch::{Dispatch, Failed};
use crate::error::RequestError;
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
    dispatch: Mutex<Dispatch>,
    changed: Condvar,
}

/// One tokenised input of a request.
pub(crate) struct Work {
    pub(crate) index: usize,
    pub(crate) tokens: Tokens,
    pub(crate) queued: Instant,
    pub(crate) pending: Arc<Pending>,
    /// Whether a device has failed at it.
    pub(crate) failed_before: bool,
}

/// The parts of a [`Core`] that its builder chooses.
pub(crate) struct Parts {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) tokenizers: ThreadPool,
    pub(crate) pipeline: Pipeline,
    pub(crate) default_prompt: Prompt,
    pub(crate) limits: Limits,
    /// Of each device, the most tokens of a batch.
    pub(crate) batch_tokens: Vec<usize>,
    /// Of each device, how long batches took before the start.
    pub(crate) practised: Vec<Vec<Practised>>,
    pub(crate) queue_capacity: usize,
}

impl Core {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let mut dispatch = Dispatch::new(parts.queue_capacity, &parts.batch_tokens);
        for (device, practised) in parts.practised.iter().enumerate() {
            for batch in practised {
                dispatch.ran(device, batch.shape.tokens, batch.took);
            }
        }
        Arc::new(Self {
            tokenizer: parts.tokenizer,
            tokenizers: parts.tokenizers,
            pipeline: parts.pipeline,
            default_prompt: parts.default_prompt,
            limits: parts.limits,
            metrics: Metrics::new(),
            dispatch: Mutex::new(dispatch),
            changed: Condvar::new(),
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
        if let Err(error) = self.admit(inputs) {
            answer(Err(error));
            return None;
        }
        let pending = Pending::new(inputs, finish, self.releasing(inputs, answer));
        if let [Input::Text(text)] = request.inputs.as_slice()
            && text.len() <= TOKENIZED_AT_ONCE
        {
            let inputs = request.inputs.into_iter().enumerate().collect();
            self.tokenize(inputs, &prompt, request.truncation, &pending);
            return Some(pending);
        }
        let mut rest = request.inputs.into_iter().enumerate();
        for _ in (0..inputs).step_by(INPUTS_PER_TASK) {
            let part: Vec<(usize, Input)> = rest.by_ref().take(INPUTS_PER_TASK).collect();
            let (core, pending) = (Arc::clone(self), Arc::clone(&pending));
            let (prompt, truncation) = (Arc::clone(&prompt), request.truncation);
            self.tokenizers.spawn(move || core.tokenize(part, &prompt, truncation, &pending));
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

    fn admit(&self, inputs: usize) -> Result<(), RequestError> {
        let mut dispatch = self.dispatch();
        if dispatch.closed {
            return Err(RequestError::Stopped);
        }
        dispatch.admit(inputs).map_err(|Full { admitted, .. }| RequestError::Busy {
            waiting: admitted,
            retry_after: dispatch.backlog_time(),
        })
    }

    /// When what waits now will probably be done.
    pub(crate) fn retry_after(&self) -> Duration {
        self.dispatch().backlog_time()
    }

    /// An answer that makes room for other requests when it is given, before its caller hears it.
    fn releasing(self: &Arc<Self>, inputs: usize, answer: Answer) -> Answer {
        let core = Arc::clone(self);
        Box::new(move |result| {
            core.dispatch().release(inputs);
            core.changed.notify_all();
            answer(result);
        })
    }

    /// Runs on a tokenising thread.
    fn tokenize(
        &self,
        inputs: Vec<(usize, Input)>,
        prompt: &str,
        truncation: Truncation,
        pending: &Arc<Pending>,
    ) {
        if !pending.wanted() {
            return;
        }
        let started = Instant::now();
        // A tokenizer's regular expressions are not ours: if one panics, the request fails alone.
        let result = catch_unwind(AssertUnwindSafe(|| {
            let tokenize =
                |(index, input)| Ok((index, self.tokens(index, input, prompt, truncation)?));
            inputs.into_iter().map(tokenize).collect::<Result<Vec<_>, RequestError>>()
        }));
        match result {
            Ok(Ok(tokens)) => {
                self.metrics.tokenization.observe(started.elapsed().as_secs_f64());
                pending.tokenized();
                self.push(tokens, pending);
            }
            Ok(Err(error)) => pending.fail(error),
            Err(_) => pending.fail(RequestError::Tokenizer {
                index: 0,
                reason: "the tokenizer panicked".into(),
            }),
        }
    }

    fn tokens(
        &self,
        index: usize,
        input: Input,
        prompt: &str,
        truncation: Truncation,
    ) -> Result<Tokens, RequestError> {
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

    fn push(&self, inputs: Vec<(usize, Tokens)>, pending: &Arc<Pending>) {
        let queued = Instant::now();
        let jobs = inputs.into_iter().map(|(index, tokens)| {
            let pending = Arc::clone(pending);
            let length = tokens.ids.len();
            Job::new(length, Work { index, tokens, queued, pending, failed_before: false })
        });
        self.dispatch().push(jobs);
        self.changed.notify_all();
    }

    /// Waits for work and takes a batch for a device, of as many tokens as its `warm` memory holds
    /// where that costs nothing; `None` when the device's work is over.
    pub(crate) fn next_batch(
        &self,
        device: usize,
        warm: impl Fn() -> usize,
    ) -> Option<Vec<Job<Work>>> {
        let mut unwanted = Vec::new();
        let mut dispatch = self.dispatch();
        loop {
            let over = dispatch.is_over(device);
            let batch = if over {
                Vec::new()
            } else {
                dispatch.next_batch(device, &warm, |work| {
                    let wanted = work.pending.wanted();
                    if !wanted {
                        unwanted.push(Arc::clone(&work.pending));
                    }
                    wanted
                })
            };
            if !batch.is_empty() || over || !unwanted.is_empty() {
                drop(dispatch);
                unwanted.clear(); // whoever is dropped unanswered releases its room, which takes the lock
                if !batch.is_empty() {
                    return Some(batch);
                }
                if over {
                    return None;
                }
                dispatch = self.dispatch();
                continue;
            }
            dispatch = self.changed.wait(dispatch).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Learns from a batch that a device has run.
    pub(crate) fn ran(&self, device: usize, tokens: usize, took: Duration) {
        self.dispatch().ran(device, tokens, took);
    }

    /// Has a batch that a device failed at tried once more, or says that it has been.
    pub(crate) fn failed(&self, device: usize, jobs: Vec<Job<Work>>) -> Failed {
        let failed = self.dispatch().failed(device, jobs);
        self.changed.notify_all();
        failed
    }

    /// Refuses new requests from now on.
    pub(crate) fn close(&self) {
        self.dispatch().closed = true;
        self.changed.notify_all();
    }

    /// Inputs and tokens that wait for a device.
    pub(crate) fn backlog(&self) -> (usize, usize) {
        self.dispatch().backlog()
    }

    fn dispatch(&self) -> MutexGuard<'_, Dispatch> {
        self.dispatch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
