//! Requests, and workers that run them on the pool's memory.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use vecmill_backend_cuda::{CudaStream, MappedSource};
use vecmill_lab::results;
use vecmill_memory::{LeaseError, Pool, Remedy};

const MIB: usize = 1 << 20;

/// Batches in flight.
pub(super) const WORKERS: usize = 4;

/// Requests that may wait; more are refused, and so not accepted.
const CAPACITY: usize = 64;

/// How long an accepted request waits for memory before it is answered as busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// The largest batch of calm traffic.
const CALM: usize = 512 * MIB;

/// Calm traffic comes in groups of a batch for each worker, in one group of so many all the largest:
/// what calm traffic needs is the same at all times, so that coming back to it can be told.
const WIDE: u64 = 10;

/// How often a batch of calm traffic fills its memory, so that those of a group are at work at once.
const FILLS: usize = 8;

/// Smallest piece that a batch is split into: an input of its own.
const SMALLEST: usize = 2 * MIB;

/// What kind of traffic comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Groups of batches of 64 to 512 MiB.
    Calm,
    /// Batches of up to the whole budget.
    Spike,
}

/// Seconds from spike to spike, and of a spike.
const CYCLE: f64 = 20.0;
const SPIKE: f64 = 2.0;

impl Phase {
    /// The phase at a time from the start. It begins calm.
    fn at(elapsed: Duration) -> Self {
        let into = elapsed.as_secs_f64() % CYCLE;
        if into > CYCLE - SPIKE { Self::Spike } else { Self::Calm }
    }
}

/// What became of the requests.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Responses {
    pub(super) accepted: u64,
    /// Ran, and found in memory what they had written there.
    pub(super) answered: u64,
    /// Not accepted, because the queue was full: told so at once.
    pub(super) not_accepted: u64,
    /// Accepted, and then told that memory was busy for too long.
    pub(super) busy: u64,
    /// Accepted, and then failed.
    pub(super) failed: u64,
    /// Found something else in memory than they had written.
    pub(super) corrupted: u64,
    /// Splits of batches that did not fit.
    pub(super) splits: u64,
    pub(super) first_error: Option<String>,
}

/// The queue and its workers.
pub(super) struct Load {
    pool: Pool<MappedSource>,
    budget: usize,
    queue: Mutex<Queue>,
    changed: Condvar,
    answers: Mutex<Responses>,
    marks: AtomicU64,
    /// Batches larger than calm traffic brings, accepted and not yet answered.
    large: AtomicUsize,
}

#[derive(Default)]
struct Queue {
    /// Bytes of each batch that waits.
    waiting: VecDeque<usize>,
    closed: bool,
}

impl Load {
    pub(super) fn new(pool: Pool<MappedSource>, budget: usize) -> Self {
        Self {
            pool,
            budget,
            queue: Mutex::default(),
            changed: Condvar::new(),
            answers: Mutex::default(),
            marks: AtomicU64::new(1),
            large: AtomicUsize::new(0),
        }
    }

    /// Sends requests, whatever becomes of them, until told to stop.
    pub(super) fn generate(&self, stop: &AtomicBool, started: Instant) {
        let mut random = fastrand::Rng::with_seed(7);
        for group in 0u64.. {
            if stop.load(Ordering::Acquire) {
                return;
            }
            match Phase::at(started.elapsed()) {
                Phase::Calm => {
                    for _ in 0..WORKERS {
                        let largest = group % WIDE == 0;
                        self.send(if largest { CALM } else { random.usize(64 * MIB..=CALM) });
                    }
                    super::wait(Duration::from_millis(20));
                }
                Phase::Spike => {
                    let bytes = results::whole(self.budget as f64 * random.f64().powi(2));
                    self.send((bytes as usize).max(SMALLEST));
                    super::wait(Duration::from_micros(random.u64(500..6000)));
                }
            }
        }
    }

    fn send(&self, bytes: usize) {
        let mut queue = self.queue();
        let accepted = queue.waiting.len() < CAPACITY;
        if accepted {
            queue.waiting.push_back(bytes);
            self.large.fetch_add(usize::from(bytes > CALM), Ordering::SeqCst);
        }
        drop(queue);
        self.changed.notify_one();
        let mut answers = self.answers_mut();
        if accepted { answers.accepted += 1 } else { answers.not_accepted += 1 }
    }

    /// Whether the spike lasts: traffic of one comes, or is still to be answered.
    pub(super) fn in_spike(&self, elapsed: Duration) -> bool {
        Phase::at(elapsed) == Phase::Spike || self.large.load(Ordering::SeqCst) > 0
    }

    /// Ends the workers when the queue is empty.
    pub(super) fn close(&self) {
        self.queue().closed = true;
        self.changed.notify_all();
    }

    /// A worker's life.
    pub(super) fn work(&self, stream: &CudaStream) {
        while let Some(bytes) = self.take() {
            let outcome = self.run(bytes, stream, Instant::now());
            self.large.fetch_sub(usize::from(bytes > CALM), Ordering::SeqCst);
            let mut answers = self.answers_mut();
            match outcome {
                Ok(true) => answers.answered += 1,
                Ok(false) => answers.corrupted += 1,
                Err(error) => {
                    let busy = error.remedy() != Remedy::Reject;
                    *(if busy { &mut answers.busy } else { &mut answers.failed }) += 1;
                    answers.first_error.get_or_insert_with(|| error.to_string());
                }
            }
        }
    }

    fn take(&self) -> Option<usize> {
        let mut queue = self.queue();
        loop {
            if let Some(bytes) = queue.waiting.pop_front() {
                return Some(bytes);
            }
            if queue.closed {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Runs a batch, in parts if it must be; says whether memory kept what was written.
    fn run(&self, bytes: usize, stream: &CudaStream, since: Instant) -> Result<bool, LeaseError> {
        let left = PATIENCE.saturating_sub(since.elapsed());
        match self.pool.lease_waiting(bytes, stream, left.min(Duration::from_millis(200))) {
            Ok(lease) => self.fill_and_check(lease, bytes, stream),
            Err(error) if error.remedy() == Remedy::Reject || left.is_zero() => Err(error),
            Err(_) if bytes >= 2 * SMALLEST => {
                self.answers_mut().splits += 1;
                let half = bytes / 2;
                Ok(self.run(half, stream, since)? & self.run(bytes - half, stream, since)?)
            }
            Err(_) => self.run(bytes, stream, since),
        }
    }

    fn fill_and_check(
        &self,
        mut lease: vecmill_memory::Lease<'_, MappedSource>,
        bytes: usize,
        stream: &CudaStream,
    ) -> Result<bool, LeaseError> {
        let mark = self.marks.fetch_add(1, Ordering::Relaxed) as u32;
        let whole = bytes / 4 * 4;
        lease.check_use(whole);
        for _ in 0..if bytes > CALM { 1 } else { FILLS } {
            stream.fill_u32(lease.block().span(0..whole)?, mark)?;
        }
        lease.record()?;
        let mut intact = true;
        for at in [0, whole / 2 / 4 * 4, whole - 4] {
            let mut word = [0; 4];
            stream.copy_to_host(lease.block().span(at..at + 4)?, &mut word)?;
            intact &= u32::from_ne_bytes(word) == mark;
        }
        Ok(intact)
    }

    pub(super) fn answers(&self) -> Responses {
        self.answers_mut().clone()
    }

    fn answers_mut(&self) -> MutexGuard<'_, Responses> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
