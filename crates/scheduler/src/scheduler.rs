//! The scheduler: what waits, what each device does, and who gets what next.
//!
//! - This file takes in what happens to work: requests, which it may refuse at once, and batches that were
//!   run. `deal` answers devices that ask, by what the class of the work has and how it sees the devices
//!   (`class`).
//! - `faults` has what goes wrong, `operate` what an operator changes, `statistics` what is told.
//!
//! The choice behind it: devices pull. A device asks when it has room and is told to take a batch or
//! to wait, so that what is decided is always decided by what is known at the last moment.

use std::time::Duration;

use crate::class::{ClassRecord, DeviceRecord, Member};
use crate::job::{ClassId, Job, JobBatch, JobTerms, Size, Ticket};
use crate::policy::Policy;
use crate::room::{Refused, Room};
use crate::settings::{DeviceSettings, Settings};

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
    pub(crate) moving: JobBatch<T>,
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
        if let Some(deadline) = deadline.filter(|_| self.classes[class.0].rates().fastest.is_some())
        {
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
        record.rates.ran(size);
        let member = &mut record.members[device];
        let predicted = member.speed.coefficients().map(|known| known.seconds(size));
        member.measured = record.rates.batches;
        member.ran(size, took);
        let served = self.devices[device].condition.serves();
        self.devices[device].condition.succeeded();
        let believed = self.done(now, device, class, size.inputs);
        self.charge(class, device, took.as_secs_f64() - believed);
        if served {
            self.classes[class.0].invalidate_speeds();
            self.refresh_device(now, device);
        } else {
            self.invalidate();
        }
        predicted
    }

    /// So many inputs of a class that a device had taken will not be run, for a reason that says nothing
    /// about it.
    pub fn gave_up(&mut self, now: Duration, device: usize, class: ClassId, inputs: usize) {
        let believed = self.done(now.as_secs_f64(), device, class, inputs);
        self.charge(class, device, -believed);
        self.invalidate();
    }

    /// A device has so many inputs no longer. Says how many seconds they should have taken.
    pub(crate) fn done(&mut self, now: f64, device: usize, class: ClassId, inputs: usize) -> f64 {
        let record = &mut self.classes[class.0];
        record.running = record.running.saturating_sub(inputs);
        self.devices[device].done(now, class, inputs)
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

    /// Queues a group where the policy wants it; in common where no device serves.
    pub(crate) fn route(
        &mut self,
        now: f64,
        ticket: Ticket,
        jobs: impl IntoIterator<Item = Job<T>>,
    ) {
        let class = ticket.class;
        let record = &self.classes[class.0];
        if record.policy.assigns() && record.serving(&self.devices).next().is_some() {
            let record = &mut self.classes[class.0];
            record.refresh_roughly(now, &self.devices);
            let device = record.policy.assign(&record.snapshot.views);
            record.members[device].assigned.push(ticket, jobs);
            self.refresh_device(now, device);
        } else {
            let record = &mut self.classes[class.0];
            record.common.push(ticket, jobs);
            record.invalidate_policy();
        }
    }

    /// A device's work alone has changed.
    pub(crate) fn refresh_device(&mut self, now: f64, device: usize) {
        for class in &mut self.classes {
            class.refresh_device(now, device, &self.devices[device]);
        }
        self.expect_stall(device);
    }

    /// Anything may have changed.
    pub(crate) fn invalidate(&mut self) {
        self.classes.iter_mut().for_each(ClassRecord::invalidate);
        self.next_stall = f64::NEG_INFINITY;
    }
}
