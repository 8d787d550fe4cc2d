//! What a device's thread does: takes batches from the queue, starts them, and answers.
//!
//! - Where the device works while the host goes on, a second thread collects results in the order
//!   of the starts, so that neither a start nor an answer ever waits for the next batch of texts.
//!   As many batches are under way as the backend wants; only then is the next one taken, as late
//!   and as full as possible.
//! - What a batch does when it gets no memory is the lease's error to say: wait for another batch,
//!   split in halves, or give up.
//! - A batch that the device failed at is tried once more.
//!
//! Whatever happens, each job is answered.

use std::sync::mpsc::{SendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vecmill_encoder::{Backend, Batch, EncodeError, Started, finish};
use vecmill_memory::{Cause, LeaseError, Remedy};
use vecmill_scheduler::{Failed, Job, Size};

use super::Device;
use crate::core::{Core, Work};
use crate::error::RequestError;
use crate::metrics::{Outcome, Ran};
use crate::pending::Part;
use crate::request::Embedding;

/// A device at work for an engine.
pub(super) struct Shift<'a, B: Backend> {
    device: &'a Device<B>,
    core: &'a Core,
    /// The device's number in the engine.
    index: usize,
    /// When the device was last done with a batch.
    last_done: Mutex<Instant>,
}

/// A batch that the device works on.
struct InFlight<B: Backend> {
    jobs: Vec<Job<Work>>,
    started: Instant,
    batch: Started<B>,
}

impl<'a, B: Backend> Shift<'a, B> {
    pub(super) fn new(device: &'a Device<B>, core: &'a Core, index: usize) -> Self {
        Self { device, core, index, last_done: Mutex::new(Instant::now()) }
    }

    /// Runs batches until the device's work is over.
    pub(super) fn work(&self) {
        // Entering the backend's threads once, for good, saves two changes of thread per batch.
        let backend = self.device.encoder.backend();
        let Some(queued) = backend.in_flight().checked_sub(2) else {
            return backend.run_batch(|| self.start_batches(&|batch| self.collect(batch)));
        };
        // Besides those queued, the collector holds one, and so does whoever sends.
        let (sender, receiver) = sync_channel::<InFlight<B>>(queued);
        thread::scope(|scope| {
            let collect = move || receiver.into_iter().for_each(|batch| self.collect(batch));
            let name = format!("{}-collect", self.device.name);
            if let Err(error) = thread::Builder::new().name(name).spawn_scoped(scope, collect) {
                tracing::warn!(device = self.device.name, %error, "batches run one by one");
            }
            backend.run_batch(move || {
                self.start_batches(&|batch| {
                    // Without a collector, this thread is it.
                    if let Err(SendError(batch)) = sender.send(batch) {
                        self.collect(batch);
                    }
                });
            });
        });
    }

    fn start_batches(&self, then: &dyn Fn(InFlight<B>)) {
        let warm = || self.device.warm_tokens();
        let mut batch = vecmill_scheduler::Batch::new();
        while self.core.dispatch.next_batch(self.index, warm, &mut batch) {
            let jobs = std::mem::take(&mut batch.jobs);
            batch.clear();
            self.start(jobs, Instant::now() + self.device.patience, then);
        }
    }

    /// Starts `jobs` as one batch, or in parts if they get no memory together before `deadline`.
    fn start(&self, jobs: Vec<Job<Work>>, deadline: Instant, then: &dyn Fn(InFlight<B>)) {
        let batch: Batch = jobs.iter().map(|job| &job.payload.tokens.ids).collect();
        let started = Instant::now();
        match self.device.start(&batch, deadline) {
            Ok(batch) => then(InFlight { jobs, started, batch }),
            Err(EncodeError::Memory(error))
                if error.remedy() == Remedy::Split && jobs.len() > 1 =>
            {
                self.count(&jobs, Outcome::Split, started.elapsed());
                self.start_halves(jobs, deadline, then);
            }
            Err(error) => self.failed(jobs, &error, started.elapsed()),
        }
    }

    fn start_halves(
        &self,
        mut jobs: Vec<Job<Work>>,
        deadline: Instant,
        then: &dyn Fn(InFlight<B>),
    ) {
        let second = jobs.split_off(jobs.len() / 2);
        self.start(jobs, deadline, then);
        self.start(second, deadline, then);
    }

