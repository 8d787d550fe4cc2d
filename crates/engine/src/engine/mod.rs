//! The handle to running models, and how a request goes in.
//!
//! - [`Engine::embed`], like [`Engine::score`] beside it (`score`), hands a request to [`Core::submit`]: its model is found, it is checked, room is
//!   made for it in the queue, and its inputs are tokenised, here or on tokenising threads. Each becomes
//!   a job in the queue, from which a device's thread takes it (`worker::device`); what is left of the
//!   request is its `answer`.
//! - `running` is what an engine consists of besides, from its start to its end; `loading` has models come
//!   and go; `operate` is what an operator asks; `listing` shows how texts are tokenised.

mod listing;
mod loading;
mod operate;
mod running;
mod score;

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use rayon::ThreadPool;
use tokio::sync::Semaphore;
use vecmill_scheduler::{Job, JobTerms};

use crate::answer::{Accepted, Answer, Caller, Deliver, GiveUpOnDrop, JobQueue, Payload};
use crate::ask::{Ask, Finish, Texts};
use crate::early::EarlyRequests;
use crate::error::RequestError;
use crate::models::{Models, Open, Served};
use crate::request::{Reply, Request, Truncation};
use crate::tokenize::Tokens;
pub(crate) use running::{Loader, Parts, Running};

/// Inputs that are tokenised as one task: a large request reaches the device in parts, early.
const INPUTS_PER_TASK: usize = 32;

/// Bytes of a lone text up to which it is tokenised on the caller's thread: that takes less time
/// than waking another.
const TOKENIZED_AT_ONCE: usize = 512;

/// Running models. Clones share them; when the last one is dropped, it
/// shuts down.
#[derive(Clone)]
pub struct Engine {
    running: Arc<Running>,
}

/// What requests go through on their way to the queue.
pub(crate) struct Core {
    pub(crate) models: Models,
    pub(crate) tokenizers: ThreadPool,
    /// A place for each list of tokens that may be made or held at once.
    listings: Arc<Semaphore>,
    pub(crate) queue: Arc<JobQueue>,
    early: Arc<EarlyRequests>,
}

/// How a request's inputs become jobs.
#[derive(Clone)]
struct Tokenize {
    model: Arc<Served>,
    prompt: Arc<str>,
    truncation: Truncation,
    terms: JobTerms,
    queue: Arc<JobQueue>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("info", self.info()).finish_non_exhaustive()
    }
}

impl Engine {
    /// Embeds the inputs of a request. Work starts at the call, not at the first poll; dropping the
    /// future gives up what has not reached a device. Runs on any async runtime.
    ///
    /// # Errors
    /// [`RequestError`]; its `fault` tells whose it is.
    pub fn embed(
        &self,
        request: Request,
    ) -> impl Future<Output = Result<Reply, RequestError>> + Send + 'static {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let deliver = Box::new(move |result, _: Option<_>| {
            let _ = sender.send(result); // the caller may have gone away
        });
        let caller = GiveUpOnDrop(self.running.core.submit(request, deliver));
        async move {
            let _caller = caller;
            receiver.await.unwrap_or(Err(RequestError::Lost))
        }
    }

    /// The vector of one text, with the model's own settings for all else: an [`embed`](Self::embed) for
    /// when nothing more is asked.
    ///
    /// ```no_run
    /// # async fn one(engine: vecmill_engine::Engine) -> Result<(), vecmill_engine::RequestError> {
    /// let vector: Vec<f32> = engine.embed_text("a quick brown fox").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`embed`](Self::embed).
    pub fn embed_text(
        &self,
        text: &str,
    ) -> impl Future<Output = Result<Vec<f32>, RequestError>> + Send + 'static {
        let reply = self.embed(Request::new([text]));
        async move {
            let embedding = reply.await?.embeddings.pop();
            embedding.map(|embedding| embedding.vector).ok_or(RequestError::Lost)
        }
    }

    /// As [`embed`](Self::embed), but blocks this thread: not for use inside an async runtime.
    ///
    /// # Errors
    /// [`RequestError`]; its `fault` tells whose it is.
    pub fn embed_blocking(&self, request: Request) -> Result<Reply, RequestError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let deliver = Box::new(move |result, _: Option<_>| {
            let _ = sender.send(result);
        });
        self.running.core.submit(request, deliver);
        receiver.recv().unwrap_or(Err(RequestError::Lost))
    }
}

impl Core {
    pub(crate) fn new(
        models: Models,
        tokenizers: ThreadPool,
        queue: Arc<JobQueue>,
        early: EarlyRequests,
    ) -> Self {
        let listings = Arc::new(Semaphore::new(tokenizers.current_num_threads()));
        Self { models, tokenizers, listings, queue, early: Arc::new(early) }
    }

    /// Checks a request, makes room for it and starts tokenising. `deliver` gets its vectors or the
    /// error, whatever happens.
    pub(crate) fn submit(&self, request: impl Into<Ask>, deliver: Deliver) -> Caller {
        let ask = request.into();
        let answer = Answer::new(&self.queue, deliver);
        let caller = answer.caller();
        match self.models.open(ask.model.as_deref()) {
            Ok(open) => self.start(open, ask, answer),
            Err(RequestError::ModelLoading { name }) => self.wait_for_model(&name, ask, answer),
            Err(error) => answer.send(Err(error)),
        }
        caller
    }

    /// Has a request wait for a model that is being loaded.
    fn wait_for_model(&self, name: &str, ask: Ask, answer: Answer) {
        self.early.keep(name.to_owned(), ask, answer);
        // It may have come, or failed to, a moment ago.
        if !self.models.is_loading(name) {
            self.start_early(name);
        }
    }

