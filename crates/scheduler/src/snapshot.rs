//! How the devices stand, as a class of work sees them, kept from one decision to the next.
//!
//! - [`Snapshot`] is what all decisions go by: the devices' views, their shares, and when the next of
//!   them should be free.
//! - What happens only marks it as outdated; the first decision that needs it brings it up to date.
//!
//! The choice behind it: bringing it up to date takes a look at every device, so that is done once for
//! all devices that ask at the same moment, and not for each of them.

use crate::class::{ClassId, ClassRecord};
use crate::device::DeviceRecord;
use crate::job::{Size, float};
use crate::policy::View;
use crate::scheduler::Scheduler;
use crate::speed::Coefficients;

/// The share of a new batch in the mean length.
const NEW_LENGTH: f64 = 0.02;

/// A device looks again after at least so many seconds, whatever it waits for; so old may be the times
/// by which work is assigned.
pub(crate) const LEAST_PAUSE: f64 = 0.000_5;

/// How the devices stand. Times are in seconds.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// The mean length of the class's inputs of late, each as often as it has tokens.
    pub(crate) length: f64,
    /// Batches of it that all devices have run.
    pub(crate) batches: u64,
    /// The devices as they were seen last.
    pub(crate) views: Vec<View>,
    /// The fastest device's model: what is hoped of one that is not known.
    pub(crate) fastest: Option<Coefficients>,
    /// Its tokens per second, in full batches.
    pub(crate) most: f64,
    /// Tokens per second of all devices that serve, in full batches.
    pub(crate) rates: f64,
    /// Whether the rates are those of the speeds that are known now.
    weighed: bool,
    /// When the devices were seen; infinitely long ago if more has changed since than the time.
    seen: f64,
    /// The same, if what has changed is seen already but for the devices' speeds.
    seen_of_late: f64,
    /// Whether the policy has seen the same, and `turns` are of it.
    considered: bool,
    turns: Turns,
}

/// The two devices that should be free soonest.
#[derive(Debug, Clone, Copy)]
struct Turns {
    first: (usize, f64),
    second: f64,
}

impl Snapshot {
    pub(crate) fn new(devices: usize) -> Self {
        Self {
            length: 0.0,
            batches: 0,
            views: Vec::with_capacity(devices),
            fastest: None,
            most: 0.0,
            rates: 0.0,
            weighed: false,
            seen: f64::NEG_INFINITY,
            seen_of_late: f64::NEG_INFINITY,
            considered: false,
            turns: Turns::of(&[]),
        }
    }

    /// A device has run a batch.
    pub(crate) fn ran(&mut self, size: Size) {
        if size.tokens > 0 {
            let length = size.squares / float(size.tokens);
            let share = if self.length > 0.0 { NEW_LENGTH } else { 1.0 };
            self.length += share * (length - self.length);
        }
        self.batches += 1;
    }

    /// The common backlog is another, or a device.
    pub(crate) fn backlog_changed(&mut self) {
        self.considered = false;
    }

    /// A device's speed is another.
    pub(crate) fn weights_changed(&mut self) {
        self.weighed = false;
        self.seen = f64::NEG_INFINITY;
    }

    /// Anything may have changed.
    pub(crate) fn changed(&mut self) {
        self.weights_changed();
        self.seen_of_late = f64::NEG_INFINITY;
    }
}

impl Turns {
    fn of(views: &[View]) -> Self {
        let mut turns = Self { first: (0, f64::INFINITY), second: f64::INFINITY };
        for (index, view) in views.iter().enumerate().filter(|(_, view)| view.serves) {
            if view.free_in < turns.first.1 {
                turns.second = turns.first.1;
                turns.first = (index, view.free_in);
            } else {
                turns.second = turns.second.min(view.free_in);
            }
        }
        turns
    }

    /// Seconds until one of the others should be free.
    fn beside(&self, device: usize) -> f64 {
        let (first, seconds) = self.first;
        if first == device { self.second } else { seconds }
    }
}

impl<T> ClassRecord<T> {
    /// The fastest device's model, if anything is known of any.
    pub(crate) fn fastest(&mut self) -> Option<Coefficients> {
        self.weigh();
        self.snapshot.fastest
    }

    /// Works out the devices' rates in full batches of inputs as long as those of late: a device that
    /// happens to run small batches is not slower for that.
    fn weigh(&mut self) {
        if self.snapshot.weighed {
            return;
        }
        let mut best = 0.0;
        self.snapshot.fastest = None;
        for member in &mut self.members {
            let model = member.model(None);
            let tokens = float(member.batch_tokens.max(1));
            let each = model.marginal(self.snapshot.length);
            member.rate = tokens / (model.fixed + each * tokens).max(1e-12);
            if member.speed.coefficients().is_some() && member.rate > best {
                best = member.rate;
                self.snapshot.fastest = Some(model);
            }
        }
        self.snapshot.most = best;
        self.snapshot.weighed = true;
    }

