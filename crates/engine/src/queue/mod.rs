//! The scheduler between threads: behind a lock, with a clock, and a condition to wait on.
//!
//! - Here is what an input passes: room is made for it ([`Queue::admit`]), it waits ([`Queue::push`]), a
//!   device takes it ([`Queue::next_batch`]) and says what became of it.
//! - `control` has what operators ask of it, and those who look after devices.
//! - What waits is a [`Waiting`], of which no more is known than that its caller may have gone, and can
//!   be told why it is refused.
//!
//! The choice behind it: what is decided is `vecmill_scheduler`'s, a state machine; here is only what
//! it does not know. Whatever it drops is let go of outside the lock, because the last part of a
//! request to go answers it, which takes the lock.

mod control;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vecmill_scheduler::policy::Policy;
use vecmill_scheduler::{
    ClassId, DeviceSettings, Dropped, Failed, Full, Job, JobBatch, JobTerms, Next, Priority,
    Refused, Scheduler, Settings, Size, Warm,
};

use crate::error::RequestError;
use crate::info::DeviceName;
use crate::metrics::Metrics;

/// What waits for a device.
pub(crate) trait Waiting {
    /// Whether somebody still wants it.
    fn is_wanted(&self) -> bool;
    /// Tells whoever asked for it that it is not to be.
    fn refuse(&self, error: RequestError);
}

/// Accepted inputs and the devices that they wait for.
pub(crate) struct Queue<W> {
    /// What becomes of them is counted here.
    pub(crate) metrics: Metrics,
    scheduler: Mutex<Scheduler<W>>,
    /// The devices' names.
    names: Vec<DeviceName>,
    /// Inputs that have been answered, and whose room the scheduler does not know to be free yet.
    answered: AtomicUsize,
    /// Something happened that a waiting device may want to know.
    changed: Condvar,
    /// From when the scheduler's time is counted.
    began: Instant,
}

impl<W: Waiting> Queue<W> {
    /// For at most `capacity` inputs.
    pub(crate) fn new(
        capacity: usize,
        policy: Box<dyn Policy>,
        devices: Vec<(DeviceName, DeviceSettings)>,
        metrics: Metrics,
    ) -> Self {
        let (names, devices): (_, Vec<_>) = devices.into_iter().unzip();
        let settings = Settings { capacity, ..Settings::default() };
        Self {
            metrics,
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
    pub(crate) fn terms(&self, priority: Priority, deadline: Option<Instant>) -> JobTerms {
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

    fn no_device(&self, scheduler: &Scheduler<W>) -> RequestError {
        let devices = self.names.iter().enumerate();
        let standing =
            devices.map(|(index, name)| (name.to_string(), scheduler.health(index))).collect();
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
        jobs: impl IntoIterator<Item = Job<W>>,
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
        batch: &mut JobBatch<W>,
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
            let next = scheduler.next_batch(now, device, warm.take(), W::is_wanted, batch);
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
    pub(crate) fn failed(&self, device: usize, jobs: Vec<Job<W>>) -> Failed<W> {
        let failed = self.lock().failed(self.now(), device, jobs);
        self.changed.notify_all();
        failed
    }

    /// So many inputs that a device had taken will not be run, for no fault of its own.
    pub(crate) fn gave_up(&self, device: usize, class: ClassId, inputs: usize) {
        self.lock().gave_up(self.now(), device, class, inputs);
        self.changed.notify_all();
    }

    /// When what waits now of a class will probably be done.
    pub(crate) fn backlog_time(&self, class: ClassId) -> Duration {
        let now = self.now();
        self.lock().backlog_time(now, class)
    }

    /// Tells the callers of what was dropped, without the lock.
    fn let_go(&self, batch: &mut JobBatch<W>) {
        for (job, why) in batch.dropped.drain(..) {
            match why {
                Dropped::Unwanted => {} // going, it tells by itself
                Dropped::TooLate => job.payload.refuse(RequestError::Expired),
                Dropped::NoDevice => {
                    let error = self.no_device(&self.lock());
                    job.payload.refuse(error);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Scheduler<W>> {
        let mut scheduler = self.scheduler.lock().unwrap_or_else(PoisonError::into_inner);
        match self.answered.swap(0, Ordering::AcqRel) {
            0 => {}
            inputs => scheduler.release(inputs),
        }
        scheduler
    }
}
