//! A class: work that may share batches, such as one model's, and the devices as it sees them.
//!
//! - [`ClassRecord`] keeps what waits of it, its own policy, and a [`Snapshot`] of the devices, by which
//!   all is decided.
//! - [`DeviceRecord`] is a device: what it runs, of whatever class. [`Member`] is what it is to one class:
//!   how fast it is at that, and what of it is its to do.
//!
//! The choices behind it:
//!
//! - A class is only a number here. What makes two inputs fit one batch, and what a device has to have for
//!   it, is its callers' to know.
//! - A snapshot takes a look at every device, so that is done once for all that ask at the same moment.
//!   What happens only invalidates it; the first decision that needs it refreshes it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::backlog::{Backlog, Lane};
use crate::health::Condition;
use crate::job::{ClassId, Size, float, whole};
use crate::policy::{Policy, View};
use crate::rates::Rates;
use crate::speed::Speed;

/// Batches that a device has to run before its speed is known for sure.
const MEASURED: u64 = 3;

/// Seconds of a token where none were measured: no device is infinitely fast.
const LEAST_PER_TOKEN: f64 = 1e-12;

/// A device looks again after at least so many seconds, whatever it waits for; so old may be the times
/// by which work is assigned.
pub(crate) const LEAST_PAUSE: f64 = 0.000_5;

/// A class as the scheduler keeps it. Times are in seconds.
#[derive(Debug)]
pub(crate) struct ClassRecord<T> {
    pub(crate) policy: Box<dyn Policy>,
    /// What wasn't assigned to a device.
    pub(crate) common: Backlog<T>,
    /// What each device is to it.
    pub(crate) members: Vec<Member<T>>,
    pub(crate) rates: Rates,
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

/// The devices as they were seen last. Times are in seconds.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) views: Vec<View>,
    /// Tokens per second of all devices that serve, in full batches.
    rate: f64,
    /// When they were seen; infinitely long ago if more has changed since than the time.
    at: f64,
    /// The same, where changed speeds don't count.
    roughly_at: f64,
    /// Whether the policy has seen the same.
    policy_is_updated: bool,
}

impl Snapshot {
    fn new(devices: usize) -> Self {
        Self {
            views: Vec::with_capacity(devices),
            rate: 0.0,
            at: f64::NEG_INFINITY,
            roughly_at: f64::NEG_INFINITY,
            policy_is_updated: false,
        }
    }
}

impl<T> ClassRecord<T> {
    pub(crate) fn new(policy: Box<dyn Policy>, weight: f64, members: Vec<Member<T>>) -> Self {
        Self {
            policy,
            common: Backlog::new(),
            rates: Rates::new(members.len()),
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

    /// The devices' rates, as their speeds are now.
    pub(crate) fn rates(&mut self) -> &Rates {
        self.rates.refresh(self.members.iter().map(|member| (&member.speed, member.batch_tokens)));
        &self.rates
    }

    /// The common backlog is another, or a device.
    pub(crate) fn invalidate_policy(&mut self) {
        self.snapshot.policy_is_updated = false;
    }

    /// A device's speed is another.
    pub(crate) fn invalidate_speeds(&mut self) {
        self.rates.invalidate();
        self.snapshot.at = f64::NEG_INFINITY;
    }

    /// Anything may have changed.
    pub(crate) fn invalidate(&mut self) {
        self.invalidate_speeds();
        self.snapshot.roughly_at = f64::NEG_INFINITY;
    }

    /// Looks at all devices.
    pub(crate) fn refresh(&mut self, now: f64, devices: &[DeviceRecord]) {
        if self.snapshot.at >= now {
            return;
        }
        self.rates();
        self.snapshot.rate = self.serving(devices).map(|(index, _)| self.rates.of(index)).sum();
        let oldest = self.common.oldest();
        let mut views = std::mem::take(&mut self.snapshot.views);
        views.clear();
        views.extend(
            devices.iter().enumerate().map(|(index, device)| self.view(now, index, device, oldest)),
        );
        let rate = self.snapshot.rate;
        self.snapshot =
            Snapshot { views, rate, at: now, roughly_at: now, policy_is_updated: false };
    }

    /// The same, but times and speeds may be a little old.
    pub(crate) fn refresh_roughly(&mut self, now: f64, devices: &[DeviceRecord]) {
        if self.snapshot.roughly_at < now - LEAST_PAUSE {
            self.refresh(now, devices);
        }
    }

    /// Looks at a device whose work alone has changed.
    pub(crate) fn refresh_device(&mut self, now: f64, index: usize, device: &DeviceRecord) {
        self.invalidate_policy();
        if self.snapshot.roughly_at > f64::NEG_INFINITY {
            self.snapshot.views[index] = self.view(now, index, device, self.common.oldest());
        }
    }

    /// One device; the oldest of the common backlog arrived at `oldest`.
    #[inline]
    fn view(&self, now: f64, index: usize, device: &DeviceRecord, oldest: Option<f64>) -> View {
        let member = &self.members[index];
        let waiting_since = || member.assigned.oldest().or(oldest).unwrap_or(now);
        let share = self.rates.of(index) / self.snapshot.rate;
        member.view(device, now, waiting_since, &self.rates, share)
    }

    /// Has the policy see what is to be decided by for a device that asks.
    pub(crate) fn update_policy(&mut self, device: usize) {
        let view = &mut self.snapshot.views[device];
        // It is not late: it asks.
        let late = view.running == 0 && view.free_in > 0.0;
        if late || !view.serves {
            view.serves = true;
            view.free_in = if late { 0.0 } else { view.free_in };
            self.snapshot.policy_is_updated = false;
        }
        if !self.snapshot.policy_is_updated {
            self.policy.update(self.common.tokens(), &self.snapshot.views);
            self.snapshot.policy_is_updated = true;
        }
    }

    /// Seconds until one of those that a device leaves work to should be free, or is twice as late as
    /// it is: nobody is waited for who is gone.
    pub(crate) fn next_turn(&self, device: usize) -> f64 {
        let views = self.snapshot.views.iter().enumerate();
        let others = views.filter(|(index, view)| view.serves && *index != device);
        others.map(|(_, view)| view.free_in).fold(f64::INFINITY, f64::min).max(LEAST_PAUSE)
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
}

/// What a device has done for a class.
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
        }
    }

