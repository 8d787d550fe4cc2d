//! A request between its acceptance and its answer.
//!
//! - [`Answer`] is the right to answer a request, once. It holds the request's room in the queue and
//!   is where it is counted; [`Answer::give`] is the only place that a reply leaves from.
//! - [`Accepted`] is a request's inputs on their way: each of their jobs holds it, and it holds the
//!   answer.
//! - [`Payload`] is one of those inputs while it waits for a device, in the [`JobQueue`].
//! - [`Caller`] is all that the caller has of it: the right to give the request up.
//!
//! The choice behind it: the right to answer belongs to the work alone. Whoever lets go of the last of
//! it, by a panic or a defect, so answers the request, and no caller can keep that from happening.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::ask::Finish;
use crate::error::RequestError;
use crate::experiment::Turn;
use crate::info::Info;
use crate::models::Open;
use crate::queue::{Queue, Waiting};
use crate::request::{Embedding, Keep, Reply, Timings};
use crate::tokenize::Tokens;

/// Where the inputs of accepted requests wait.
pub(crate) type JobQueue = Queue<Payload>;

/// Takes a request's answer to its caller, with what there is to know of the model that gave it.
pub(crate) type Deliver = Box<dyn FnOnce(Result<Reply, RequestError>, Option<Arc<Info>>) + Send>;

/// The right to answer a request, once. Let go of without an answer, it says that the request was
/// lost.
pub(crate) struct Answer {
    /// Not held, because what waits in it holds this.
    queue: Weak<JobQueue>,
    asked: Instant,
    /// Whose turn it was, if policies take turns.
    turn: Option<Turn>,
    /// Inputs that it has room for in the queue.
    room: usize,
    /// The model, which stays at least until then.
    model: Option<Open>,
    given_up: Arc<AtomicBool>,
    /// Gone once the answer is given.
    deliver: Option<Deliver>,
}

impl Answer {
    /// To a request that was asked for now.
    pub(crate) fn new(queue: &Arc<JobQueue>, deliver: Deliver) -> Self {
        Self {
            queue: Arc::downgrade(queue),
            asked: Instant::now(),
            turn: queue.metrics.turn(),
            room: 0,
            model: None,
            given_up: Arc::default(),
            deliver: Some(deliver),
        }
    }

    /// The caller's side.
    pub(crate) fn caller(&self) -> Caller {
        Caller(Arc::clone(&self.given_up))
    }

    /// When it was asked for.
    pub(crate) fn asked(&self) -> Instant {
        self.asked
    }

    /// Keeps its model until the answer is given.
    pub(crate) fn keep_model(&mut self, model: Open) {
        self.model = Some(model);
    }

    /// Has room in the queue for `inputs` until the answer is given.
    pub(crate) fn has_room(&mut self, inputs: usize) {
        self.room = inputs;
    }

    /// Answers.
    pub(crate) fn send(mut self, result: Result<Reply, RequestError>) {
        self.give(result);
    }

    /// Makes room for other requests, counts this one, lets its model go and tells its caller, in this
    /// order: whoever has heard an answer can ask again, and finds it in the metrics.
    fn give(&mut self, result: Result<Reply, RequestError>) {
        let Some(deliver) = self.deliver.take() else { return };
        if let Some(queue) = self.queue.upgrade() {
            queue.release(self.room);
            let model = self.model_name();
            queue.metrics.answered(model, self.asked.elapsed(), self.turn, &result);
        }
        let info = self.model.take().map(|model| Arc::clone(&model.info));
        deliver(result, info);
    }

    /// The model's name; empty where there is none.
    fn model_name(&self) -> Arc<str> {
        self.model.as_ref().map_or_else(Arc::default, |model| Arc::clone(&model.name))
    }

    /// Whether its caller has gone.
    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let error = match self.queue.strong_count() {
            _ if self.is_given_up() => RequestError::GivenUp,
            0 => RequestError::Stopped,
            _ => RequestError::Lost,
        };
        self.give(Err(error));
    }
}

/// The caller's side of a request.
pub(crate) struct Caller(Arc<AtomicBool>);