    /// Waits for a batch and answers.
    fn collect(&self, InFlight { jobs, started, batch }: InFlight<B>) {
        let result = self.device.collect(batch);
        let done = Instant::now();
        // The device takes batches one after the other: until the one before was done, it had not
        // begun with this one.
        let mut last_done = self.last_done.lock().unwrap_or_else(PoisonError::into_inner);
        let took = done.saturating_duration_since(started.max(*last_done));
        *last_done = done;
        drop(last_done);
        match result {
            Ok(rows) => {
                self.count(&jobs, Outcome::Ok, took);
                self.core.dispatch.ran(self.index, Size::of(&jobs), took);
                self.answer(jobs, &rows, started, done);
            }
            Err(error) => self.failed(jobs, &error, took),
        }
    }

    /// Has `jobs` tried once more if the device failed, and otherwise says why not.
    fn failed(&self, jobs: Vec<Job<Work>>, error: &EncodeError, took: Duration) {
        let device = &self.device.name;
        let count = |outcome| self.count(&jobs, outcome, took);
        let Failed { refused, taken_out } = match error {
            error if blames_device(error) => {
                let last = jobs.iter().any(Job::failed_before);
                count(if last { Outcome::Failed } else { Outcome::Retried });
                tracing::warn!(device, inputs = jobs.len(), last, %error, "the device failed");
                self.core.dispatch.failed(self.index, jobs)
            }
            _ => {
                count(Outcome::Failed);
                self.core.dispatch.gave_up(self.index, jobs.len());
                Failed { refused: jobs, taken_out: false }
            }
        };
        if taken_out {
            tracing::error!(device, %error, "the device keeps failing and is taken out");
        }
        if !refused.is_empty() {
            tracing::error!(device, inputs = refused.len(), %error, "batch failed");
        }
        for job in refused {
            job.payload.pending.fail(self.refusal(&job.payload, error));
        }
    }

    /// What the caller of one of the inputs is told.
    fn refusal(&self, work: &Work, error: &EncodeError) -> RequestError {
        match error {
            &EncodeError::Memory(LeaseError::TooLarge { needed, available }) => {
                RequestError::InputTooLarge { index: work.index, needed, available }
            }
            EncodeError::Memory(error) if error.remedy() != Remedy::Reject => {
                RequestError::NoMemory {
                    device: self.device.name.clone(),
                    reason: error.to_string(),
                    retry_after: self.core.dispatch.backlog_time(),
                }
            }
            error => self.broken(error),
        }
    }

    fn broken(&self, error: &dyn std::error::Error) -> RequestError {
        RequestError::Device { device: self.device.name.clone(), reason: error.to_string() }
    }

    fn answer(&self, jobs: Vec<Job<Work>>, rows: &[f32], started: Instant, done: Instant) {
        let inference = done.saturating_duration_since(started);
        let rows = rows.chunks_exact(self.device.encoder.limits().dimensions);
        for (Job { payload: work, .. }, row) in jobs.into_iter().zip(rows) {
            let queue = started.saturating_duration_since(work.queued);
            self.core.metrics.waited(&self.device.name, queue.as_secs_f64());
            let wanted = work.pending.finish;
            let vector = finish(row, wanted.dimensions, wanted.normalize);
            if !vector.iter().all(|value| value.is_finite()) {
                work.pending.fail(self.broken(&NotFinite));
                continue;
            }
            let embedding = Embedding {
                vector,
                tokens: work.tokens.ids.len(),
                truncated: work.tokens.truncated,
            };
            let part = Part { index: work.index, embedding, queue, inference };
            work.pending.resolve(part);
        }
    }

    fn count(&self, jobs: &[Job<Work>], outcome: Outcome, took: Duration) {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let ran = Ran {
            outcome,
            inputs: count(jobs.len()),
            tokens: count(tokens(jobs)),
            truncated: count(jobs.iter().filter(|job| job.payload.tokens.truncated).count()),
            seconds: took.as_secs_f64(),
        };
        self.core.metrics.batch(&self.device.name, &ran);
    }
}

/// Whether another device might do better: not where the batch is wrong, or memory only is taken.
fn blames_device(error: &EncodeError) -> bool {
    match error {
        EncodeError::Backend(_) => true,
        // A device that is lost is mostly noticed by its memory.
        EncodeError::Memory(LeaseError::Source(error)) => error.cause != Cause::Exhausted,
        _ => false,
    }
}

fn tokens(jobs: &[Job<Work>]) -> usize {
    jobs.iter().map(|job| job.tokens).sum()
}

/// A vector that nobody can use, and that JSON can't hold.
#[derive(Debug, thiserror::Error)]
#[error(
    "the model's vector has an element that is not a finite number: its weights are damaged, or \
     too large for float16 (bfloat16 and float32 have more range)"
)]
struct NotFinite;
