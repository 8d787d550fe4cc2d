//! A request between its acceptance and its answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::RequestError;
use crate::request::{Embedding, Reply, Timings};

/// Gets a request's answer, once.
pub(crate) type Answer = Box<dyn FnOnce(Result<Reply, RequestError>) + Send>;

/// What a request wants of its vectors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finish {
    pub(crate) dimensions: usize,
    pub(crate) normalize: bool,
}

/// A request that was accepted. Every input's job holds it; whoever lets go of it last without an
/// answer having been given answers that the engine stopped, so that no caller waits for ever.
pub(crate) struct Pending {
    pub(crate) finish: Finish,
    accepted: Instant,
    given_up: AtomicBool,
    state: Mutex<State>,
}

struct State {
    embeddings: Vec<Option<Embedding>>,
    missing: usize,
    timings: Timings,
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

impl Pending {
    pub(crate) fn new(inputs: usize, finish: Finish, answer: Answer) -> Arc<Self> {
        let state = State {
            embeddings: vec![None; inputs],
            missing: inputs,
            timings: Timings::default(),
            answer: Some(answer),
        };
        let accepted = Instant::now();
        Arc::new(Self { finish, accepted, given_up: false.into(), state: Mutex::new(state) })
    }

    /// Whether an answer is still wanted.
    pub(crate) fn wanted(&self) -> bool {
        !self.given_up.load(Ordering::Acquire) && self.state().answer.is_some()
    }

    /// The caller has gone away: what has not started need not be done.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }

    /// Notes how long tokenising has taken so far.
    pub(crate) fn tokenized(&self) {
        let elapsed = self.accepted.elapsed();
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
            timings.total = self.accepted.elapsed();
            let embeddings = std::mem::take(&mut state.embeddings).into_iter().flatten().collect();
            drop(state);
            if let Some(answer) = answer {
                answer(Ok(Reply { embeddings, timings }));
            }
        }
    }

    /// Answers with an error, unless the request is answered already.
    pub(crate) fn fail(&self, error: RequestError) {
        let answer = self.state().answer.take();
        if let Some(answer) = answer {
            answer(Err(error));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let given_up = *self.given_up.get_mut();
        self.fail(if given_up { RequestError::GivenUp } else { RequestError::Stopped });
    }
}

/// Gives up on a request when the caller's future is dropped.
pub(crate) struct GiveUpOnDrop(pub(crate) Arc<Pending>);

impl Drop for GiveUpOnDrop {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn pending(inputs: usize) -> (Arc<Pending>, mpsc::Receiver<Result<Reply, RequestError>>) {
        let (sender, receiver) = mpsc::channel();
        let finish = Finish { dimensions: 2, normalize: false };
        let answer: Answer = Box::new(move |answer| sender.send(answer).unwrap());
        (Pending::new(inputs, finish, answer), receiver)
    }

    fn part(index: usize, value: f32) -> Part {
        let embedding = Embedding { vector: vec![value], tokens: 3, truncated: false };
        Part { index, embedding, queue: Duration::ZERO, inference: Duration::ZERO }
    }

    #[test]
    fn parts_in_any_order_are_answered_once_in_order() {
        let (pending, receiver) = pending(3);
        for index in [2u8, 0, 0, 1] {
            assert!(receiver.try_recv().is_err());
            pending.resolve(part(usize::from(index), f32::from(index)));
        }
        let reply = receiver.try_recv().unwrap().unwrap();
        let values: Vec<f32> = reply.embeddings.iter().map(|e| e.vector[0]).collect();
        assert_eq!((values, reply.tokens()), (vec![0.0, 1.0, 2.0], 9));
        assert!(!pending.wanted());
        drop(pending);
        assert!(receiver.try_recv().is_err(), "a second answer");
    }

    #[test]
    fn the_first_error_is_the_answer() {
        let (pending, receiver) = pending(2);
        pending.fail(RequestError::EmptyInput { index: 1 });
        pending.resolve(part(0, 0.0));
        pending.fail(RequestError::NoInputs);
        assert_eq!(receiver.try_recv().unwrap(), Err(RequestError::EmptyInput { index: 1 }));
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn a_request_that_everybody_forgot_is_answered_all_the_same() {
        let (pending, receiver) = pending(2);
        pending.resolve(part(0, 0.0));
        drop(pending);
        assert_eq!(receiver.try_recv().unwrap(), Err(RequestError::Stopped));
    }
}
