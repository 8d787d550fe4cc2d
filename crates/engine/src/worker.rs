//! A device's thread: takes batches from the queue, runs them and answers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vecmill_encoder::{Backend, Batch, EncodeError, Encoder, finish};
use vecmill_memory::{LeaseError, Pool, Reservation, Statistics};
use vecmill_scheduler::Job;

use crate::core::{Core, Work};
use crate::error::RequestError;
use crate::metrics::Ran;
use crate::pending::Part;
use crate::request::Embedding;

/// A model on a device, with the device's memory.
#[derive(Debug)]
pub(crate) struct Device<B: Backend> {
    pub(crate) name: String,
    pub(crate) encoder: Encoder<B>,
    pub(crate) pool: Pool<B::Source>,
    /// The weights' part of the budget, held as long as they are.
    pub(crate) _weights: Reservation<B::Source>,
    /// The most tokens of a batch here.
    pub(crate) batch_tokens: usize,
}

impl<B: Backend> Device<B> {
    /// Runs batches until the engine is closed and everything accepted is answered.
    pub(crate) fn work(&self, core: &Core) {
        // Entering the backend's threads once, for good, saves two changes of thread per batch.
        self.encoder.backend().run_batch(|| {
            while let Some(batch) = core.next_batch(self.batch_tokens) {
                self.run(core, batch);
            }
        });
    }

    pub(crate) fn memory(&self) -> Statistics {
        self.pool.statistics()
    }

    fn run(&self, core: &Core, mut jobs: Vec<Job<Work>>) {
        let batch: Batch = jobs.iter().map(|job| &job.payload.tokens.ids).collect();
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| self.encoder.encode(&batch, &self.pool)))
            .unwrap_or_else(|_| Err(EncodeError::panicked()));
        let took = started.elapsed();
        core.metrics.batch(&self.name, &ran(&jobs, result.is_ok(), took));
        match result {
            Ok(rows) => {
                core.observe(batch.tokens(), took);
                self.answer(core, jobs, &rows, started, took);
            }
            Err(EncodeError::Memory(LeaseError::TooLarge { .. })) if jobs.len() > 1 => {
                let second = jobs.split_off(jobs.len() / 2);
                self.run(core, jobs);
                self.run(core, second);
            }
            Err(error) => {
                tracing::error!(device = self.name, inputs = jobs.len(), %error, "batch failed");
                for job in jobs {
                    job.payload.pending.fail(self.failed(&error));
                }
            }
        }
    }

    fn failed(&self, error: &dyn std::error::Error) -> RequestError {
        RequestError::Device { device: self.name.clone(), reason: error.to_string() }
    }

    fn answer(
        &self,
        core: &Core,
        jobs: Vec<Job<Work>>,
        rows: &[f32],
        started: Instant,
        inference: Duration,
    ) {
        let rows = rows.chunks_exact(self.encoder.limits().dimensions);
        for (Job { payload: work, .. }, row) in jobs.into_iter().zip(rows) {
            let queue = started.saturating_duration_since(work.queued);
            core.metrics.waited(queue.as_secs_f64());
            let wanted = work.pending.finish;
            let vector = finish(row, wanted.dimensions, wanted.normalize);
            if !vector.iter().all(|value| value.is_finite()) {
                work.pending.fail(self.failed(&NotFinite));
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
}

/// A vector that nobody can use, and that JSON can't hold.
#[derive(Debug, thiserror::Error)]
#[error("the model's vector has an element that is not a finite number: are its weights damaged?")]
struct NotFinite;

fn ran(jobs: &[Job<Work>], ok: bool, took: Duration) -> Ran {
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    Ran {
        ok,
        inputs: count(jobs.len()),
        tokens: count(jobs.iter().map(|job| job.tokens).sum()),
        truncated: count(jobs.iter().filter(|job| job.payload.tokens.truncated).count()),
        seconds: took.as_secs_f64(),
    }
}

/// A device of any backend, on a thread of its own.
pub(crate) trait Worker: Send + Sync {
    fn work(&self, core: &Core);
    fn name(&self) -> &str;
    fn memory(&self) -> Statistics;
}

impl<B: Backend> Worker for Device<B> {
    fn work(&self, core: &Core) {
        Device::work(self, core);
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn memory(&self) -> Statistics {
        Device::memory(self)
    }
}

/// Starts a device's thread.
pub(crate) fn spawn(
    device: Arc<dyn Worker>,
    core: Arc<Core>,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let name = device.name().to_owned();
    std::thread::Builder::new().name(name).spawn(move || device.work(&core))
}
