//! What waits, which device may take it, and how the devices stand: a state machine without threads.
//!
//! - All devices draw from one [`Queue`].
//! - What a device failed at waits apart, for another device to try.
//! - A device that keeps failing is taken out of service, unless it is the last one.

use std::time::Duration;

use vecmill_scheduler::{Full, Job, Queue, Size, Speed, budget_for};

use crate::core::Work;

/// Batches that a device may fail at, one after the other, before it is taken out of service.
const FAILURES_IN_A_ROW: u32 = 3;

/// Accepted inputs and the devices that they wait for.
pub(crate) struct Dispatch {
    queue: Queue<Work>,
    devices: Vec<Standing>,
    pub(crate) closed: bool,
}

/// One device, as it has done so far.
struct Standing {
    /// The most tokens of a batch there.
    batch_tokens: usize,
    speed: Speed,
    failures: u32,
    in_service: bool,
    /// What it failed at.
    failed: Queue<Work>,
}

/// What becomes of a batch that a device failed at, and of the device.
pub(crate) struct Failed {
    /// Jobs that have failed for the second time.
    pub(crate) refused: Vec<Job<Work>>,
    /// Whether the device has been taken out of service.
    pub(crate) taken_out: bool,
}

impl Dispatch {
    /// For at most `capacity` inputs, and devices with so many tokens per batch.
    pub(crate) fn new(capacity: usize, batch_tokens: &[usize]) -> Self {
        let standing = |&batch_tokens: &usize| Standing {
            batch_tokens,
            speed: Speed::new(),
            failures: 0,
            in_service: true,
            failed: Queue::new(capacity),
        };
        let devices = batch_tokens.iter().map(standing).collect();
        Self { queue: Queue::new(capacity), devices, closed: false }
    }

    pub(crate) fn admit(&mut self, inputs: usize) -> Result<(), Full> {
        self.queue.admit(inputs)
    }

    pub(crate) fn release(&mut self, inputs: usize) {
        self.queue.release(inputs);
    }

    pub(crate) fn push(&mut self, jobs: impl IntoIterator<Item = Job<Work>>) {
        self.queue.push(jobs);
    }

    /// A batch for a device, empty if none waits; `warm` tokens fit the memory that it has ready.
    pub(crate) fn next_batch(
        &mut self,
        device: usize,
        warm: impl Fn() -> usize,
        mut wanted: impl FnMut(&Work) -> bool,
    ) -> Vec<Job<Work>> {
        let limit = self.devices[device].batch_tokens;
        let alone = !self.others_serve(device);
        for (index, other) in self.devices.iter_mut().enumerate() {
            if index != device || alone {
                let batch = other.failed.next_batch(limit, &mut wanted);
                if !batch.is_empty() {
                    return batch;
                }
            }
        }
        let backlog = self.queue.tokens();
        let budget = if backlog > limit { budget_for(backlog, limit, warm()) } else { limit };
        self.queue.next_batch(budget, wanted)
    }

    /// Whether a device's work is over: everything is answered and no more comes, or it is out of
    /// service.
    pub(crate) fn is_over(&self, device: usize) -> bool {
        self.closed && self.queue.admitted() == 0 || !self.devices[device].in_service
    }

    /// A device has run a batch.
    pub(crate) fn ran(&mut self, device: usize, tokens: usize, took: Duration) {
        let device = &mut self.devices[device];
        device.failures = 0;
        device.speed.observe(Size { inputs: 1, tokens, squares: 0.0 }, took);
    }

    /// A device has failed at a batch: each of its jobs is tried once more, by another device where
    /// there is one.
    pub(crate) fn failed(&mut self, device: usize, jobs: Vec<Job<Work>>) -> Failed {
        let others = self.others_serve(device);
        let standing = &mut self.devices[device];
        standing.failures += 1;
        let taken_out = standing.in_service && others && standing.failures >= FAILURES_IN_A_ROW;
        standing.in_service &= !taken_out;
        let (refused, again): (Vec<_>, Vec<_>) =
            jobs.into_iter().partition(|job| job.payload.failed_before);
        standing.failed.push(
            again
                .into_iter()
                .map(|job| Job::new(job.tokens, Work { failed_before: true, ..job.payload })),
        );
        Failed { refused, taken_out }
    }

    /// Inputs and tokens that wait for a device.
    pub(crate) fn backlog(&self) -> (usize, usize) {
        let queues = || self.devices.iter().map(|device| &device.failed).chain([&self.queue]);
        (queues().map(Queue::len).sum(), queues().map(Queue::tokens).sum())
    }

    /// How long the devices in service together will take for the backlog.
    pub(crate) fn backlog_time(&self) -> Duration {
        let (_, tokens) = self.backlog();
        let serving = self.devices.iter().filter(|device| device.in_service);
        let alone =
            serving.filter_map(|device| device.speed.estimate(tokens, device.batch_tokens, 0.0));
        let rate: f64 = alone.map(|time| 1.0 / time.as_secs_f64()).sum();
        let known = if rate > 0.0 { Duration::try_from_secs_f64(1.0 / rate).ok() } else { None };
        known.unwrap_or(Duration::from_secs(1))
    }

    fn others_serve(&self, device: usize) -> bool {
        let mut others = self.devices.iter().enumerate().filter(|&(index, _)| index != device);
        others.any(|(_, other)| other.in_service)
    }
}
