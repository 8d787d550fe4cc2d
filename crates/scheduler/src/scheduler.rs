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
use crate::class::{ClassId, ClassRecord, ClassStatistics, Member};
use crate::device::{DeviceRecord, DeviceSettings, DeviceStatistics, Health};
use crate::job::{Job, JobTerms, Size, Ticket, float};
use crate::policy::{Policy, level};
use crate::speed::Speed;

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
    pub(crate) devices: Vec<DeviceRecord>,
    pub(crate) classes: Vec<ClassRecord<T>>,
    room: Room,
    pub(crate) closed: bool,
    /// No device that serves stalls before; too early after it has finished its batch.
    pub(crate) next_stall: f64,
    /// What the busy class has received that has received least, or had when there was one.
    pub(crate) virtual_time: f64,
    /// The classes that a device serves, in the order of their turns.
    pub(crate) order: Vec<ClassId>,
    /// A group on its way between queues.
    moving: JobBatch<T>,
}

impl<T> Scheduler<T> {
    /// For these devices, of which there is at least one, all of which serve the first class.
    pub fn new(
        settings: Settings,
        policy: Box<dyn Policy>,
        devices: impl IntoIterator<Item = DeviceSettings>,
    ) -> Self {
        let (devices, members): (Vec<_>, Vec<_>) = devices
            .into_iter()
            .map(|DeviceSettings { batch_tokens, in_flight, speed }| {
                let mut member = Member::absent();
                member.serve(batch_tokens, speed);
                (DeviceRecord::new(in_flight), member)
            })
            .unzip();
        Self {
            room: Room::new(settings.capacity),
            settings,
            devices,
            classes: vec![ClassRecord::new(policy, 1.0, members)],
            closed: false,
            next_stall: f64::NEG_INFINITY,
            virtual_time: 0.0,
            order: Vec::with_capacity(1),
            moving: JobBatch::new(),
        }
    }

    /// Another class, which no device serves yet. While several have work, each gets devices' time in
    /// proportion to its `weight`, which is above 0; that of the first one is 1.
    pub fn add_class(&mut self, weight: f64) -> ClassId {
        let class = ClassId(self.classes.len());
        let weight = if weight.is_finite() && weight > 0.0 { weight } else { 1.0 };
        let policy = self.classes[0].policy.anew();
        let members = self.devices.iter().map(|_| Member::absent()).collect();
        self.classes.push(ClassRecord {
            received: self.virtual_time,
            ..ClassRecord::new(policy, weight, members)
        });
        self.changed();
        class
    }

    /// A device serves a class from now on, with batches of at most so many tokens.
    pub fn serve(&mut self, device: usize, class: ClassId, batch_tokens: usize, speed: Speed) {
        let record = &mut self.classes[class.0];
        let member = &mut record.members[device];
        member.serve(batch_tokens, speed);
        member.measured = record.snapshot.batches;
        self.changed();
    }

    /// A device gets no more work of a class. Batches that it has go on; what waits is others', or
    /// waits for as long as for any device: [`Settings::no_device_patience`].
    pub fn retire(&mut self, now: Duration, device: usize, class: ClassId) {
        self.classes[class.0].members[device].serves = false;
        self.changed();
        self.move_assigned_of(now.as_secs_f64(), device, class);
    }

