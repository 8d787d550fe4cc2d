//! A device as the scheduler keeps it: its speed, its health, what it runs and what is its to do.
//!
//! - [`DeviceRecord`] is all of it, and what others see of it; [`DeviceStatistics`] is what is told.
//! - [`Health`] is whether it gets work, and [`Condition`] what that follows from.

use std::collections::VecDeque;
use std::time::Duration;

use crate::class::ClassId;
use crate::job::{Size, float, whole};
use crate::speed::{Coefficients, Speed};

/// Batches that a device may fail at, one after the other, before it is taken out.
const FAILURES_IN_A_ROW: u32 = 3;

/// Seconds until a device that was taken out is tried again: the first time, and at most.
const FIRST_PAUSE: f64 = 1.0;
const LONGEST_PAUSE: f64 = 60.0;

/// A device as it starts, serving the first class.
#[derive(Debug, Clone)]
pub struct DeviceSettings {
    /// The most tokens of a batch.
    pub batch_tokens: usize,
    /// Batches that it has at most: the one that it runs and those that it has ready.
    pub in_flight: usize,
    /// What is known of its speed, from an earlier run or from warming it up.
    pub speed: Speed,
}

/// A batch that was handed out.
#[derive(Debug, Clone, Copy)]
struct Running {
    class: ClassId,
    /// Inputs that are not accounted for yet.
    inputs: usize,
    tokens: usize,
    /// Seconds that it should take.
    cost: f64,
}

/// Figures that only grow.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counters {
    pub(crate) batches: u64,
    pub(crate) inputs: u64,
    pub(crate) tokens: u64,
    pub(crate) busy: Duration,
    pub(crate) failures: u64,
    pub(crate) moved: u64,
    pub(crate) retried: u64,
}

/// A device. Times are in seconds.
#[derive(Debug)]
pub(crate) struct DeviceRecord {
    in_flight: usize,
    pub(crate) condition: Condition,
    /// Times that it didn't move and was taken out for it.
    pub(crate) stalls: u64,
    running: VecDeque<Running>,
    running_tokens: usize,
    /// Since when it runs the first of these; or, if it runs none, since when it should ask for work.
    since: f64,
}

impl DeviceRecord {
    /// One that has at most so many batches.
    pub(crate) fn new(in_flight: usize) -> Self {
        Self {
            running: VecDeque::with_capacity(in_flight + 1),
            in_flight,
            condition: Condition::new(),
            stalls: 0,
            running_tokens: 0,
            since: 0.0,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.running.len() < self.in_flight
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(crate) fn running_batches(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn running_tokens(&self) -> usize {
        self.running_tokens
    }

    pub(crate) fn since(&self) -> f64 {
        self.since
    }

    /// The class of the batch that it runs.
    pub(crate) fn runs(&self) -> Option<ClassId> {
        self.running.front().map(|batch| batch.class)
    }

    /// It has asked for work and may ask again as late as then, without being late.
    pub(crate) fn rests(&mut self, until: f64) {
        if self.is_idle() {
            self.since = until;
        }
    }

    /// It has taken a batch that should take `cost`.
    pub(crate) fn took(&mut self, now: f64, class: ClassId, size: Size, cost: f64) {
        if self.is_idle() {
            self.since = now;
        }
        self.running_tokens += size.tokens;
        self.running.push_back(Running { class, inputs: size.inputs, tokens: size.tokens, cost });
    }

    /// So many inputs of a class, of what it has taken, are done, in whatever way. They may be a part of
    /// a batch. Says how many seconds they should have taken.
    pub(crate) fn done(&mut self, now: f64, class: ClassId, mut inputs: usize) -> f64 {
        let mut cost = 0.0;
        self.since = now;
        while inputs > 0
            && let Some(at) = self.running.iter().position(|batch| batch.class == class)
        {
            let first = &mut self.running[at];
            let all = first.inputs <= inputs;
            let part = if all { 1.0 } else { float(inputs) / float(first.inputs) };
            let tokens = if all { first.tokens } else { whole(part * float(first.tokens)) };
            let done = first.inputs.min(inputs);
            inputs -= done;
            cost += first.cost * part;
            first.inputs -= done;
            first.tokens -= tokens;
            first.cost *= 1.0 - part;
            self.running_tokens -= tokens;
            if first.inputs == 0 {
                self.running.remove(at);
            }
        }
        if self.is_idle() {
            self.condition.became_idle();
        }
        cost
    }

    /// When it should be done with all that it has taken; `None` if it is idle.
    pub(crate) fn done_at(&self) -> Option<f64> {
        let cost: f64 = self.running.iter().map(|batch| batch.cost).sum();
        (!self.is_idle()).then_some(self.since + cost)
    }

    /// When it counts as stalled, unless the batch that it runs is done before; or, if it runs none,
    /// unless it asks for what was assigned to it, the oldest of which is of `assigned`.
    pub(crate) fn stalls_at(&self, factor: f64, floor: f64, assigned: Option<f64>) -> Option<f64> {
        match self.running.front() {
            Some(batch) => Some(self.since + batch.cost * factor + floor),
            None => Some(self.since.max(assigned?) + floor),
        }
    }
}

/// How a device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It gets work.
    Serving,
    /// It failed at its last batch and gets one at a time until one succeeds.
    Suspect,
    /// It kept failing or doesn't move: its work is done elsewhere. After a while it is tried with one
    /// batch.
    Out,
    /// An operator wants it idle; it finishes what it has begun.
    Draining,
    /// Idle, until an operator wants it back.
    Drained,
    /// Whoever asked for its work has ended: it gets none for good.
    Gone,
}

impl Health {
    /// A name for metrics and pages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Suspect => "suspect",
            Self::Out => "out",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Gone => "gone",
        }
    }
}