    /// Starts what has waited for a model, now that it is there, or will not be.
    fn start_early(&self, model: &str) {
        for (ask, answer) in self.early.take(model) {
            match self.models.open(ask.model.as_deref()) {
                Ok(open) => self.start(open, ask, answer),
                Err(error) => answer.send(Err(error)),
            }
        }
    }

    /// The same, of a model that may not be ready for others yet.
    fn start(&self, open: Open, ask: Ask, mut answer: Answer) {
        let model = Arc::clone(&open);
        answer.keep_model(open);
        match self.accept(model, &ask, &mut answer) {
            Ok((finish, how)) => {
                let accepted = Accepted::new(ask.texts.len(), finish, ask.keep, answer);
                self.tokenize_all(ask.texts, &how, &accepted);
            }
            Err(error) => answer.send(Err(error)),
        }
    }

    /// Checks a request and makes room for it.
    fn accept(
        &self,
        model: Arc<Served>,
        ask: &Ask,
        answer: &mut Answer,
    ) -> Result<(Finish, Tokenize), RequestError> {
        let finish = ask.check(&model)?;
        let prompt = model.prompt(&ask.prompt)?;
        let deadline = ask.timeout.and_then(|timeout| answer.asked().checked_add(timeout));
        let terms = self.queue.terms(ask.priority, deadline);
        self.queue.admit(model.class, ask.texts.len(), terms)?;
        answer.has_room(ask.texts.len());
        let (truncation, queue) = (ask.truncation, Arc::clone(&self.queue));
        Ok((finish, Tokenize { model, prompt, truncation, terms, queue }))
    }

    /// Tokenises inputs, at once or in tasks of some.
    fn tokenize_all(&self, inputs: Vec<Texts>, how: &Tokenize, request: &Arc<Accepted>) {
        let at_once = match inputs.as_slice() {
            [texts] => texts.bytes().is_none_or(|bytes| bytes <= TOKENIZED_AT_ONCE),
            inputs => inputs.iter().all(|texts| texts.bytes().is_none()),
        };
        let tasks = inputs.len().div_ceil(INPUTS_PER_TASK);
        let mut rest = inputs.into_iter().enumerate();
        if at_once {
            return how.run(rest.collect(), request);
        }
        for _ in 0..tasks {
            let part: Vec<(usize, Texts)> = rest.by_ref().take(INPUTS_PER_TASK).collect();
            let (request, how) = (Arc::clone(request), how.clone());
            self.tokenizers.spawn(move || how.run(part, &request));
        }
    }
}

impl Tokenize {
    /// Tokenises and queues some of a request's inputs. Does not panic, which would end the process
    /// on a tokenising thread: whatever does so on the way fails this request alone.
    fn run(&self, inputs: Vec<(usize, Texts)>, request: &Arc<Accepted>) {
        let work = AssertUnwindSafe(|| {
            if !request.wanted() {
                return Ok(());
            }
            let started = Instant::now();
            let tokenize = |(index, input)| Ok((index, self.caught(index, input)?));
            let tokens = inputs.into_iter().map(tokenize).collect::<Result<Vec<_>, _>>()?;
            self.queue.metrics.tokenization.observe(started.elapsed().as_secs_f64());
            request.tokenized();
            self.push(tokens, request);
            Ok(())
        });
        match catch_unwind(work) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => request.fail(error),
            Err(_) => request.fail(RequestError::Lost),
        }
    }

    fn push(&self, inputs: Vec<(usize, Tokens)>, request: &Arc<Accepted>) {
        let queued = Instant::now();
        let job = |(index, tokens): (usize, Tokens)| {
            let length = tokens.ids.len();
            Job::new(length, Payload { index, tokens, queued, request: Arc::clone(request) })
        };
        self.queue.push(self.model.class, self.terms, inputs.into_iter().map(job));
    }

    /// The tokens of an input. A tokenizer's regular expressions are not ours: they may panic.
    fn caught(&self, index: usize, input: Texts) -> Result<Tokens, RequestError> {
        let tokens = catch_unwind(AssertUnwindSafe(|| self.tokens(index, input)));
        tokens.unwrap_or_else(|_| {
            Err(RequestError::Tokenizer { index, reason: "the tokenizer panicked".into() })
        })
    }

    fn tokens(&self, index: usize, input: Texts) -> Result<Tokens, RequestError> {
        let (tokenizer, prompt, truncation) =
            (&self.model.tokenizer, &self.prompt, self.truncation);
        let tokens = match input {
            Texts::Tokens(ids) => tokenizer.limit(index, ids, truncation)?,
            Texts::One(text) if prompt.is_empty() => tokenizer.encode(index, &text, truncation)?,
            Texts::One(text) => tokenizer.encode(index, &format!("{prompt}{text}"), truncation)?,
            Texts::Pair(side, second) => {
                tokenizer.encode_pair(index, (&side, &second), truncation)?
            }
        };
        // Only possible with a tokenizer that adds nothing and drops what it doesn't know.
        if tokens.ids.is_empty() {
            return Err(RequestError::EmptyInput { index });
        }
        // Only possible where the tokenizer's file has tokens that the weights know nothing of.
        let rows = self.model.limits.vocabulary;
        if let Some(&token) = tokens.ids.iter().find(|&&token| token as usize >= rows) {
            return Err(RequestError::NoEmbedding { index, token, rows });
        }
        Ok(tokens)
    }
}
