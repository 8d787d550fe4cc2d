//! The scheduler between threads: behind a lock, with a clock, and a condition to wait on.
//!
//! The choice behind it: what is decided is `vecmill_scheduler`'s, a state machine; here is only what
//! it does not know. Whatever it drops is let go of outside the lock, because the last part of a
//! request to go answers it, which takes the lock.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vecmill_scheduler::policy::{Policy, PolicyName};
use vecmill_scheduler::{
    ClassId, DeviceSettings, DeviceStatistics, Dropped, Failed, Full, Job, JobBatch, JobTerms,
    Next, Refused, Scheduler, Settings, Size, Speed, Warm,
};

use crate::core::Payload;
use crate::error::RequestError;

/// How often it is looked whether everything is answered, where no event tells.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Accepted inputs and the devices that they wait for.
pub(crate) struct Queue {
    scheduler: Mutex<Scheduler<Payload>>,
    /// The devices' names.
    names: Vec<String>,
    /// Inputs that have been answered, and whose room the scheduler does not know to be free yet.
    answered: AtomicUsize,
    /// Something happened that a waiting device may want to know.
    changed: Condvar,
    /// From when the scheduler's time is counted.
    began: Instant,
}

impl Queue {
    /// For at most `capacity` inputs.
    pub(crate) fn new(
        capacity: usize,
        policy: Box<dyn Policy>,
        devices: Vec<(String, DeviceSettings)>,
    ) -> Self {
        let (names, devices): (_, Vec<_>) = devices.into_iter().unzip();
        let settings = Settings { capacity, ..Settings::default() };
        Self {
            scheduler: Mutex::new(Scheduler::new(settings, policy, devices)),
            names,
            answered: AtomicUsize::new(0),
            changed: Condvar::new(),
            began: Instant::now(),
        }
    }

    /// A point in time as the scheduler counts it.
    fn time_of(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.began)
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The terms of a request, from its own clock to the scheduler's.
    pub(crate) fn terms(
        &self,
        priority: vecmill_scheduler::Priority,
        deadline: Option<Instant>,
    ) -> JobTerms {
        JobTerms { priority, deadline: deadline.map(|deadline| self.time_of(deadline)) }
    }

    /// Makes room for `inputs` of a class, all or none.
    pub(crate) fn admit(
        &self,
        class: ClassId,
        inputs: usize,
        terms: JobTerms,
    ) -> Result<(), RequestError> {
        let mut scheduler = self.lock();
        if scheduler.is_closed() {
            return Err(RequestError::Stopped);
        }
        let now = self.now();
        scheduler.admit(now, class, inputs, terms.deadline).map_err(|refused| match refused {
            Refused::Full(Full { admitted, .. }) => RequestError::Busy {
                waiting: admitted,
                retry_after: scheduler.backlog_time(now, class),
            },
            Refused::NoDevice => self.no_device(&scheduler),
            Refused::TooLate { predicted, left } => RequestError::TooLate { predicted, left },
        })
    }

    /// What a request would hear that is not served by any device; `Ok` if one serves any of the classes.
    pub(crate) fn serves(&self, classes: &[ClassId]) -> Result<(), RequestError> {
        let scheduler = self.lock();
        match () {
            () if scheduler.is_closed() => Err(RequestError::Stopped),
            () if classes.iter().any(|&class| scheduler.is_served(self.now(), class)) => Ok(()),
            () => Err(self.no_device(&scheduler)),
        }
    }

    fn no_device(&self, scheduler: &Scheduler<Payload>) -> RequestError {
        let devices = self.names.iter().enumerate();
        let standing =
            devices.map(|(index, name)| (name.clone(), scheduler.health(index))).collect();
        RequestError::NoDevice { standing }
    }

    /// Makes room for others.
    pub(crate) fn release(&self, inputs: usize) {
        self.answered.fetch_add(inputs, Ordering::AcqRel);
        // A thread that panics may have the lock: whoever takes it next sees to this.
        if !std::thread::panicking() {
            drop(self.lock());
        }
        self.changed.notify_all();
    }

    pub(crate) fn push(
        &self,
        class: ClassId,
        terms: JobTerms,
        jobs: impl IntoIterator<Item = Job<Payload>>,
    ) {
        self.lock().push(self.now(), class, terms, jobs);
        self.changed.notify_all();
    }

    /// Waits for work and moves a batch for a device into `batch`, which is empty; `plan` says how many
    /// tokens of a class fit the memory that it has ready. `false` when the device's work is over.
    ///
    /// Planning takes long: it is done without the lock, and only where the answer matters.
    pub(crate) fn next_batch(
        &self,
        device: usize,
        plan: impl Fn(ClassId) -> usize,
        batch: &mut JobBatch<Payload>,
    ) -> bool {
        let mut scheduler = self.lock();
        let mut warm = None;
        loop {
            if warm.is_none()
                && let Some(class) = scheduler.backlogged(self.now(), device)
            {
                drop(scheduler);
                warm = Some(Warm { class, tokens: plan(class) });
                scheduler = self.lock();
            }
            let now = self.now();
            let wanted = |work: &Payload| work.request.wanted();
            let next = scheduler.next_batch(now, device, warm.take(), wanted, batch);
            if !batch.dropped.is_empty() {
                drop(scheduler);
                self.let_go(batch);
                if next == Next::Batch {
                    return true;
                }
                scheduler = self.lock();
                continue;
            }
            scheduler = match next {
                Next::Batch => return true,
                Next::Over => return false,
                Next::Wait { until: None } => {
                    self.changed.wait(scheduler).unwrap_or_else(PoisonError::into_inner)
                }
                Next::Wait { until: Some(until) } => {
                    let pause = until.saturating_sub(now);
                    let waited = self.changed.wait_timeout(scheduler, pause);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Learns from a batch, or a part of one, that a device has run. Says how many seconds it was
    /// believed to take, if anything was known.
    pub(crate) fn ran(
        &self,
        device: usize,
        class: ClassId,
        size: Size,
        took: Duration,
    ) -> Option<f64> {
        let predicted = self.lock().ran(self.now(), device, class, size, took);
        self.changed.notify_all();
        predicted
    }

    /// Has what a device failed at tried once more, or says that it has been.
    pub(crate) fn failed(&self, device: usize, jobs: Vec<Job<Payload>>) -> Failed<Payload> {
        let failed = self.lock().failed(self.now(), device, jobs);
        self.changed.notify_all();
        failed
    }

    /// So many inputs that a device had taken will not be run, for no fault of its own.
    pub(crate) fn gave_up(&self, device: usize, class: ClassId, inputs: usize) {
        self.lock().gave_up(self.now(), device, class, inputs);
        self.changed.notify_all();
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

    /// When what waits now of a class will probably be done.
    pub(crate) fn backlog_time(&self, class: ClassId) -> Duration {
        let now = self.now();
        self.lock().backlog_time(now, class)
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

    /// Tells the callers of what was dropped, without the lock.
    fn let_go(&self, batch: &mut JobBatch<Payload>) {
        for (job, why) in batch.dropped.drain(..) {
            match why {
                Dropped::Unwanted => {} // going, it tells by itself
                Dropped::TooLate => job.payload.request.fail(RequestError::Expired),
                Dropped::NoDevice => {
                    let error = self.no_device(&self.lock());
                    job.payload.request.fail(error);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Scheduler<Payload>> {
        let mut scheduler = self.scheduler.lock().unwrap_or_else(PoisonError::into_inner);
        match self.answered.swap(0, Ordering::AcqRel) {
            0 => {}
            inputs => scheduler.release(inputs),
        }
        scheduler
    }
}
