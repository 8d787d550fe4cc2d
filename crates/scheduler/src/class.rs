//! A class: work that may share batches, such as one model's, and what devices are to it.
//!
//! - [`ClassRecord`] keeps what waits of it, its own policy, and how it sees the devices.
//! - [`Member`] is a device as it serves a class: how fast it is at that, and what of it is its to do.
//!
//! The choice behind it: a class is only a number here. What makes two inputs fit one batch, and what a
//! device has to have for it, is its callers' to know.

use crate::backlog::{Backlog, Lane};
use crate::device::{Counters, DeviceRecord, DeviceStatistics};
use crate::job::float;
use crate::policy::{Policy, View};
use crate::snapshot::Snapshot;
use crate::speed::{Coefficients, Speed};

/// Batches that a device has to run before its speed is known for sure.
const MEASURED: u64 = 3;

/// What a device is taken for while nothing at all is known of any.
const TYPICAL: Coefficients = Coefficients { fixed: 1e-3, per_token: 1e-6, per_square: 0.0 };

/// Seconds of a token where none were measured: no device is infinitely fast.
const LEAST_PER_TOKEN: f64 = 1e-12;

/// The number of a class, in the order in which they were added. The first one, the default, is there
/// from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClassId(pub(crate) usize);

impl ClassId {
    /// The one that is there from the beginning.
    pub const FIRST: Self = Self(0);

    /// The class of a number that [`Scheduler::add_class`](crate::Scheduler::add_class) gave.
    #[must_use]
    pub const fn new(number: usize) -> Self {
        Self(number)
    }

    /// The number, from 0.
    #[must_use]
    pub fn index(self) -> usize {
        self.0
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

/// A class as the scheduler keeps it. Times are in seconds.
#[derive(Debug)]
pub(crate) struct ClassRecord<T> {
    pub(crate) policy: Box<dyn Policy>,
    /// What wasn't assigned to a device.
    pub(crate) common: Backlog<T>,
    /// What each device is to it.
    pub(crate) members: Vec<Member<T>>,
    pub(crate) snapshot: Snapshot,
    /// Whether something may wait that a device has failed at.
    pub(crate) retries: bool,
    /// Since when no device has served it, as far as was looked, if none does.
    pub(crate) forsaken: Option<f64>,
    pub(crate) weight: f64,
    /// Device-seconds that it has had.
    pub(crate) had: f64,
    /// The same in those of its fastest device.
    pub(crate) worth: f64,
    /// That by its weight, and at least what others had that were busy while it was not.
    pub(crate) received: f64,
    /// Inputs of it that devices have.
    pub(crate) running: usize,
}

impl<T> ClassRecord<T> {
    pub(crate) fn new(policy: Box<dyn Policy>, weight: f64, members: Vec<Member<T>>) -> Self {
        Self {
            policy,
            common: Backlog::new(),
            snapshot: Snapshot::new(members.len()),
            members,
            retries: false,
            forsaken: None,
            weight,
            had: 0.0,
            worth: 0.0,
            received: 0.0,
            running: 0,
        }
    }

    /// Inputs and tokens that wait.
    pub(crate) fn backlog(&self) -> (usize, usize) {
        let members = || self.members.iter();
        let inputs: usize =
            members().map(|member| member.assigned.inputs() + member.failed.inputs()).sum();
        let tokens: usize =
            members().map(|member| member.assigned.tokens() + member.failed.tokens()).sum();
        (inputs + self.common.inputs(), tokens + self.common.tokens())
    }

    /// The members that get work.
    pub(crate) fn serving<'a>(
        &'a self,
        devices: &'a [DeviceRecord],
    ) -> impl Iterator<Item = (usize, &'a Member<T>)> {
        let each = self.members.iter().zip(devices).enumerate();
        each.filter(|(_, (member, device))| member.serves && device.condition.serves())
            .map(|(index, (member, _))| (index, member))
    }

    /// Whether a device other than this one serves.
    pub(crate) fn others_serve(&self, device: usize, devices: &[DeviceRecord]) -> bool {
        self.serving(devices).any(|(index, _)| index != device)
    }

    /// Whether any device is to serve it, be it out for now.
    pub(crate) fn has_members(&self) -> bool {
        self.members.iter().any(|member| member.serves)
    }

    pub(crate) fn statistics(&self) -> ClassStatistics {
        let (inputs, tokens) = self.backlog();
        ClassStatistics {
            weight: self.weight,
            device_seconds: self.had,
            fastest_seconds: self.worth,
            inputs,
            tokens,
        }
    }
}

/// What a device is to a class. Times are in seconds.
#[derive(Debug)]
pub(crate) struct Member<T> {
    /// Whether it is to get work of the class, if it gets any.
    pub(crate) serves: bool,
    /// The most tokens of a batch.
    pub(crate) batch_tokens: usize,
    pub(crate) speed: Speed,
    /// What was assigned to it.
    pub(crate) assigned: Backlog<T>,
    /// What it failed at, for another to try.
    pub(crate) failed: Lane<T>,
    /// When something was last put there.
    pub(crate) failed_at: f64,
    pub(crate) counters: Counters,
    /// How many batches of the class all devices had run when it last had one.
    pub(crate) measured: u64,
    /// Tokens per second in full batches.
    pub(crate) rate: f64,
}

impl<T> Member<T> {
    /// A device that does not serve the class.
    pub(crate) fn absent() -> Self {
        Self {
            serves: false,
            batch_tokens: 1,
            speed: Speed::new(),
            assigned: Backlog::new(),
            failed: Lane::new(),
            failed_at: 0.0,
            counters: Counters::default(),
            measured: 0,
            rate: 0.0,
        }
    }

