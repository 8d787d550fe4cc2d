//! A device as the scheduler keeps it: its speed, its health, what it runs and what is its to do.

use std::collections::VecDeque;
use std::time::Duration;

use crate::forming::{Backlog, Lane};
use crate::health::Condition;
use crate::job::{Size, float, whole};
use crate::policy::View;
use crate::speed::{Coefficients, Speed};
use crate::statistics::DeviceStatistics;

/// Batches that a device has to run before its speed is known for sure.
const MEASURED: u64 = 3;

/// What a device is taken for while nothing at all is known of any.
const TYPICAL: Coefficients = Coefficients { fixed: 1e-3, per_token: 1e-6, per_square: 0.0 };

/// Seconds of a token where none were measured: no device is infinitely fast.
const LEAST_PER_TOKEN: f64 = 1e-12;

/// A device as it starts.
#[derive(Debug, Clone)]
pub struct DeviceSettings {
    /// The most tokens of a batch.
    pub batch_tokens: usize,
    /// Batches that it has at most: the one that it runs and those that it has ready.
    pub in_flight: usize,
    /// What is known of its speed, from an earlier run or from warming it up.
    pub speed: Speed,
}

/// What a device is looked at by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    pub(crate) now: f64,
    /// The mean length of inputs, each as often as it has tokens.
    pub(crate) length: f64,
    /// What is hoped of a device that is not known.
    pub(crate) fastest: Option<Coefficients>,
    /// Batches that all devices have run.
    pub(crate) batches: u64,
}

/// A batch that was handed out.
#[derive(Debug, Clone, Copy)]
struct Running {
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
    pub(crate) stalls: u64,
    pub(crate) moved: u64,
    pub(crate) retried: u64,
}

/// A device. Times are in seconds.
#[derive(Debug)]
pub(crate) struct Device<T> {
    pub(crate) settings: DeviceSettings,
    pub(crate) condition: Condition,
    /// What was assigned to it.
    pub(crate) assigned: Backlog<T>,
    /// What it failed at, for another to try.
    pub(crate) failed: Lane<T>,
    /// When something was last put there.
    pub(crate) failed_at: f64,
    pub(crate) counters: Counters,
    /// How many batches all devices had run when it last had one.
    pub(crate) measured: u64,
    running: VecDeque<Running>,
    running_tokens: usize,
    /// Since when it runs the first of these; or, if it runs none, since when it should ask for work.
    since: f64,
    /// Tokens per second in full batches.
    pub(crate) rate: f64,
}