    /// Makes room for `inputs` of a class, all or none, to be done by a deadline if there is one.
    ///
    /// Where nothing is admitted, any number is: a request larger than the capacity could otherwise
    /// never be served.
    ///
    /// # Errors
    /// [`Refused`] when no device serves the class, the capacity does not allow it now, or what waits
    /// already takes too long.
    pub fn admit(
        &mut self,
        now: Duration,
        class: ClassId,
        inputs: usize,
        deadline: Option<Duration>,
    ) -> Result<(), Refused> {
        if !self.is_served(now, class) {
            return Err(Refused::NoDevice);
        }
        // While nothing is known of any device's speed, there is nothing to go by.
        if let Some(deadline) = deadline.filter(|_| self.classes[class.0].fastest().is_some()) {
            let (predicted, left) = (self.backlog_time(now, class), deadline.saturating_sub(now));
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
    pub fn push(
        &mut self,
        now: Duration,
        class: ClassId,
        terms: JobTerms,
        jobs: impl IntoIterator<Item = Job<T>>,
    ) {
        let now = now.as_secs_f64();
        self.enter(class);
        self.route(now, Ticket::new(now, class, terms), jobs);
    }

    /// A device has run so much of a class, of what it had taken, in so much time. Says how many seconds
    /// it was believed to take, if anything was known.
    pub fn ran(
        &mut self,
        now: Duration,
        device: usize,
        class: ClassId,
        size: Size,
        took: Duration,
    ) -> Option<f64> {
        let now = now.as_secs_f64();
        let record = &mut self.classes[class.0];
        record.snapshot.ran(size);
        let measured = &mut record.members[device];
        let predicted = measured.speed.coefficients().map(|known| known.seconds(size));
        let served = self.devices[device].condition.serves();
        measured.measured = record.snapshot.batches;
        measured.speed.observe(size, took);
        let counters = &mut measured.counters;
        counters.batches += 1;
        counters.inputs += size.inputs as u64;
        counters.tokens += size.tokens as u64;
        counters.busy += took;
        self.devices[device].condition.succeeded();
        let believed = self.done(now, device, class, size.inputs);
        self.charge(class, device, took.as_secs_f64() - believed);
        if served {
            self.classes[class.0].snapshot.weights_changed();
            self.see(now, device);
        } else {
            self.changed();
        }
        predicted
    }

    /// A device has failed at jobs, all of one batch: each is tried once more, by another device where
    /// there is one that asks for it in time.
    pub fn failed(
        &mut self,
        now: Duration,
        device: usize,
        jobs: impl IntoIterator<Item = Job<T>>,
    ) -> Failed<T> {
        let now = now.as_secs_f64();
        let number = u32::try_from(device).unwrap_or(u32::MAX);
        let others_serve = self.others_serve(device);
        let (mut refused, mut inputs, mut class) = (Vec::new(), 0, ClassId::default());
        for job in jobs {
            inputs += 1;
            class = job.ticket.class;
            if job.failed_before() {
                refused.push(job);
            } else {
                let failing = &mut self.classes[class.0].members[device];
                failing.counters.retried += 1;
                failing.failed.push(Ticket { failed_on: Some(number), ..job.ticket }, [job]);
                failing.failed_at = now;
            }
        }
        let record = &mut self.classes[class.0];
        let failing = &mut record.members[device];
        failing.counters.failures += 1;
        failing.measured = record.snapshot.batches;
        record.retries = true;
        let taken_out = self.devices[device].condition.failed(now, others_serve);
        self.done(now, device, class, inputs);
        self.changed();
        if taken_out {
            self.move_assigned(now, device);
        }
        Failed { refused, taken_out }
    }

    /// So many inputs of a class that a device had taken will not be run, for a reason that says nothing
    /// about it.
    pub fn gave_up(&mut self, now: Duration, device: usize, class: ClassId, inputs: usize) {
        let believed = self.done(now.as_secs_f64(), device, class, inputs);
        self.charge(class, device, -believed);
        self.changed();
    }

    /// A device has so many inputs no longer. Says how many seconds they should have taken.
    fn done(&mut self, now: f64, device: usize, class: ClassId, inputs: usize) -> f64 {
        let record = &mut self.classes[class.0];
        record.running = record.running.saturating_sub(inputs);
        self.devices[device].done(now, class, inputs)
    }

    /// Something else than its batches says that a device is not to be relied on: it is taken out, if
    /// another serves. Says whether it was.
    pub fn take_out(&mut self, now: Duration, device: usize) -> bool {
        let now = now.as_secs_f64();
        if !self.devices[device].condition.serves() || !self.others_serve(device) {
            return false;
        }
        self.devices[device].condition.take_out(now);
        self.changed();
        self.move_assigned(now, device);
        true
    }

    /// A device shall get no more work, even if it is the last.
    pub fn drain(&mut self, now: Duration, device: usize) {
        let draining = &mut self.devices[device];
        draining.condition.drain(draining.is_idle());
        self.changed();
        self.move_assigned(now.as_secs_f64(), device);
    }

    /// A device gets work again.
    pub fn restore(&mut self, device: usize) {
        self.devices[device].condition.restore();
        self.changed();
    }

    /// A device will never ask for work again. What it had and didn't report is not this one's to know.
    pub fn lose(&mut self, now: Duration, device: usize) {
        self.devices[device].condition.lose();
        self.changed();
        self.move_assigned(now.as_secs_f64(), device);
    }

    /// Whether what is admitted of a class will be run: some device serves it, or the only one that
    /// could is out but moves, and so is given what there is.
    pub fn is_served(&self, now: Duration, class: ClassId) -> bool {
        self.served(now.as_secs_f64(), class)
    }

    fn served(&self, now: f64, class: ClassId) -> bool {
        let record = &self.classes[class.0];
        let last_resort = |index: usize| {
            let late = || self.stalls_at(index).is_some_and(|at| at < now);
            let out = self.devices[index].condition.health() == Health::Out;
            record.members[index].serves && out && !late()
        };
        record.serving(&self.devices).next().is_some() || (0..self.devices.len()).any(last_resort)
    }

    /// The most tokens that a device's batches of a class may have from now on.
    pub fn set_batch_tokens(&mut self, device: usize, class: ClassId, tokens: usize) {
        let record = &mut self.classes[class.0];
        record.members[device].batch_tokens = tokens;
        record.snapshot.weights_changed();
    }

    /// Goes on by another policy, which gets everything that waits.
    pub fn set_policy(&mut self, now: Duration, policy: Box<dyn Policy>) {
        for class in &mut self.classes[1..] {
            class.policy = policy.anew();
        }
        self.classes[0].policy = policy;
        self.changed();
        for class in 0..self.classes.len() {
            let waiting = std::mem::replace(&mut self.classes[class].common, Backlog::new());
            self.reroute(now.as_secs_f64(), waiting);
            for device in 0..self.devices.len() {
                let assigned = &mut self.classes[class].members[device].assigned;
                let waiting = std::mem::replace(assigned, Backlog::new());
                self.reroute(now.as_secs_f64(), waiting);
            }
        }
    }

    /// Looks after what no event tells: takes out devices that don't move, and work whose deadline has
    /// passed, or that no device has served for too long, which goes to `batch.dropped`.
    pub fn check(&mut self, now: Duration, batch: &mut JobBatch<T>) {
        let now = now.as_secs_f64();
        self.notice_stalls(now);
        for class in 0..self.classes.len() {
            let forsaken = self.is_forsaken(now, ClassId(class));
            let record = &mut self.classes[class];
            record.common.expire(now, batch);
            for member in &mut record.members {
                member.assigned.expire(now, batch);
                member.failed.expire(now, batch);
            }
            if forsaken {
                record.common.forsake(batch);
                for member in &mut record.members {
                    member.assigned.forsake(batch);
                    member.failed.forsake(batch);
                }
            }
        }
        self.changed();
    }

    /// Whether nobody will run what waits of a class. Where no more is admitted, drained devices finish
    /// it.
    fn is_forsaken(&mut self, now: f64, class: ClassId) -> bool {
        if self.devices.iter().all(|device| device.condition.is_gone()) {
            return true;
        }
        let finished = self.closed && self.classes[class.0].has_members();
        if finished || self.served(now, class) {
            self.classes[class.0].forsaken = None;
            return false;
        }
        let since = *self.classes[class.0].forsaken.get_or_insert(now);
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
        let add = |a: (usize, usize), b: (usize, usize)| (a.0 + b.0, a.1 + b.1);
        self.classes.iter().map(ClassRecord::backlog).fold((0, 0), add)
    }

    /// How long the devices that serve a class will together take for what they run and what waits of
    /// it; a second if nothing is known of them.
    pub fn backlog_time(&mut self, now: Duration, class: ClassId) -> Duration {
        self.look(now.as_secs_f64(), class);
        let record = &mut self.classes[class.0];
        let (_, tokens) = record.backlog();
        let known = record.fastest().is_some();
        let seconds = if known { level(&record.snapshot.views, float(tokens)) } else { 1.0 };
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(1))
    }

    /// The policy's name.
    pub fn policy(&self) -> &'static str {
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
        self.look(now.as_secs_f64(), class);
        let record = &self.classes[class.0];
        let each = record.members.iter().zip(&self.devices).zip(&record.snapshot.views);
        each.map(|((member, device), view)| member.statistics(device, view)).collect()
    }