impl Caller {
    /// What has not started need not be done.
    fn give_up(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Gives up on a request when the caller's future is dropped.
pub(crate) struct GiveUpOnDrop(pub(crate) Caller);

impl Drop for GiveUpOnDrop {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// One tokenised input of a request, which waits for a device.
pub(crate) struct Payload {
    pub(crate) index: usize,
    pub(crate) tokens: Tokens,
    pub(crate) queued: Instant,
    pub(crate) request: Arc<Accepted>,
}

impl Waiting for Payload {
    fn is_wanted(&self) -> bool {
        self.request.wanted()
    }

    fn refuse(&self, error: RequestError) {
        self.request.fail(error);
    }
}

/// A request that was accepted.
pub(crate) struct Accepted {
    /// The name of the model that it is for.
    pub(crate) model: Arc<str>,
    pub(crate) finish: Finish,
    asked: Instant,
    state: Mutex<State>,
    /// Goes with the last of the request's jobs.
    _keep: Keep,
}

struct State {
    embeddings: Vec<Option<Embedding>>,
    missing: usize,
    timings: Timings,
    /// Gone once it is given.
    answer: Option<Answer>,
}

/// One input's part in the answer.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) index: usize,
    pub(crate) embedding: Embedding,
    pub(crate) queue: Duration,
    pub(crate) inference: Duration,
}

impl Accepted {
    /// A request of so many inputs.
    pub(crate) fn new(inputs: usize, finish: Finish, keep: Keep, answer: Answer) -> Arc<Self> {
        let (model, asked) = (answer.model_name(), answer.asked);
        let state = State {
            embeddings: vec![None; inputs],
            missing: inputs,
            timings: Timings::default(),
            answer: Some(answer),
        };
        Arc::new(Self { model, finish, asked, state: Mutex::new(state), _keep: keep })
    }

    /// Whether an answer is still wanted.
    pub(crate) fn wanted(&self) -> bool {
        self.state().answer.as_ref().is_some_and(|answer| !answer.is_given_up())
    }

    /// Notes how long tokenising has taken so far.
    pub(crate) fn tokenized(&self) {
        let elapsed = self.asked.elapsed();
        let mut state = self.state();
        state.timings.tokenization = state.timings.tokenization.max(elapsed);
    }

    /// Adds one input's vector; with the last one the request is answered.
    pub(crate) fn resolve(&self, part: Part) {
        let mut state = self.state();
        let Some(slot @ None) = state.embeddings.get_mut(part.index) else { return };
        *slot = Some(part.embedding);
        state.missing -= 1;
        state.timings.queue = state.timings.queue.max(part.queue);
        state.timings.inference = state.timings.inference.max(part.inference);
        if state.missing == 0 {
            let answer = state.answer.take();
            let mut timings = state.timings;
            timings.total = self.asked.elapsed();
            let embeddings = std::mem::take(&mut state.embeddings).into_iter().flatten().collect();
            drop(state);
            if let Some(answer) = answer {
                answer.send(Ok(Reply { embeddings, timings }));
            }
        }
    }

    /// Answers with an error, unless the request is answered already.
    pub(crate) fn fail(&self, error: RequestError) {
        let answer = self.state().answer.take();
        if let Some(answer) = answer {
            answer.send(Err(error));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use vecmill_encoder::Scaling;

    /// A request whose engine is gone: nothing holds it but the test.
    fn accepted(inputs: usize) -> (Arc<Accepted>, Caller, mpsc::Receiver<Received>) {
        let (sender, receiver) = mpsc::channel();
        let answer = Answer {
            queue: Weak::new(),
            asked: Instant::now(),
            turn: None,
            room: 0,
            model: None,
            given_up: Arc::default(),
            deliver: Some(Box::new(move |result, _| sender.send(result).unwrap())),
        };
        let caller = answer.caller();
        let finish = Finish::Vector { dimensions: 2, scaling: Scaling::AsIs };
        (Accepted::new(inputs, finish, Keep::default(), answer), caller, receiver)
    }

    type Received = Result<Reply, RequestError>;

    fn part(index: usize, value: f32) -> Part {
        let embedding = Embedding { vector: vec![value], tokens: 3, truncated: false };
        Part { index, embedding, queue: Duration::ZERO, inference: Duration::ZERO }
    }

    #[test]
    fn parts_in_any_order_are_answered_once_in_order() {
        let (request, _, receiver) = accepted(3);
        for index in [2u8, 0, 0, 1] {
            assert!(receiver.try_recv().is_err());
            request.resolve(part(usize::from(index), f32::from(index)));
        }
        let reply = receiver.try_recv().unwrap().unwrap();
        let values: Vec<f32> = reply.embeddings.iter().map(|e| e.vector[0]).collect();
        assert_eq!((values, reply.tokens()), (vec![0.0, 1.0, 2.0], 9));
        assert!(!request.wanted());
        drop(request);
        assert!(receiver.try_recv().is_err(), "a second answer");
    }

    #[test]
    fn the_first_error_is_the_answer() {
        let (request, _, receiver) = accepted(2);
        request.fail(RequestError::EmptyInput { index: 1 });
        request.resolve(part(0, 0.0));
        request.fail(RequestError::NoInputs);
        assert_eq!(receiver.try_recv().unwrap(), Err(RequestError::EmptyInput { index: 1 }));
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn a_request_that_its_work_forgot_is_answered_although_its_caller_waits() {
        let (request, caller, receiver) = accepted(2);
        request.resolve(part(0, 0.0));
        drop(request);
        assert_eq!(receiver.try_recv().unwrap(), Err(RequestError::Stopped));
        drop(caller);
    }

    #[test]
    fn a_request_that_its_caller_gave_up_is_not_wanted() {
        let (request, caller, receiver) = accepted(2);
        assert!(request.wanted());
        drop(GiveUpOnDrop(caller));
        assert!(!request.wanted());
        drop(request);
        assert_eq!(receiver.try_recv().unwrap(), Err(RequestError::GivenUp));
    }
}