impl<T> Device<T> {
    pub(crate) fn new(settings: DeviceSettings) -> Self {
        Self {
            running: VecDeque::with_capacity(settings.in_flight + 1),
            settings,
            condition: Condition::new(),
            assigned: Backlog::new(),
            failed: Lane::new(),
            failed_at: 0.0,
            counters: Counters::default(),
            measured: 0,
            running_tokens: 0,
            since: 0.0,
            rate: 0.0,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.running.len() < self.settings.in_flight
    }

    /// Whether its speed is known for sure.
    pub(crate) fn is_measured(&self) -> bool {
        self.settings.speed.observed() >= MEASURED
    }

    /// Its model; that of others, or of some device, while nothing is known.
    pub(crate) fn model(&self, others: Option<Coefficients>) -> Coefficients {
        self.settings.speed.coefficients().or(others).unwrap_or(TYPICAL)
    }

    /// It has asked for work and may ask again as late as then, without being late.
    pub(crate) fn rests(&mut self, until: f64) {
        if self.is_idle() {
            self.since = until;
        }
    }

    /// It has taken a batch that should take `cost`.
    pub(crate) fn took(&mut self, now: f64, size: Size, cost: f64) {
        if self.is_idle() {
            self.since = now;
        }
        self.running_tokens += size.tokens;
        self.running.push_back(Running { inputs: size.inputs, tokens: size.tokens, cost });
    }

    /// So many inputs of what it has taken are done, in whatever way. They may be a part of a batch.
    pub(crate) fn done(&mut self, now: f64, mut inputs: usize) {
        self.since = now;
        while inputs > 0
            && let Some(first) = self.running.front_mut()
        {
            let all = first.inputs <= inputs;
            let part = if all { 1.0 } else { float(inputs) / float(first.inputs) };
            let tokens = if all { first.tokens } else { whole(part * float(first.tokens)) };
            let done = first.inputs.min(inputs);
            inputs -= done;
            first.inputs -= done;
            first.tokens -= tokens;
            first.cost *= 1.0 - part;
            self.running_tokens -= tokens;
            if first.inputs == 0 {
                self.running.pop_front();
            }
        }
        if self.is_idle() {
            self.condition.became_idle();
        }
    }

    /// When it should be done with all that it has taken; `None` if it is idle.
    pub(crate) fn done_at(&self) -> Option<f64> {
        let cost: f64 = self.running.iter().map(|batch| batch.cost).sum();
        (!self.is_idle()).then_some(self.since + cost)
    }

    /// When it counts as stalled, unless the batch that it runs is done before; or, if it runs none,
    /// unless it asks for what was assigned to it.
    pub(crate) fn stalls_at(&self, factor: f64, floor: f64) -> Option<f64> {
        match self.running.front() {
            Some(batch) => Some(self.since + batch.cost * factor + floor),
            None => Some(self.since.max(self.assigned.oldest()?) + floor),
        }
    }

    /// How others see it; `waiting_since` is when the oldest work that it might do arrived. One that
    /// is late counts as late by as much again, be it in finishing or in asking for work.
    pub(crate) fn view(&self, waiting_since: f64, look: &Look) -> View {
        let now = look.now;
        let model = self.model(look.fastest);
        let ready = self.done_at().unwrap_or_else(|| self.since.max(waiting_since).min(now));
        let speed = &self.settings.speed;
        let doubtful = !self.is_measured() || speed.was_surpassed();
        let unmeasured = if doubtful { u64::MAX } else { look.batches - self.measured };
        let per_token = model.marginal(look.length).max(LEAST_PER_TOKEN);
        View {
            serves: self.condition.serves(),
            free_in: (ready - now).abs(),
            due_in: ready - now,
            running: self.running.len(),
            running_tokens: self.running_tokens,
            assigned_tokens: self.assigned.tokens(),
            limit: self.settings.batch_tokens,
            fixed: model.fixed,
            per_token,
            slope: per_token + model.fixed / float(self.settings.batch_tokens.max(1)),
            weight: 0.0,
            unmeasured,
        }
    }

    /// Its figures, as it was seen last.
    pub(crate) fn statistics(&self, view: &View) -> DeviceStatistics {
        let Self { settings, counters, .. } = self;
        let running = if self.is_idle() { 0.0 } else { view.free_in };
        let assigned = view.slope * float(view.assigned_tokens);
        DeviceStatistics {
            health: self.condition.health(),
            weight: view.weight,
            speed: settings.speed.coefficients(),
            last_error: settings.speed.last_error(),
            mean_error: settings.speed.mean_error(),
            batch_tokens: settings.batch_tokens,
            in_flight: settings.in_flight,
            running_batches: view.running,
            running_tokens: view.running_tokens,
            assigned_tokens: view.assigned_tokens,
            backlog: Duration::try_from_secs_f64(running + assigned).unwrap_or(Duration::MAX),
            batches: counters.batches,
            inputs: counters.inputs,
            tokens: counters.tokens,
            busy: counters.busy,
            failures: counters.failures,
            stalls: counters.stalls,
            moved: counters.moved,
            retried: counters.retried,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device<()> {
        let settings = DeviceSettings { batch_tokens: 100, in_flight: 2, speed: Speed::new() };
        Device::new(settings)
    }

    #[test]
    fn batches_run_one_after_the_other() {
        let mut device = device();
        assert_eq!(device.done_at(), None);
        device.took(5.0, Size::equal(4, 10), 1.0);
        device.took(5.5, Size::equal(2, 10), 3.0);
        assert!(!device.has_room());
        assert_eq!(device.done_at(), Some(9.0));
        device.done(6.5, 4);
        assert_eq!((device.done_at(), device.running_tokens), (Some(9.5), 20));
        device.done(10.0, 2);
        assert_eq!((device.done_at(), device.running_tokens), (None, 0));
    }

    #[test]
    fn a_batch_may_be_done_in_parts() {
        let mut device = device();
        device.took(0.0, Size::equal(4, 10), 1.0);
        device.done(0.5, 2);
        assert_eq!((device.done_at(), device.running_tokens), (Some(1.0), 20));
        device.done(1.0, 2);
        assert!(device.is_idle());
    }

    #[test]
    fn who_is_late_counts_as_late_by_as_much_again() {
        let mut device = device();
        let free_in = |device: &Device<()>, now| {
            device.view(0.0, &Look { now, length: 1.0, fastest: None, batches: 0 }).free_in
        };
        device.took(0.0, Size::equal(1, 10), 1.0);
        assert_eq!([0.25, 1.0, 1.5].map(|now| free_in(&device, now)), [0.75, 0.0, 0.5]);
        device.done(2.0, 1);
        assert_eq!(free_in(&device, 2.0), 0.0);
        assert_eq!(free_in(&device, 2.5), 0.5, "it hasn't asked for what waits since 0");
    }
}