    /// It serves from now on, with batches of at most so many tokens.
    pub(crate) fn serve(&mut self, batch_tokens: usize, speed: Speed) {
        (self.serves, self.batch_tokens, self.speed) = (true, batch_tokens, speed);
    }

    /// Whether its speed is known for sure.
    pub(crate) fn is_measured(&self) -> bool {
        self.speed.observed() >= MEASURED
    }

    /// Its model; that of others, or of some device, while nothing is known.
    pub(crate) fn model(&self, others: Option<Coefficients>) -> Coefficients {
        self.speed.coefficients().or(others).unwrap_or(TYPICAL)
    }

    /// How others see it, at a time, by what the class knows of all devices; `waiting_since` is when the
    /// oldest work that it might do arrived. One that is late counts as late by as much again, be it in
    /// finishing or in asking for work.
    pub(crate) fn view(
        &self,
        device: &DeviceRecord,
        (now, waiting_since): (f64, f64),
        all: &Snapshot,
    ) -> View {
        let model = self.model(all.fastest);
        let ready = device.done_at().unwrap_or_else(|| device.since().max(waiting_since).min(now));
        let doubtful = !self.is_measured() || self.speed.was_surpassed();
        let unmeasured = if doubtful { u64::MAX } else { all.batches - self.measured };
        let per_token = model.marginal(all.length).max(LEAST_PER_TOKEN);
        let serves = self.serves && device.condition.serves();
        View {
            serves,
            free_in: (ready - now).abs(),
            due_in: ready - now,
            running: device.running_batches(),
            running_tokens: device.running_tokens(),
            assigned_tokens: self.assigned.tokens(),
            limit: self.batch_tokens,
            fixed: model.fixed,
            per_token,
            slope: per_token + model.fixed / float(self.batch_tokens.max(1)),
            share: if serves && all.rates > 0.0 { self.rate / all.rates } else { 0.0 },
            unmeasured,
        }
    }

    /// Its figures, as it was seen last.
    pub(crate) fn statistics(&self, device: &DeviceRecord, view: &View) -> DeviceStatistics {
        let Self { speed, counters, .. } = self;
        let running = if device.is_idle() { 0.0 } else { view.free_in };
        let assigned = view.slope * float(view.assigned_tokens);
        let backlog = std::time::Duration::try_from_secs_f64(running + assigned);
        DeviceStatistics {
            health: device.condition.health(),
            serves: self.serves,
            weight: view.share,
            speed: speed.coefficients(),
            last_error: speed.last_error(),
            mean_error: speed.mean_error(),
            batch_tokens: self.batch_tokens,
            in_flight: device.in_flight(),
            running_batches: view.running,
            running_tokens: view.running_tokens,
            assigned_tokens: view.assigned_tokens,
            backlog: backlog.unwrap_or(std::time::Duration::MAX),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Size;

    #[test]
    fn who_is_late_counts_as_late_by_as_much_again() {
        let mut device = DeviceRecord::new(2);
        let member = Member::<()>::absent();
        let snapshot = Snapshot::new(1);
        let free_in =
            |device: &DeviceRecord, now| member.view(device, (now, 0.0), &snapshot).free_in;
        device.took(0.0, ClassId(0), Size::equal(1, 10), 1.0);
        assert_eq!([0.25, 1.0, 1.5].map(|now| free_in(&device, now)), [0.75, 0.0, 0.5]);
        device.done(2.0, ClassId(0), 1);
        assert_eq!(free_in(&device, 2.0), 0.0);
        assert_eq!(free_in(&device, 2.5), 0.5, "it hasn't asked for what waits since 0");
    }
}
