//! The scheduler: what waits, what each device does, and who gets what next.
//!
//! - This file takes in what happens: requests, which it may refuse at once, batches that were run or
//!   failed at, an operator's wishes. `deal` answers devices that ask for work, by how the devices
//!   stand (`snapshot`).
//!
//! The choice behind it: devices pull. A device asks when it has room and is told to take a batch or
//! to wait, so that what is decided is always decided by what is known at the last moment.

use std::time::Duration;

use crate::backlog::{Backlog, JobBatch};
use crate::device::{DeviceRecord, DeviceSettings, DeviceStatistics, Health};
use crate::job::{Job, JobTerms, Size, Ticket, float};
use crate::policy::{Policy, level};
use crate::snapshot::Snapshot;

/// What a scheduler goes by.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Inputs that may be admitted and not answered.
    pub capacity: usize,
    /// Bulk work that has waited so long no longer stands behind interactive work.
    pub bulk_age: Duration,
    /// A batch that takes so many times what it should counts as stalled…
    pub stall_factor: f64,
    /// …if it takes so much more beside that.
    pub stall_floor: Duration,
    /// The same for the only device that serves: without it nothing does.
    pub stall_floor_alone: Duration,
    /// So long what was accepted waits while no device serves, for one to be restored; and so long what
    /// a device failed at waits for another one.
    pub no_device_patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            capacity: 8192,
            bulk_age: Duration::from_secs(5),
            stall_factor: 10.0,
            stall_floor: Duration::from_secs(5),
            stall_floor_alone: Duration::from_secs(60),
            no_device_patience: Duration::from_secs(10),
        }
    }
}

/// There is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{admitted} inputs are admitted already, of at most {capacity}")]
pub struct Full {
    /// Inputs admitted and not yet released.
    pub admitted: usize,
    /// The most that may be.
    pub capacity: usize,
}

/// Why a request is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no room.
    #[error(transparent)]
    Full(#[from] Full),
    /// No device serves.
    #[error("no device serves")]
    NoDevice,
    /// It would not be done in time.
    #[error("it would be done in {predicted:?}, and has only {left:?}; allow more, or send less")]
    TooLate {
        /// How long it would take.
        predicted: Duration,
        /// How long it may.
        left: Duration,
    },
}

/// What becomes of a batch that a device failed at, and of the device.
#[derive(Debug)]
pub struct Failed<T> {
    /// Jobs that have failed for the second time.
    pub refused: Vec<Job<T>>,
    /// Whether the device has been taken out.
    pub taken_out: bool,
}

/// Everything that is decided about accepted work, as a state machine. The time is handed to it, from
/// any beginning, and must not run backwards.
#[derive(Debug)]
pub struct Scheduler<T> {
    pub(crate) settings: Settings,
    pub(crate) policy: Box<dyn Policy>,
    pub(crate) devices: Vec<DeviceRecord<T>>,
    /// What wasn't assigned to a device.
    pub(crate) common: Backlog<T>,
    room: Room,
    pub(crate) closed: bool,
    pub(crate) snapshot: Snapshot,
    /// Whether something may wait that a device has failed at.
    pub(crate) retries: bool,
    /// Since when no device has served, as far as was looked, if none does.
    pub(crate) forsaken: Option<f64>,
    /// A group on its way between queues.
    pub(crate) moving: JobBatch<T>,
}

impl<T> Scheduler<T> {
    /// For these devices, of which there is at least one.
    pub fn new(
        settings: Settings,
        policy: Box<dyn Policy>,
        devices: impl IntoIterator<Item = DeviceSettings>,
    ) -> Self {
        let devices: Vec<_> = devices.into_iter().map(DeviceRecord::new).collect();
        Self {
            room: Room::new(settings.capacity),
            settings,
            policy,
            snapshot: Snapshot::new(devices.len()),
            devices,
            common: Backlog::new(),
            closed: false,
            retries: false,
            forsaken: None,
            moving: JobBatch::new(),
        }
    }