/// A device's health and what it follows from. Times are in seconds.
#[derive(Debug, Clone)]
pub(crate) struct Condition {
    health: Health,
    failures: u32,
    pause: f64,
    try_at: f64,
}

impl Condition {
    pub(crate) fn new() -> Self {
        Self { health: Health::Serving, failures: 0, pause: FIRST_PAUSE, try_at: 0.0 }
    }

    pub(crate) fn health(&self) -> Health {
        self.health
    }

    /// Whether others can rely on it for work that waits.
    pub(crate) fn serves(&self) -> bool {
        matches!(self.health, Health::Serving | Health::Suspect)
    }

    /// Whether an operator wants it idle.
    pub(crate) fn is_drained(&self) -> bool {
        matches!(self.health, Health::Draining | Health::Drained)
    }

    /// Whether it will never serve again.
    pub(crate) fn is_gone(&self) -> bool {
        self.health == Health::Gone
    }

    /// When it may be tried again, if it is out.
    pub(crate) fn try_at(&self) -> Option<f64> {
        (self.health == Health::Out).then_some(self.try_at)
    }

    /// It ran a batch.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
        if !self.is_drained() && !self.is_gone() {
            self.health = Health::Serving;
            self.pause = FIRST_PAUSE;
        }
    }

    /// It failed at a batch. Says whether that takes it out; it doesn't where no other could do its
    /// work.
    pub(crate) fn failed(&mut self, now: f64, others_serve: bool) -> bool {
        self.failures = self.failures.saturating_add(1);
        if self.is_drained() || self.is_gone() {
            return false;
        }
        let was_out = self.health == Health::Out;
        if was_out || others_serve && self.failures >= FAILURES_IN_A_ROW {
            self.take_out(now);
            return !was_out;
        }
        self.health = Health::Suspect;
        false
    }

    /// It gets no work for a while.
    pub(crate) fn take_out(&mut self, now: f64) {
        self.health = Health::Out;
        self.try_at = now + self.pause;
        self.pause = (2.0 * self.pause).min(LONGEST_PAUSE);
    }

    pub(crate) fn drain(&mut self, idle: bool) {
        if !self.is_gone() {
            self.health = if idle { Health::Drained } else { Health::Draining };
        }
    }

    /// It is lost for good.
    pub(crate) fn lose(&mut self) {
        self.health = Health::Gone;
    }

    /// Its last batch is done.
    pub(crate) fn became_idle(&mut self) {
        if self.health == Health::Draining {
            self.health = Health::Drained;
        }
    }

    pub(crate) fn restore(&mut self) {
        if !self.is_gone() {
            *self = Self::new();
        }
    }
}

/// How a device stands and what it has done for a class. Its health, what it runs and its stalls are
/// those of the device, whatever class they are of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceStatistics {
    /// Whether it gets work.
    pub health: Health,
    /// Whether it is to get work of the class.
    pub serves: bool,
    /// Its share of the tokens per second of all devices that serve, in full batches.
    pub weight: f64,
    /// Its learned speed, once anything is known.
    pub speed: Option<Coefficients>,
    /// How far the last prediction was off, relative to what was measured; above zero if the batch
    /// took longer.
    pub last_error: f64,
    /// The mean of that of late, in either direction.
    pub mean_error: f64,
    /// The most tokens of a batch.
    pub batch_tokens: usize,
    /// Batches that it takes at most before it has finished one.
    pub in_flight: usize,
    /// Batches that it has taken and not finished.
    pub running_batches: usize,
    /// Tokens of these.
    pub running_tokens: usize,
    /// Tokens that wait for it alone: assigned by a policy that does so.
    pub assigned_tokens: usize,
    /// When it will be done with all that it has, running and assigned.
    pub backlog: Duration,
    /// Batches that it has run.
    pub batches: u64,
    /// Inputs of these.
    pub inputs: u64,
    /// Tokens of these.
    pub tokens: u64,
    /// Time that it took for them.
    pub busy: Duration,
    /// Batches that it failed at.
    pub failures: u64,
    /// Times that it didn't move and was taken out for it.
    pub stalls: u64,
    /// Inputs that were assigned to it and moved elsewhere.
    pub moved: u64,
    /// Inputs that it failed at and that were queued once more.
    pub retried: u64,
}