    /// What a class has had and what waits of it.
    pub fn class_statistics(&self, class: ClassId) -> ClassStatistics {
        self.classes[class.0].statistics()
    }

    /// Queues a group where the policy wants it; in common where no device serves.
    fn route(&mut self, now: f64, ticket: Ticket, jobs: impl IntoIterator<Item = Job<T>>) {
        let class = ticket.class;
        let record = &self.classes[class.0];
        if record.policy.assigns() && record.serving(&self.devices).next().is_some() {
            self.look_of_late(now, class);
            let record = &mut self.classes[class.0];
            let device = record.policy.assign(&record.snapshot.views);
            record.members[device].assigned.push(ticket, jobs);
            self.see(now, device);
        } else {
            let record = &mut self.classes[class.0];
            record.common.push(ticket, jobs);
            record.snapshot.backlog_changed();
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
        for class in 0..self.classes.len() {
            self.move_assigned_of(now, device, ClassId(class));
        }
    }

    fn move_assigned_of(&mut self, now: f64, device: usize, class: ClassId) {
        let member = &mut self.classes[class.0].members[device];
        member.counters.moved += member.assigned.inputs() as u64;
        let waiting = std::mem::replace(&mut member.assigned, Backlog::new());
        self.reroute(now, waiting);
    }

    /// Whether all that a device serves is served by others, too.
    pub(crate) fn others_serve(&self, device: usize) -> bool {
        let mut classes = self.classes.iter().filter(|class| class.members[device].serves);
        classes.all(|class| class.others_serve(device, &self.devices))
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
