//! The middle of an engine: accepts requests, tokenises them and holds the queue that the devices'
//! threads draw from.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use rayon::ThreadPool;
use tokio::sync::{Semaphore, oneshot};
use vecmill_encoder::{Limits, Scaling};
use vecmill_model::Pipeline;
use vecmill_scheduler::{Job, Terms};

use crate::answer::{Accepted, Answer, Caller, Deliver, Finish};
use crate::dispatch::Dispatch;
use crate::error::RequestError;
use crate::experiment::Experiment;
use crate::metrics::Metrics;
use crate::request::{Input, Prompt, Request, TokenizeRequest, Truncation};
use crate::tokenize::{TOKENS_LIMIT, Tokenized, Tokenizer, Tokens};

/// Inputs that are tokenised as one task: a large request reaches the device in parts, early.
const INPUTS_PER_TASK: usize = 32;

/// Bytes of a lone text up to which it is tokenised on the caller's thread: that takes less time
/// than waking another.
const TOKENIZED_AT_ONCE: usize = 512;

/// Shared by the engine's handles, its tokenising threads and its device workers.
pub(crate) struct Core {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) tokenizers: ThreadPool,
    /// A place for each list of tokens that may be made or held at once.
    listings: Arc<Semaphore>,
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
    pub(crate) request: Arc<Accepted>,
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
            listings: Arc::new(Semaphore::new(parts.tokenizers.current_num_threads())),
            tokenizers: parts.tokenizers,
            pipeline: parts.pipeline,
            default_prompt: parts.default_prompt,
            limits: parts.limits,
            metrics: Metrics::new(parts.experiment),
            dispatch: parts.dispatch,
        })
    }

    /// Checks a request, makes room for it and starts tokenising. `deliver` gets its vectors or the
    /// error, whatever happens.
    pub(crate) fn submit(self: &Arc<Self>, request: Request, deliver: Deliver) -> Caller {
        let mut answer = Answer::new(self, deliver);
        let caller = answer.caller();
        match self.accept(&request, &mut answer) {
            Ok((finish, how)) => {
                let accepted = Accepted::new(request.inputs.len(), finish, request.keep, answer);
                self.tokenize_all(request.inputs, &how, &accepted);
            }
            Err(error) => answer.send(Err(error)),
        }
        caller
    }

    /// Checks a request and makes room for it.
    fn accept(
        &self,
        request: &Request,
        answer: &mut Answer,
    ) -> Result<(Finish, Tokenize), RequestError> {
        let finish = self.check(request)?;
        let prompt = self.prompt(&request.prompt)?;
        let deadline = request.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let terms = self.dispatch.terms(request.priority, deadline);
        answer.admit(self, request.inputs.len(), terms)?;
        Ok((finish, Tokenize { prompt, truncation: request.truncation, terms }))
    }

    fn check(&self, request: &Request) -> Result<Finish, RequestError> {
        if request.inputs.is_empty() {
            return Err(RequestError::NoInputs);
        }
        let row = self.limits.dimensions;
        let available = self.pipeline.truncate.map_or(row, |kept| kept.min(row));
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
        let scaling = match request.normalize.unwrap_or(self.pipeline.normalize) {
            false => Scaling::AsIs,
            // By itself a model normalises before it cuts; what a request asks for comes after.
            true if request.normalize.is_none() && request.dimensions.is_none() => Scaling::Whole,
            true => Scaling::Kept,
        };
        Ok(Finish { dimensions, scaling })
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

    /// Tokenises inputs, at once or in tasks of some.
    fn tokenize_all(self: &Arc<Self>, inputs: Vec<Input>, how: &Tokenize, request: &Arc<Accepted>) {
        let at_once = matches!(
            inputs.as_slice(),
            [Input::Text(text)] if text.len() <= TOKENIZED_AT_ONCE
        );
        let tasks = inputs.len().div_ceil(INPUTS_PER_TASK);
        let mut rest = inputs.into_iter().enumerate();
        if at_once {
            return self.tokenize(rest.collect(), how, request);
        }
        for _ in 0..tasks {
            let part: Vec<(usize, Input)> = rest.by_ref().take(INPUTS_PER_TASK).collect();
            let (core, request, how) = (Arc::clone(self), Arc::clone(request), how.clone());
            self.tokenizers.spawn(move || core.tokenize(part, &how, &request));
        }
    }

    /// Lists the tokens of texts on a tokenising thread. `answer` gets them or the error.
    pub(crate) fn list(
        self: &Arc<Self>,
        request: TokenizeRequest,
        answer: oneshot::Sender<Result<Tokenized, RequestError>>,
    ) {
        let started = self.prompt(&request.prompt).and_then(|prompt| {
            let places = self.tokenizers.current_num_threads();
            let busy = |_| RequestError::TokenizersBusy { places };
            Ok((prompt, Arc::clone(&self.listings).try_acquire_owned().map_err(busy)?))
        });
        let (prompt, place) = match started {
            Ok(started) => started,
            Err(error) => {
                let _ = answer.send(Err(error)); // the caller may have gone away
                return;
            }
        };
        let core = Arc::clone(self);
        self.tokenizers.spawn(move || {
            let wanted = || !answer.is_closed();
            let tokenizer = &core.tokenizer;
            // A panic on a tokenising thread would end the process.
            let list = || tokenizer.list_while(request, &prompt, TOKENS_LIMIT, wanted);
            let listed = catch_unwind(AssertUnwindSafe(list)).unwrap_or(Err(RequestError::Lost));
            let _ = answer.send(listed.map(|listed| listed.holding(place)));
        });
    }

    /// Tokenises and queues some of a request's inputs. Does not panic, which would end the process
    /// on a tokenising thread: whatever does so on the way fails this request alone.
    fn tokenize(&self, inputs: Vec<(usize, Input)>, how: &Tokenize, request: &Arc<Accepted>) {
        let work = AssertUnwindSafe(|| {
            if !request.wanted() {
                return Ok(());
            }
            let started = Instant::now();
            let tokenize = |(index, input)| Ok((index, self.caught(index, input, how)?));
            let tokens = inputs.into_iter().map(tokenize).collect::<Result<Vec<_>, _>>()?;
            self.metrics.tokenization.observe(started.elapsed().as_secs_f64());
            request.tokenized();
            self.push(tokens, how.terms, request);
            Ok(())
        });
        match catch_unwind(work) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => request.fail(error),
            Err(_) => request.fail(RequestError::Lost),
        }
    }

    /// The tokens of an input. A tokenizer's regular expressions are not ours: they may panic.
    fn caught(&self, index: usize, input: Input, how: &Tokenize) -> Result<Tokens, RequestError> {
        let tokens = catch_unwind(AssertUnwindSafe(|| self.tokens(index, input, how)));
        tokens.unwrap_or_else(|_| {
            Err(RequestError::Tokenizer { index, reason: "the tokenizer panicked".into() })
        })
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
        // Only possible where the tokenizer's file has tokens that the weights know nothing of.
        let rows = self.limits.vocabulary;
        if let Some(&token) = tokens.ids.iter().find(|&&token| token as usize >= rows) {
            return Err(RequestError::NoEmbedding { index, token, rows });
        }
        Ok(tokens)
    }

    fn push(&self, inputs: Vec<(usize, Tokens)>, terms: Terms, request: &Arc<Accepted>) {
        let queued = Instant::now();
        let job = |(index, tokens): (usize, Tokens)| {
            let length = tokens.ids.len();
            Job::new(length, Work { index, tokens, queued, request: Arc::clone(request) })
        };
        self.dispatch.push(terms, inputs.into_iter().map(job));
    }
}
