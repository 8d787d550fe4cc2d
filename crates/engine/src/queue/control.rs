//! What is asked of the queue beside the way of requests: by operators, by models that come and go, and
//! by those who look after devices.

use std::sync::PoisonError;
use std::time::Duration;

use vecmill_scheduler::policy::PolicyName;
use vecmill_scheduler::{ClassId, DeviceStatistics, JobBatch, Speed};

use super::{Queue, Waiting};
use crate::error::RequestError;

/// How often it is looked whether everything is answered, where no event tells.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl<W: Waiting> Queue<W> {
    /// What a request would hear that is not served by any device; `Ok` if one serves any of the classes.
    pub(crate) fn serves(&self, classes: &[ClassId]) -> Result<(), RequestError> {
        let scheduler = self.lock();
        match () {
            () if scheduler.is_closed() => Err(RequestError::Stopped),
            () if classes.iter().any(|&class| scheduler.is_served(self.now(), class)) => Ok(()),
            () => Err(self.no_device(&scheduler)),
        }
    }

    /// Looks for devices that don't move, and for work that is too late.
    pub(crate) fn check(&self) {
        let mut batch = JobBatch::new();
        self.lock().check(self.now(), &mut batch);
        self.let_go(&mut batch);
        self.changed.notify_all();
    }

    /// A device's thread has ended before its work was over: nobody asks for it any more.
    pub(crate) fn lose(&self, device: usize) {
        self.lock().lose(self.now(), device);
        self.check();
    }

    /// Waits until all that was accepted is answered, also where no device's thread is left to do so.
    pub(crate) fn finish(&self) {
        let mut scheduler = self.lock();
        while !scheduler.is_over() {
            drop(scheduler);
            self.check();
            let waited = self.changed.wait_timeout(self.lock(), LOOK_AGAIN);
            scheduler = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A device is not to be relied on, for another reason than its batches. Says whether that took it
    /// out.
    pub(crate) fn take_out(&self, device: usize) -> bool {
        let taken_out = self.lock().take_out(self.now(), device);
        self.changed.notify_all();
        taken_out
    }

    /// The most tokens that a device's batches of a class may have from now on.
    pub(crate) fn set_batch_tokens(&self, device: usize, class: ClassId, tokens: usize) {
        self.lock().set_batch_tokens(device, class, tokens);
    }

    /// Another class of work, which no device serves yet.
    pub(crate) fn add_class(&self) -> ClassId {
        self.lock().add_class(1.0)
    }

    /// How much of the devices' time a class gets while others have work, in proportion.
    pub(crate) fn set_weight(&self, class: ClassId, weight: f64) {
        self.lock().set_weight(class, weight);
    }

    /// The counts of a model that has gone begin anew, should it come again.
    pub(crate) fn forget(&self, model: &str) {
        self.metrics.forget(model, &self.names);
    }

    /// A device serves a class from now on.
    pub(crate) fn serve(&self, device: usize, class: ClassId, batch_tokens: usize, speed: Speed) {
        self.lock().serve(device, class, batch_tokens, speed);
        self.changed.notify_all();
    }

    /// A device begins no more batches of a class.
    pub(crate) fn retire(&self, device: usize, class: ClassId) {
        self.lock().retire(self.now(), device, class);
        self.changed.notify_all();
    }

    /// A device shall finish what it has begun, and get nothing more.
    pub(crate) fn drain(&self, device: usize) {
        self.lock().drain(self.now(), device);
        self.changed.notify_all();
    }

    /// A device gets work again.
    pub(crate) fn restore(&self, device: usize) {
        self.lock().restore(device);
        self.changed.notify_all();
    }

    pub(crate) fn set_policy(&self, name: PolicyName) {
        self.lock().set_policy(self.now(), name.policy());
        self.changed.notify_all();
    }

    pub(crate) fn policy(&self) -> PolicyName {
        self.lock().policy()
    }

    /// Refuses new requests from now on.
    pub(crate) fn close(&self) {
        self.lock().close();
        self.changed.notify_all();
    }

    /// Inputs and tokens that wait for a device.
    pub(crate) fn backlog(&self) -> (usize, usize) {
        self.lock().backlog()
    }

    /// Of each device, for a class.
    pub(crate) fn statistics_of(&self, class: ClassId) -> Vec<DeviceStatistics> {
        let now = self.now();
        self.lock().statistics(now, class)
    }

    /// Of each device: what it is to the first class that it serves, and what it has done for all.
    pub(crate) fn statistics(&self) -> Vec<DeviceStatistics> {
        let now = self.now();
        let mut scheduler = self.lock();
        let classes: Vec<ClassId> = scheduler.classes().collect();
        let each = classes.into_iter().map(|class| scheduler.statistics(now, class));
        each.reduce(|all, more| all.into_iter().zip(more).map(|(a, b)| a.and(&b)).collect())
            .unwrap_or_default()
    }
}
