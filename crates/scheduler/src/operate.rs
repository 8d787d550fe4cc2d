//! What an operator and the models that come and go ask of a scheduler: classes, devices, settings.

use std::time::Duration;

use crate::backlog::Backlog;
use crate::class::{ClassRecord, Member};
use crate::job::ClassId;
use crate::policy::Policy;
use crate::scheduler::Scheduler;
use crate::speed::Speed;

impl<T> Scheduler<T> {
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
        self.invalidate();
        class
    }

    /// A device serves a class from now on, with batches of at most so many tokens.
    pub fn serve(&mut self, device: usize, class: ClassId, batch_tokens: usize, speed: Speed) {
        let record = &mut self.classes[class.0];
        let member = &mut record.members[device];
        member.serve(batch_tokens, speed);
        member.measured = record.rates.batches;
        self.invalidate();
    }

    /// A device gets no more work of a class. Batches that it has go on; what waits is others', or
    /// waits for as long as for any device: [`no_device_patience`](crate::Settings::no_device_patience).
    pub fn retire(&mut self, now: Duration, device: usize, class: ClassId) {
        self.classes[class.0].members[device].serves = false;
        self.invalidate();
        self.move_assigned_of(now.as_secs_f64(), device, class);
    }

    /// Something else than its batches says that a device is not to be relied on: it is taken out, if
    /// another serves. Says whether it was.
    pub fn take_out(&mut self, now: Duration, device: usize) -> bool {
        let now = now.as_secs_f64();
        if !self.devices[device].condition.serves() || !self.others_serve(device) {
            return false;
        }
        self.devices[device].condition.take_out(now);
        self.invalidate();
        self.move_assigned(now, device);
        true
    }

    /// A device shall get no more work, even if it is the last.
    pub fn drain(&mut self, now: Duration, device: usize) {
        let draining = &mut self.devices[device];
        draining.condition.drain(draining.is_idle());
        self.invalidate();
        self.move_assigned(now.as_secs_f64(), device);
    }

    /// A device gets work again.
    pub fn restore(&mut self, device: usize) {
        self.devices[device].condition.restore();
        self.invalidate();
    }

    /// A device will never ask for work again. What it had and didn't report is not this one's to know.
    pub fn lose(&mut self, now: Duration, device: usize) {
        self.devices[device].condition.lose();
        self.invalidate();
        self.move_assigned(now.as_secs_f64(), device);
    }

    /// The most tokens that a device's batches of a class may have from now on.
    pub fn set_batch_tokens(&mut self, device: usize, class: ClassId, tokens: usize) {
        let record = &mut self.classes[class.0];
        record.members[device].batch_tokens = tokens;
        record.invalidate_speeds();
    }

    /// Goes on by another policy, which gets everything that waits.
    pub fn set_policy(&mut self, now: Duration, policy: Box<dyn Policy>) {
        for class in &mut self.classes[1..] {
            class.policy = policy.anew();
        }
        self.classes[0].policy = policy;
        self.invalidate();
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
}