    /// Makes room for `inputs`, all or none, to be done by a deadline if there is one.
    ///
    /// Where nothing is admitted, any number is: a request larger than the capacity could otherwise
    /// never be served.
    ///
    /// # Errors
    /// [`Refused`] when no device serves, the capacity does not allow it now, or what waits already
    /// takes too long.
    pub fn admit(
        &mut self,
        now: Duration,
        inputs: usize,
        deadline: Option<Duration>,
    ) -> Result<(), Refused> {
        if !self.is_served(now) {
            return Err(Refused::NoDevice);
        }
        // While nothing is known of any device's speed, there is nothing to go by.
        if let Some(deadline) = deadline.filter(|_| self.fastest().is_some()) {
            let (predicted, left) = (self.backlog_time(now), deadline.saturating_sub(now));
            if predicted > left {
                return Err(Refused::TooLate { predicted, left });
            }
        }
        Ok(self.room.admit(inputs)?)
    }

    /// Frees the room of `inputs` that have been answered or given up.
    pub fn release(&mut self, inputs: usize) {
        self.room.release(inputs);
    }

    /// Inputs admitted and not yet released.
    pub fn admitted(&self) -> usize {
        self.room.admitted()
    }

    /// Queues what is admitted: a group, kept together if it is small.
    pub fn push(&mut self, now: Duration, terms: JobTerms, jobs: impl IntoIterator<Item = Job<T>>) {
        let now = now.as_secs_f64();
        self.route(now, Ticket::new(now, terms), jobs);
    }

    /// A device has run so much of what it had taken, in so much time. Says how many seconds it was
    /// believed to take, if anything was known.
    pub fn ran(&mut self, now: Duration, device: usize, size: Size, took: Duration) -> Option<f64> {
        self.snapshot.ran(size);
        let measured = &mut self.devices[device];
        let predicted = measured.settings.speed.coefficients().map(|known| known.seconds(size));
        let served = measured.condition.serves();
        measured.measured = self.snapshot.batches;
        measured.settings.speed.observe(size, took);
        measured.condition.succeeded();
        measured.done(now.as_secs_f64(), size.inputs);
        let counters = &mut measured.counters;
        counters.batches += 1;
        counters.inputs += size.inputs as u64;
        counters.tokens += size.tokens as u64;
        counters.busy += took;
        if served {
            self.snapshot.weights_changed();
            self.see(now.as_secs_f64(), device);
        } else {
            self.snapshot.changed();
        }
        predicted
    }

    /// A device has failed at jobs: each is tried once more, by another device where there is one that
    /// asks for it in time.
    pub fn failed(
        &mut self,
        now: Duration,
        device: usize,
        jobs: impl IntoIterator<Item = Job<T>>,
    ) -> Failed<T> {
        let now = now.as_secs_f64();
        let number = u32::try_from(device).unwrap_or(u32::MAX);
        let others_serve = self.others_serve(device);
        let failing = &mut self.devices[device];
        let (mut refused, mut inputs) = (Vec::new(), 0);
        for job in jobs {
            inputs += 1;
            if job.failed_before() {
                refused.push(job);
            } else {
                failing.counters.retried += 1;
                failing.failed.push(Ticket { failed_on: Some(number), ..job.ticket }, [job]);
                failing.failed_at = now;
            }
        }
        failing.counters.failures += 1;
        let taken_out = failing.condition.failed(now, others_serve);
        failing.measured = self.snapshot.batches;
        failing.done(now, inputs);
        self.retries = true;
        self.snapshot.changed();
        if taken_out {
            self.move_assigned(now, device);
        }
        Failed { refused, taken_out }
    }

    /// So many inputs that a device had taken will not be run, for a reason that says nothing about it.
    pub fn gave_up(&mut self, now: Duration, device: usize, inputs: usize) {
        self.devices[device].done(now.as_secs_f64(), inputs);
        self.snapshot.changed();
    }

