//! What an operator is told: how devices stand and what they have done, what waits, how long it will take.

use std::time::Duration;

use crate::class::{ClassRecord, DeviceRecord, Member};
use crate::health::Health;
use crate::job::{ClassId, float};
use crate::policy::{PolicyName, View, level};
use crate::scheduler::Scheduler;
use crate::speed::Coefficients;

/// How a device stands and what it has done for a class. Its health, what it runs and its stalls are
/// those of the device, whatever class they are of.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
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

/// What a class has had and what waits of it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct ClassStatistics {
    /// Its part of the devices' time, relative to other classes that have work.
    pub weight: f64,
    /// Seconds that devices took for it, those of all added up.
    pub device_seconds: f64,
    /// The same, each device's by what it does in one relative to the fastest one: what is shared.
    pub fastest_seconds: f64,
    /// Inputs that wait for a device.
    pub inputs: usize,
    /// Tokens of these.
    pub tokens: usize,
}

impl<T> Scheduler<T> {
    /// Inputs and tokens that wait for a device.
    pub fn backlog(&self) -> (usize, usize) {
        let add = |a: (usize, usize), b: (usize, usize)| (a.0 + b.0, a.1 + b.1);
        self.classes.iter().map(ClassRecord::backlog).fold((0, 0), add)
    }

    /// How long the devices that serve a class will together take for what they run and what waits of
    /// it; a second if nothing is known of them.
    pub fn backlog_time(&mut self, now: Duration, class: ClassId) -> Duration {
        let record = &mut self.classes[class.0];
        record.refresh(now.as_secs_f64(), &self.devices);
        let (_, tokens) = record.backlog();
        let known = record.rates().fastest.is_some();
        let seconds = if known { level(&record.snapshot.views, float(tokens)) } else { 1.0 };
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(1))
    }

    /// The policy's name.
    pub fn policy(&self) -> PolicyName {
        self.classes[0].policy.name()
    }

    /// The classes, in the order in which they were added.
    pub fn classes(&self) -> impl Iterator<Item = ClassId> + use<T> {
        (0..self.classes.len()).map(ClassId)
    }

    /// How a device stands.
    pub fn health(&self, device: usize) -> Health {
        self.devices[device].condition.health()
    }

    /// How each device stands and what it has done for a class.
    pub fn statistics(&mut self, now: Duration, class: ClassId) -> Vec<DeviceStatistics> {
        let record = &mut self.classes[class.0];
        record.refresh(now.as_secs_f64(), &self.devices);
        let each = record.members.iter().zip(&self.devices).zip(&record.snapshot.views);
        each.map(|((member, device), view)| member.statistics(device, view)).collect()
    }

    /// What a class has had and what waits of it.
    pub fn class_statistics(&self, class: ClassId) -> ClassStatistics {
        let record = &self.classes[class.0];
        let (inputs, tokens) = record.backlog();
        ClassStatistics {
            weight: record.weight,
            device_seconds: record.had,
            fastest_seconds: record.worth,
            inputs,
            tokens,
        }
    }
}

impl<T> ClassRecord<T> {
    /// Inputs and tokens that wait.
    pub(crate) fn backlog(&self) -> (usize, usize) {
        let members = || self.members.iter();
        let inputs: usize =
            members().map(|member| member.assigned.inputs() + member.failed.inputs()).sum();
        let tokens: usize =
            members().map(|member| member.assigned.tokens() + member.failed.tokens()).sum();
        (inputs + self.common.inputs(), tokens + self.common.tokens())
    }
}

impl<T> Member<T> {
    /// Its figures, as it was seen last.
    fn statistics(&self, device: &DeviceRecord, view: &View) -> DeviceStatistics {
        let Self { speed, counters, .. } = self;
        let running = if device.is_idle() { 0.0 } else { view.free_in };
        let assigned = view.slope * float(view.assigned_tokens);
        let backlog = Duration::try_from_secs_f64(running + assigned);
        DeviceStatistics {
            health: device.condition.health(),
            serves: self.serves,
            weight: view.share,
            speed: speed.coefficients(),
            last_error: speed.last_error(),
            mean_error: speed.mean_error(),
            batch_tokens: self.batch_tokens,
            in_flight: device.in_flight,
            running_batches: view.running,
            running_tokens: view.running_tokens,
            assigned_tokens: view.assigned_tokens,
            backlog: backlog.unwrap_or(Duration::MAX),
            batches: counters.batches,
            inputs: counters.inputs,
            tokens: counters.tokens,
            busy: counters.busy,
            failures: counters.failures,
            stalls: device.stalls,
            moved: counters.moved,
            retried: counters.retried,
        }
    }
}