    /// It serves from now on, with batches of at most so many tokens.
    pub(crate) fn serve(&mut self, batch_tokens: usize, speed: Speed) {
        (self.serves, self.batch_tokens, self.speed) = (true, batch_tokens, speed);
    }

    /// It has run a batch: what it is counted and learned from.
    pub(crate) fn ran(&mut self, size: Size, took: Duration) {
        self.speed.observe(size, took);
        self.counters.batches += 1;
        self.counters.inputs += size.inputs as u64;
        self.counters.tokens += size.tokens as u64;
        self.counters.busy += took;
    }

    /// Whether its speed is known for sure.
    pub(crate) fn is_measured(&self) -> bool {
        self.speed.observed() >= MEASURED
    }

    /// How others see it, at a time; `waiting_since` is when the oldest work that it might do arrived,
    /// `share` its share if it serves. One that is late counts as late by as much again, be it in finishing
    /// or in asking for work.
    #[inline]
    fn view(
        &self,
        device: &DeviceRecord,
        now: f64,
        waiting_since: impl Fn() -> f64,
        all: &Rates,
        share: f64,
    ) -> View {
        let model = all.model(&self.speed);
        let ready = device.done_at().unwrap_or_else(|| device.since.max(waiting_since()).min(now));
        let doubtful = !self.is_measured() || self.speed.was_surpassed();
        let unmeasured = if doubtful { u64::MAX } else { all.batches - self.measured };
        let per_token = model.marginal(all.length).max(LEAST_PER_TOKEN);
        let serves = self.serves && device.condition.serves();
        View {
            serves,
            free_in: (ready - now).abs(),
            due_in: ready - now,
            running: device.running.len(),
            running_tokens: device.running_tokens,
            assigned_tokens: self.assigned.tokens(),
            limit: self.batch_tokens,
            fixed: model.fixed,
            per_token,
            slope: per_token + model.fixed / float(self.batch_tokens.max(1)),
            share: if serves && share.is_finite() { share } else { 0.0 },
            unmeasured,
        }
    }
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

/// A device. Times are in seconds.
#[derive(Debug)]
pub(crate) struct DeviceRecord {
    pub(crate) in_flight: usize,
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
    #[inline]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_late_counts_as_late_by_as_much_again() {
        let mut device = DeviceRecord::new(2);
        let (member, rates) = (Member::<()>::absent(), Rates::new(1));
        let free_in =
            |device: &DeviceRecord, now| member.view(device, now, || 0.0, &rates, 0.0).free_in;
        device.took(0.0, ClassId(0), Size::equal(1, 10), 1.0);
        assert_eq!([0.25, 1.0, 1.5].map(|now| free_in(&device, now)), [0.75, 0.0, 0.5]);
        device.done(2.0, ClassId(0), 1);
        assert_eq!(free_in(&device, 2.0), 0.0);
        assert_eq!(free_in(&device, 2.5), 0.5, "it hasn't asked for what waits since 0");
    }

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
}