    /// Something else than its batches says that a device is not to be relied on: it is taken out, if
    /// another serves. Says whether it was.
    pub fn take_out(&mut self, now: Duration, device: usize) -> bool {
        let now = now.as_secs_f64();
        if !self.devices[device].condition.serves() || !self.others_serve(device) {
            return false;
        }
        self.devices[device].condition.take_out(now);
        self.snapshot.changed();
        self.move_assigned(now, device);
        true
    }

    /// A device shall get no more work, even if it is the last.
    pub fn drain(&mut self, now: Duration, device: usize) {
        let draining = &mut self.devices[device];
        draining.condition.drain(draining.is_idle());
        self.snapshot.changed();
        self.move_assigned(now.as_secs_f64(), device);
    }

    /// A device gets work again.
    pub fn restore(&mut self, device: usize) {
        self.devices[device].condition.restore();
        self.snapshot.changed();
    }

    /// A device will never ask for work again. What it had and didn't report is not this one's to know.
    pub fn lose(&mut self, now: Duration, device: usize) {
        self.devices[device].condition.lose();
        self.snapshot.changed();
        self.move_assigned(now.as_secs_f64(), device);
    }

    /// Whether what is admitted will be run: some device serves, or the only one that could is out but
    /// moves, and so is given what there is.
    pub fn is_served(&self, now: Duration) -> bool {
        self.served(now.as_secs_f64())
    }

    fn served(&self, now: f64) -> bool {
        let devices = || self.devices.iter();
        let serves = |device: &DeviceRecord<T>| device.condition.serves();
        let last_resort = |device: &DeviceRecord<T>| {
            let late = || self.stalls_at(device).is_some_and(|at| at < now);
            device.condition.health() == Health::Out && !late()
        };
        devices().any(serves) || devices().any(last_resort)
    }

    /// The most tokens that a device's batches may have from now on.
    pub fn set_batch_tokens(&mut self, device: usize, tokens: usize) {
        self.devices[device].settings.batch_tokens = tokens;
        self.snapshot.weights_changed();
    }

    /// Goes on by another policy, which gets everything that waits.
    pub fn set_policy(&mut self, now: Duration, policy: Box<dyn Policy>) {
        self.policy = policy;
        self.snapshot.changed();
        let waiting = std::mem::replace(&mut self.common, Backlog::new());
        self.reroute(now.as_secs_f64(), waiting);
        for device in 0..self.devices.len() {
            let waiting = std::mem::replace(&mut self.devices[device].assigned, Backlog::new());
            self.reroute(now.as_secs_f64(), waiting);
        }
    }

    /// Looks after what no event tells: takes out devices that don't move, and work whose deadline has
    /// passed, or that no device has served for too long, which goes to `batch.dropped`.
    pub fn check(&mut self, now: Duration, batch: &mut JobBatch<T>) {
        let now = now.as_secs_f64();
        self.notice_stalls(now);
        self.common.expire(now, batch);
        for device in &mut self.devices {
            device.assigned.expire(now, batch);
            device.failed.expire(now, batch);
        }
        if self.is_forsaken(now) {
            self.common.forsake(batch);
            for device in &mut self.devices {
                device.assigned.forsake(batch);
                device.failed.forsake(batch);
            }
        }
        self.snapshot.changed();
    }

    /// Whether nobody will run what waits. Where no more is admitted, drained devices finish it.
    fn is_forsaken(&mut self, now: f64) -> bool {
        if self.devices.iter().all(|device| device.condition.is_gone()) {
            return true;
        }
        if self.closed || self.served(now) {
            self.forsaken = None;
            return false;
        }
        let since = *self.forsaken.get_or_insert(now);
        now - since >= self.settings.no_device_patience.as_secs_f64()
    }

    /// No more will be admitted.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Whether no more will be admitted.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether everything is answered and no more comes.
    pub fn is_over(&self) -> bool {
        self.closed && self.room.admitted() == 0
    }