    fn view(&self, now: f64, index: usize, device: &DeviceRecord) -> View {
        let member = &self.members[index];
        let waiting_since = member.assigned.oldest().or(self.common.oldest()).unwrap_or(now);
        member.view(device, (now, waiting_since), &self.snapshot)
    }

    /// Has the policy look at what is to be decided by for a device that asks.
    pub(crate) fn consider(&mut self, device: usize) {
        let view = &mut self.snapshot.views[device];
        // It is not late: it asks.
        let late = view.running == 0 && view.free_in > 0.0;
        if late || !view.serves {
            view.serves = true;
            view.free_in = if late { 0.0 } else { view.free_in };
            self.snapshot.considered = false;
        }
        if !self.snapshot.considered {
            self.policy.look(self.common.tokens(), &self.snapshot.views);
            self.snapshot.turns = Turns::of(&self.snapshot.views);
            self.snapshot.considered = true;
        }
    }

    /// Seconds until one of those that a device leaves work to should be free, or is twice as late as
    /// it is: nobody is waited for who is gone.
    pub(crate) fn next_turn(&self, device: usize) -> f64 {
        self.snapshot.turns.beside(device).max(LEAST_PAUSE)
    }
}

impl<T> Scheduler<T> {
    /// Looks at all devices for a class.
    pub(crate) fn look(&mut self, now: f64, class: ClassId) {
        let record = &mut self.classes[class.0];
        if record.snapshot.seen >= now {
            return;
        }
        record.weigh();
        record.snapshot.rates = record.serving(&self.devices).map(|(_, member)| member.rate).sum();
        let mut views = std::mem::take(&mut record.snapshot.views);
        views.clear();
        let devices = self.devices.iter().enumerate();
        views.extend(devices.map(|(index, device)| record.view(now, index, device)));
        let snapshot = &mut record.snapshot;
        snapshot.views = views;
        snapshot.seen = now;
        snapshot.seen_of_late = now;
        snapshot.considered = false;
    }

    /// As [`look`](Self::look), but times and speeds may be a little old.
    pub(crate) fn look_of_late(&mut self, now: f64, class: ClassId) {
        if self.classes[class.0].snapshot.seen_of_late < now - LEAST_PAUSE {
            self.look(now, class);
        }
    }

    /// Looks at a device whose work alone has changed.
    pub(crate) fn see(&mut self, now: f64, device: usize) {
        for class in 0..self.classes.len() {
            let record = &mut self.classes[class];
            record.snapshot.backlog_changed();
            if record.snapshot.seen_of_late > f64::NEG_INFINITY {
                record.snapshot.views[device] = record.view(now, device, &self.devices[device]);
            }
        }
        self.expect(device);
    }

    /// Anything may have changed.
    pub(crate) fn changed(&mut self) {
        self.classes.iter_mut().for_each(|class| class.snapshot.changed());
        self.next_stall = f64::NEG_INFINITY;
    }

    pub(crate) fn notice_stalls(&mut self, now: f64) {
        if now <= self.next_stall {
            return;
        }
        for index in 0..self.devices.len() {
            let stalled = self.stalls_at(index).is_some_and(|at| at < now);
            if stalled
                && self.devices[index].condition.serves()
                && (self.others_serve(index) || self.is_stuck(index, now))
            {
                let device = &mut self.devices[index];
                device.condition.take_out(now);
                device.stalls += 1;
                self.changed();
                self.move_assigned(now, index);
            }
        }
        let serving = 0..self.devices.len();
        let serving = serving.filter(|&index| self.devices[index].condition.serves());
        let stalls = serving.filter_map(|index| self.stalls_at(index));
        self.next_stall = stalls.filter(|&at| at >= now).fold(f64::INFINITY, f64::min);
    }

    /// Whether a device runs a batch that it will not finish, as far as its speed is known.
    fn is_stuck(&self, index: usize, now: f64) -> bool {
        let device = &self.devices[index];
        let Some(class) = device.runs() else { return false };
        let floor = self.settings.stall_floor_alone.as_secs_f64();
        let stalls_at = device.stalls_at(self.settings.stall_factor, floor, None);
        let measured = self.classes[class.0].members[index].is_measured();
        measured && stalls_at.is_some_and(|at| at < now)
    }

    /// A device's work is another: it may be the next to stall.
    fn expect(&mut self, device: usize) {
        let stalls = self.stalls_at(device).unwrap_or(f64::INFINITY);
        self.next_stall = self.next_stall.min(stalls);
    }

    /// When a device could have to be taken out, so that others' work may have to be moved.
    pub(crate) fn next_stall(&self, now: f64) -> f64 {
        if self.next_stall >= now { self.next_stall + LEAST_PAUSE } else { f64::INFINITY }
    }

    pub(crate) fn stalls_at(&self, index: usize) -> Option<f64> {
        let assigned =
            self.classes.iter().filter_map(|class| class.members[index].assigned.oldest());
        let floor = self.settings.stall_floor.as_secs_f64();
        let oldest = assigned.min_by(f64::total_cmp);
        self.devices[index].stalls_at(self.settings.stall_factor, floor, oldest)
    }
}