impl DeviceStatistics {
    /// What the device is to both of two classes: what it has done is added up, and what is known of its
    /// speed is the first one's that it serves.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let known = if self.serves || !other.serves { self } else { other };
        Self {
            serves: self.serves || other.serves,
            assigned_tokens: self.assigned_tokens + other.assigned_tokens,
            batches: self.batches + other.batches,
            inputs: self.inputs + other.inputs,
            tokens: self.tokens + other.tokens,
            busy: self.busy + other.busy,
            failures: self.failures + other.failures,
            moved: self.moved + other.moved,
            retried: self.retried + other.retried,
            ..*known
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASS: ClassId = ClassId(0);

    #[test]
    fn batches_run_one_after_the_other() {
        let mut device = DeviceRecord::new(2);
        assert_eq!(device.done_at(), None);
        device.took(5.0, CLASS, Size::equal(4, 10), 1.0);
        device.took(5.5, CLASS, Size::equal(2, 10), 3.0);
        assert!(!device.has_room());
        assert_eq!(device.done_at(), Some(9.0));
        device.done(6.5, CLASS, 4);
        assert_eq!((device.done_at(), device.running_tokens), (Some(9.5), 20));
        device.done(10.0, CLASS, 2);
        assert_eq!((device.done_at(), device.running_tokens), (None, 0));
    }

    #[test]
    fn batches_of_two_classes_may_be_done_in_any_order() {
        let mut device = DeviceRecord::new(2);
        device.took(0.0, CLASS, Size::equal(4, 10), 1.0);
        device.took(0.0, ClassId(1), Size::equal(2, 10), 3.0);
        assert_eq!(device.done(0.5, ClassId(1), 2), 3.0);
        assert_eq!((device.done_at(), device.running_tokens), (Some(1.5), 40));
        assert_eq!(device.done(1.0, CLASS, 4), 1.0);
        assert!(device.is_idle());
    }

    #[test]
    fn a_batch_may_be_done_in_parts() {
        let mut device = DeviceRecord::new(2);
        device.took(0.0, CLASS, Size::equal(4, 10), 1.0);
        device.done(0.5, CLASS, 2);
        assert_eq!((device.done_at(), device.running_tokens), (Some(1.0), 20));
        device.done(1.0, CLASS, 2);
        assert!(device.is_idle());
    }

    #[test]
    fn three_failures_in_a_row_take_it_out_and_one_success_brings_it_back() {
        let mut condition = Condition::new();
        assert!(!condition.failed(0.0, true));
        assert_eq!(condition.health(), Health::Suspect);
        condition.succeeded();
        assert!(!condition.failed(0.0, true) && !condition.failed(0.0, true));
        assert!(condition.failed(10.0, true));
        assert_eq!((condition.health(), condition.try_at()), (Health::Out, Some(11.0)));
        assert!(!condition.failed(11.0, true), "it was out already");
        assert_eq!(condition.try_at(), Some(13.0), "the pause doubles");
        condition.succeeded();
        assert_eq!((condition.health(), condition.try_at()), (Health::Serving, None));
        assert!((0..2).all(|_| !condition.failed(20.0, true)) && condition.failed(20.0, true));
        assert_eq!(condition.try_at(), Some(21.0), "the pause starts anew");
    }

    #[test]
    fn the_last_one_stays_and_what_is_drained_stays_drained() {
        let mut condition = Condition::new();
        assert!((0..9).all(|_| !condition.failed(0.0, false)));
        assert!(condition.serves());
        condition.drain(false);
        condition.succeeded();
        assert!(!condition.failed(0.0, true));
        assert_eq!(condition.health(), Health::Draining);
        condition.became_idle();
        assert_eq!(condition.health(), Health::Drained);
        condition.restore();
        assert_eq!(condition.health(), Health::Serving);
    }

    #[test]
    fn what_is_gone_stays_gone() {
        let mut condition = Condition::new();
        condition.lose();
        condition.succeeded();
        assert!(!condition.failed(0.0, true) && !condition.serves());
        condition.drain(true);
        condition.restore();
        assert_eq!(condition.health(), Health::Gone);
    }
}
