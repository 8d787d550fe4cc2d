//! The middle of an engine: accepts requests, tokenises them and holds the queue that the devices'
//! threads draw from.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use rayon::ThreadPool;
use tokio::sync::{Semaphore, oneshot};
use vecmill_encoder::Scaling;
use vecmill_scheduler::{Job, JobTerms};

use crate::answer::{Accepted, Answer, Caller, Deliver, Finish};
use crate::error::RequestError;
use crate::experiment::Experiment;
use crate::metrics::Metrics;
use crate::models::{Models, Open, Served};
use crate::queue::Queue;
use crate::request::{Input, Request, TokenizeRequest, Truncation};
use crate::tokenize::{TOKENS_LIMIT, Tokenized, Tokens};

/// Inputs that are tokenised as one task: a large request reaches the device in parts, early.
const INPUTS_PER_TASK: usize = 32;

/// Bytes of a lone text up to which it is tokenised on the caller's thread: that takes less time
/// than waking another.
const TOKENIZED_AT_ONCE: usize = 512;

/// Shared by the engine's handles, its tokenising threads and its device workers.
pub(crate) struct Core {
    pub(crate) models: Models,
    pub(crate) tokenizers: ThreadPool,
    /// A place for each list of tokens that may be made or held at once.
    listings: Arc<Semaphore>,
    pub(crate) metrics: Metrics,
    pub(crate) queue: Queue,
}

/// One tokenised input of a request.
pub(crate) struct Payload {
    pub(crate) index: usize,
    pub(crate) tokens: Tokens,
    pub(crate) queued: Instant,
    pub(crate) request: Arc<Accepted>,
}

/// How a request's inputs become tokens, and on which terms these wait.
#[derive(Clone)]
struct Tokenize {
    model: Arc<Served>,
    prompt: Arc<str>,
    truncation: Truncation,
    terms: JobTerms,
}

/// The parts of a [`Core`] that its builder chooses.
pub(crate) struct Parts {
    pub(crate) models: Models,
    pub(crate) tokenizers: ThreadPool,
    pub(crate) queue: Queue,
    pub(crate) experiment: Option<Arc<Experiment>>,
}

impl Core {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            models: parts.models,
            listings: Arc::new(Semaphore::new(parts.tokenizers.current_num_threads())),
            tokenizers: parts.tokenizers,
            metrics: Metrics::new(parts.experiment),
            queue: parts.queue,
        })
    }

    /// Checks a request, makes room for it and starts tokenising. `deliver` gets its vectors or the
    /// error, whatever happens.
    pub(crate) fn submit(self: &Arc<Self>, request: Request, deliver: Deliver) -> Caller {
        let open = self.models.open(request.model.as_deref());
        self.submit_to(open, request, deliver)
    }

    /// The same, of a model that may not be ready for others yet.
    pub(crate) fn submit_to(
        self: &Arc<Self>,
        open: Result<Open, RequestError>,
        request: Request,
        deliver: Deliver,
    ) -> Caller {
        let mut answer = Answer::new(self, deliver);
        let caller = answer.caller();
        match open.and_then(|open| self.accept(open, &request, &mut answer)) {
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
        open: Open,
        request: &Request,
        answer: &mut Answer,
    ) -> Result<(Finish, Tokenize), RequestError> {
        let model = Arc::clone(&open);
        let finish = check(&model, request)?;
        let prompt = model.prompt(&request.prompt)?;
        let deadline = request.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let terms = self.queue.terms(request.priority, deadline);
        answer.admit(self, open, request.inputs.len(), terms)?;
        Ok((finish, Tokenize { model, prompt, truncation: request.truncation, terms }))
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
        let started = self.models.open(None).and_then(|model| {
            let prompt = model.prompt(&request.prompt)?;
            let places = self.tokenizers.current_num_threads();
            let busy = |_| RequestError::TokenizersBusy { places };
            Ok((model, prompt, Arc::clone(&self.listings).try_acquire_owned().map_err(busy)?))
        });
        let (model, prompt, place) = match started {
            Ok(started) => started,
            Err(error) => {
                let _ = answer.send(Err(error)); // the caller may have gone away
                return;
            }
        };
        self.tokenizers.spawn(move || {
            let wanted = || !answer.is_closed();
            let tokenizer = &model.tokenizer;
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
            let tokenize = |(index, input)| Ok((index, caught(index, input, how)?));
            let tokens = inputs.into_iter().map(tokenize).collect::<Result<Vec<_>, _>>()?;
            self.metrics.tokenization.observe(started.elapsed().as_secs_f64());
            request.tokenized();
            self.push(tokens, how, request);
            Ok(())
        });
        match catch_unwind(work) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => request.fail(error),
            Err(_) => request.fail(RequestError::Lost),
        }
    }

    fn push(&self, inputs: Vec<(usize, Tokens)>, how: &Tokenize, request: &Arc<Accepted>) {
        let queued = Instant::now();
        let job = |(index, tokens): (usize, Tokens)| {
            let length = tokens.ids.len();
            Job::new(length, Payload { index, tokens, queued, request: Arc::clone(request) })
        };
        self.queue.push(how.model.class, how.terms, inputs.into_iter().map(job));
    }
}

/// What a request wants of its vectors, if it is one that the model can answer.
fn check(model: &Served, request: &Request) -> Result<Finish, RequestError> {
    if request.inputs.is_empty() {
        return Err(RequestError::NoInputs);
    }
    let row = model.limits.dimensions;
    let available = model.pipeline.truncate.map_or(row, |kept| kept.min(row));
    let dimensions = request.dimensions.unwrap_or(available);
    if dimensions == 0 || dimensions > available {
        return Err(RequestError::Dimensions { asked: dimensions, available });
    }
    let known = model.limits.vocabulary;
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
    let scaling = match request.normalize.unwrap_or(model.pipeline.normalize) {
        false => Scaling::AsIs,
        // By itself a model normalises before it cuts; what a request asks for comes after.
        true if request.normalize.is_none() && request.dimensions.is_none() => Scaling::Whole,
        true => Scaling::Kept,
    };
    Ok(Finish { dimensions, scaling })
}

/// The tokens of an input. A tokenizer's regular expressions are not ours: they may panic.
fn caught(index: usize, input: Input, how: &Tokenize) -> Result<Tokens, RequestError> {
    let tokens = catch_unwind(AssertUnwindSafe(|| tokens(index, input, how)));
    tokens.unwrap_or_else(|_| {
        Err(RequestError::Tokenizer { index, reason: "the tokenizer panicked".into() })
    })
}

fn tokens(index: usize, input: Input, how: &Tokenize) -> Result<Tokens, RequestError> {
    let (prompt, truncation) = (&how.prompt, how.truncation);
    let tokens = match input {
        Input::Tokens(ids) => how.model.tokenizer.limit(index, ids, truncation)?,
        Input::Text(text) if prompt.is_empty() => {
            how.model.tokenizer.encode(index, &text, truncation)?
        }
        Input::Text(text) => {
            how.model.tokenizer.encode(index, &format!("{prompt}{text}"), truncation)?
        }
    };
    // Only possible with a tokenizer that adds nothing and drops what it doesn't know.
    if tokens.ids.is_empty() {
        return Err(RequestError::EmptyInput { index });
    }
    // Only possible where the tokenizer's file has tokens that the weights know nothing of.
    let rows = how.model.limits.vocabulary;
    if let Some(&token) = tokens.ids.iter().find(|&&token| token as usize >= rows) {
        return Err(RequestError::NoEmbedding { index, token, rows });
    }
    Ok(tokens)
}