    /// Inputs and tokens that wait for a device.
    pub fn backlog(&self) -> (usize, usize) {
        let devices = || self.devices.iter();
        let inputs: usize =
            devices().map(|device| device.assigned.inputs() + device.failed.inputs()).sum();
        let tokens: usize =
            devices().map(|device| device.assigned.tokens() + device.failed.tokens()).sum();
        (inputs + self.common.inputs(), tokens + self.common.tokens())
    }

    /// How long the devices that serve will together take for what they run and what waits; a second
    /// if nothing is known of them.
    pub fn backlog_time(&mut self, now: Duration) -> Duration {
        let (_, tokens) = self.backlog();
        self.look(now.as_secs_f64());
        let known = self.fastest().is_some();
        let seconds = if known { level(&self.snapshot.views, float(tokens)) } else { 1.0 };
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(1))
    }

    /// The policy's name.
    pub fn policy(&self) -> &'static str {
        self.policy.name()
    }

    /// How a device stands.
    pub fn health(&self, device: usize) -> Health {
        self.devices[device].condition.health()
    }

    /// How each device stands and what it has done.
    pub fn statistics(&mut self, now: Duration) -> Vec<DeviceStatistics> {
        self.look(now.as_secs_f64());
        let devices = self.devices.iter().zip(&self.snapshot.views);
        devices.map(|(device, view)| device.statistics(view)).collect()
    }

    /// Queues a group where the policy wants it; in common where no device serves.
    fn route(&mut self, now: f64, ticket: Ticket, jobs: impl IntoIterator<Item = Job<T>>) {
        if self.policy.assigns() && self.devices.iter().any(|device| device.condition.serves()) {
            self.look_of_late(now);
            let device = self.policy.assign(&self.snapshot.views);
            self.devices[device].assigned.push(ticket, jobs);
            self.see(now, device);
        } else {
            self.common.push(ticket, jobs);
            self.snapshot.backlog_changed();
        }
    }

    fn reroute(&mut self, now: f64, mut waiting: Backlog<T>) {
        let mut group = std::mem::take(&mut self.moving);
        while let Some(ticket) = waiting.pop(&mut group) {
            self.route(now, ticket, group.jobs.drain(..));
            group.clear();
        }
        self.moving = group;
    }

    /// Has others do what was assigned to a device.
    pub(crate) fn move_assigned(&mut self, now: f64, device: usize) {
        let device = &mut self.devices[device];
        device.counters.moved += device.assigned.inputs() as u64;
        let waiting = std::mem::replace(&mut device.assigned, Backlog::new());
        self.reroute(now, waiting);
    }

    pub(crate) fn others_serve(&self, device: usize) -> bool {
        let mut others = self.devices.iter().enumerate().filter(|&(index, _)| index != device);
        others.any(|(_, other)| other.condition.serves())
    }
}

/// Room for inputs, from before they are tokenised until they are answered.
#[derive(Debug, Clone)]
struct Room {
    admitted: usize,
    capacity: usize,
}

impl Room {
    fn new(capacity: usize) -> Self {
        Self { admitted: 0, capacity }
    }

    fn admitted(&self) -> usize {
        self.admitted
    }

    /// Makes room for all or none. Where nothing is admitted, any number is: a request larger than
    /// the capacity could otherwise never be served.
    fn admit(&mut self, inputs: usize) -> Result<(), Full> {
        if self.admitted > 0 && self.admitted.saturating_add(inputs) > self.capacity {
            return Err(Full { admitted: self.admitted, capacity: self.capacity });
        }
        self.admitted += inputs;
        Ok(())
    }

    fn release(&mut self, inputs: usize) {
        self.admitted = self.admitted.saturating_sub(inputs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_room_says_so_and_an_empty_one_takes_anything() {
        let mut room = Room::new(10);
        room.admit(8).unwrap();
        assert_eq!(room.admit(3), Err(Full { admitted: 8, capacity: 10 }));
        room.admit(2).unwrap();
        room.release(10);
        room.admit(50).unwrap();
        assert!(room.admit(1).is_err());
    }
}
