//! Requests that came before their model was loaded, and wait for it.
//!
//! The choice behind it: they wait as what they are, without a thread or a timer of their own. Whoever
//! has loaded the model, or failed to, takes them; a thread that looks at the queue now and then refuses
//! those that have waited for too long.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::answer::Answer;
use crate::ask::Ask;
use crate::error::RequestError;

/// Requests for models that are being loaded.
pub(crate) struct EarlyRequests {
    patience: Duration,
    /// The most inputs that wait so.
    capacity: usize,
    waiting: Mutex<Vec<Early>>,
}

struct Early {
    model: String,
    ask: Ask,
    answer: Answer,
    until: Instant,
}

impl EarlyRequests {
    /// They wait for so long, and have at most so many inputs together.
    pub(crate) fn new(patience: Duration, capacity: usize) -> Self {
        Self { patience, capacity, waiting: Mutex::default() }
    }

    /// Has a request wait for `model`, or answers it where it may not.
    pub(crate) fn keep(&self, model: String, ask: Ask, answer: Answer) {
        let patience = ask.timeout.map_or(self.patience, |timeout| timeout.min(self.patience));
        let mut waiting = self.waiting();
        let inputs: usize = waiting.iter().map(|early| early.ask.texts.len()).sum();
        let room = self.capacity.saturating_sub(inputs);
        match answer.asked().checked_add(patience) {
            Some(until) if !patience.is_zero() && ask.texts.len() <= room => {
                waiting.push(Early { model, ask, answer, until });
            }
            _ => {
                drop(waiting);
                answer.send(Err(RequestError::ModelLoading { name: model }));
            }
        }
    }

    /// Those that wait for a model.
    pub(crate) fn take(&self, model: &str) -> Vec<(Ask, Answer)> {
        let mut waiting = self.waiting();
        let taken = waiting.extract_if(.., |early| early.model == model);
        taken.map(|Early { ask, answer, .. }| (ask, answer)).collect()
    }

    /// Answers those that have waited for too long, and lets go of those that nobody wants.
    pub(crate) fn check(&self) {
        let now = Instant::now();
        let over = |early: &mut Early| early.until <= now || early.answer.is_given_up();
        let over: Vec<Early> = self.waiting().extract_if(.., over).collect();
        for Early { model, answer, .. } in over {
            match answer.is_given_up() {
                true => drop(answer), // which tells by itself
                false => answer.send(Err(RequestError::ModelLoading { name: model })),
            }
        }
    }

    /// Answers all of them: the engine ends.
    pub(crate) fn stop(&self) {
        let all = std::mem::take(&mut *self.waiting());
        all.into_iter().for_each(|early| early.answer.send(Err(RequestError::Stopped)));
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Early>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
