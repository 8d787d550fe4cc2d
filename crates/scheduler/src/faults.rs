//! Devices that fail or don't move, and what becomes of their work.
//!
//! What a device failed at is tried once more, apart from all else and by another device where there is
//! one. A device that keeps failing, or doesn't move, is taken out (`health` says for how long), and what
//! was assigned to it is done by others. Work that nobody will do is dropped.

use std::time::Duration;

use crate::backlog::Wish;
use crate::class::LEAST_PAUSE;
use crate::health::Health;
use crate::job::{ClassId, Dropped, Job, JobBatch, Ticket};
use crate::lengths::Lengths;
use crate::scheduler::Scheduler;

/// What becomes of a batch that a device failed at, and of the device.
#[derive(Debug)]
#[must_use = "the callers of refused jobs are to be told"]
pub struct Failed<T> {
    /// Jobs that have failed for the second time.
    pub refused: Vec<Job<T>>,
    /// Whether the device has been taken out.
    pub taken_out: bool,
}

impl<T> Scheduler<T> {
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
        failing.measured = record.rates.batches;
        record.retries = true;
        let taken_out = self.devices[device].condition.failed(now, others_serve);
        self.done(now, device, class, inputs);
        self.invalidate();
        if taken_out {
            self.move_assigned(now, device);
        }
        Failed { refused, taken_out }
    }

    /// What another device failed at, apart from all else, so that an input that devices fail at
    /// takes no others with it. The device itself tries again only where there is no other, or where
    /// none has come for it: one that hangs before it asks is not known to. Says in how many seconds
    /// that will be.
    pub(crate) fn take_failed(
        &mut self,
        class: ClassId,
        now: f64,
        device: usize,
        judge: &mut impl FnMut(&Job<T>) -> Result<(), Dropped>,
        batch: &mut JobBatch<T>,
    ) -> f64 {
        let record = &mut self.classes[class.0];
        if !record.retries {
            return f64::INFINITY;
        }
        let limit = record.members[device].batch_tokens;
        let wish = Wish { skip: 0, budget: limit, limit, lengths: Lengths::Any };
        let alone = !record.others_serve(device, &self.devices);
        let patience = self.settings.no_device_patience.as_secs_f64();
        let (mut again, mut retries) = (f64::INFINITY, false);
        for (index, other) in record.members.iter_mut().enumerate() {
            let left =
                if index == device && !alone { other.failed_at + patience - now } else { 0.0 };
            if batch.jobs.is_empty() && other.failed.inputs() > 0 && left <= 0.0 {
                other.failed.take(&wish, judge, batch);
            }
            if other.failed.inputs() > 0 {
                retries = true;
                again = again.min(left.max(0.0));
            }
        }
        record.retries = retries;
        again
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
        self.invalidate();
    }

    /// Whether nobody will run what waits of a class. Where no more is admitted, drained devices finish
    /// it.
    fn is_forsaken(&mut self, now: f64, class: ClassId) -> bool {
        if self.devices.iter().all(|device| device.condition.is_gone()) {
            return true;
        }
        let has_members = self.classes[class.0].members.iter().any(|member| member.serves);
        let finished = self.closed && has_members;
        if finished || self.served(now, class) {
            self.classes[class.0].forsaken = None;
            return false;
        }
        let since = *self.classes[class.0].forsaken.get_or_insert(now);
        now - since >= self.settings.no_device_patience.as_secs_f64()
    }

    /// Whether what is admitted of a class will be run: some device serves it, or the only one that
    /// could is out but moves, and so is given what there is.
    pub fn is_served(&self, now: Duration, class: ClassId) -> bool {
        self.served(now.as_secs_f64(), class)
    }

    pub(crate) fn served(&self, now: f64, class: ClassId) -> bool {
        let record = &self.classes[class.0];
        let last_resort = |index: usize| {
            let late = || self.stalls_at(index).is_some_and(|at| at < now);
            let out = self.devices[index].condition.health() == Health::Out;
            record.members[index].serves && out && !late()
        };
        record.serving(&self.devices).next().is_some() || (0..self.devices.len()).any(last_resort)
    }

    /// Whether all that a device serves is served by others, too.
    pub(crate) fn others_serve(&self, device: usize) -> bool {
        let mut classes = self.classes.iter().filter(|class| class.members[device].serves);
        classes.all(|class| class.others_serve(device, &self.devices))
    }

    /// Takes out devices that should have moved by now.
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
                self.invalidate();
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
    pub(crate) fn expect_stall(&mut self, device: usize) {
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
