//! A device's thread: takes batches from the queue, runs them and answers.
//!
//! What a batch does when it gets no memory is the lease's error to say: wait for another batch,
//! split in halves, or give up. Whatever happens, each job is answered.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vecmill_encoder::{Backend, Batch, EncodeError, Encoder, finish};
use vecmill_memory::trace::Trace;
use vecmill_memory::{Keeper, LeaseError, Pool, Remedy, Reservation};
use vecmill_scheduler::Job;

use crate::core::{Core, Work};
use crate::error::RequestError;
use crate::metrics::{Outcome, Ran, Snapshot};
use crate::pending::Part;
use crate::request::Embedding;
use crate::traces::RefusalTraces;

/// How long a batch, with all that it is split into, waits for memory.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often one input that can't be split looks for memory that other processes have: nobody tells
/// when they give it back.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How often unused memory is looked for.
const UPKEEP_INTERVAL: Duration = Duration::from_millis(250);

/// A model on a device, with the device's memory.
#[derive(Debug)]
pub(crate) struct Device<B: Backend> {
    name: String,
    pub(crate) encoder: Encoder<B>,
    pool: Pool<B::Source>,
    /// The weights' part of the budget, held as long as they are.
    _weights: Reservation,
    /// The most tokens of a batch here.
    pub(crate) batch_tokens: usize,
    patience: Duration,
    /// Bytes of a slab, and the tokens that surely fit it: the last answer.
    warm: Mutex<(usize, usize)>,
    refusal_traces: Option<RefusalTraces>,
    keeper: Mutex<Option<Keeper>>,
}

impl<B: Backend> Device<B> {
    /// A device whose pool is maintained from now on, by a thread of its own.
    pub(crate) fn new(
        name: &str,
        encoder: Encoder<B>,
        pool: Pool<B::Source>,
        weights: Reservation,
        batch_tokens: usize,
        refusal_traces: Option<RefusalTraces>,
    ) -> std::io::Result<Self> {
        let keeper = Mutex::new(Some(pool.keep(UPKEEP_INTERVAL)?));
        Ok(Self {
            name: name.to_owned(),
            encoder,
            pool,
            _weights: weights,
            batch_tokens,
            patience: PATIENCE,
            warm: Mutex::new((0, 0)),
            refusal_traces,
            keeper,
        })
    }

    /// With another patience for memory.
    #[cfg(test)]
    fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Runs batches until the engine is closed and everything accepted is answered.
    pub(crate) fn work(&self, core: &Core) {
        // Entering the backend's threads once, for good, saves two changes of thread per batch.
        self.encoder.backend().run_batch(|| {
            while let Some(batch) = core.next_batch(self.batch_tokens, || self.warm_tokens()) {
                self.run(core, batch, Instant::now() + self.patience);
            }
        });
    }

    /// Tokens of a batch that the largest idle slab holds.
    fn warm_tokens(&self) -> usize {
        let bytes = self.pool.warm_bytes();
        let mut known = self.warm.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0 != bytes {
            *known = (bytes, self.encoder.tokens_within(bytes));
        }
        known.1
    }

    /// Runs `jobs` as one batch, or in parts if they get no memory together before `deadline`.
    fn run(&self, core: &Core, jobs: Vec<Job<Work>>, deadline: Instant) {
        let batch: Batch = jobs.iter().map(|job| &job.payload.tokens.ids).collect();
        let started = Instant::now();
        let result = self.encode(&batch, deadline);
        let took = started.elapsed();
        let counts = |outcome| core.metrics.batch(&self.name, &ran(&jobs, outcome, took));
        match result {
            Ok(rows) => {
                counts(Outcome::Ok);
                core.observe(batch.tokens(), took);
                self.answer(core, jobs, &rows, started, took);
            }
            Err(EncodeError::Memory(error))
                if error.remedy() == Remedy::Split && jobs.len() > 1 =>
            {
                counts(Outcome::Split);
                self.run_halves(core, jobs, deadline);
            }
            Err(error) => {
                counts(Outcome::Failed);
                tracing::error!(device = self.name, inputs = jobs.len(), %error, "batch failed");
                for job in jobs {
                    job.payload.pending.fail(self.failed(core, &job.payload, &error));
                }
            }
        }
    }

    fn run_halves(&self, core: &Core, mut jobs: Vec<Job<Work>>, deadline: Instant) {
        let second = jobs.split_off(jobs.len() / 2);
        self.run(core, jobs, deadline);
        self.run(core, second, deadline);
    }

    /// Encodes a batch. One that can't be split waits until `deadline` for memory that others use.
    fn encode(&self, batch: &Batch, deadline: Instant) -> Result<Vec<f32>, EncodeError> {
        let mut refused = false;
        loop {
            let patience = deadline.saturating_duration_since(Instant::now());
            let encode = || self.encoder.encode(batch, &self.pool, patience);
            let result = catch_unwind(AssertUnwindSafe(encode))
                .unwrap_or_else(|_| Err(EncodeError::panicked()));
            let Err(EncodeError::Memory(error)) = &result else { return result };
            if let Some(traces) = self.refusal_traces.as_ref().filter(|_| !refused) {
                traces.refused(&self.name, || self.pool.trace());
            }
            refused = true;
            let too_large = matches!(error, LeaseError::TooLarge { .. });
            let over = error.remedy() != Remedy::Split || too_large || patience.is_zero();
            if over || batch.sequences() > 1 {
                return result;
            }
            std::thread::park_timeout(LOOK_AGAIN.min(patience));
        }
    }

    /// What the caller of one of the inputs is told.
    fn failed(&self, core: &Core, work: &Work, error: &EncodeError) -> RequestError {
        match error {
            &EncodeError::Memory(LeaseError::TooLarge { needed, available }) => {
                RequestError::InputTooLarge { index: work.index, needed, available }
            }
            EncodeError::Memory(error) if error.remedy() != Remedy::Reject => {
                RequestError::NoMemory {
                    device: self.name.clone(),
                    reason: error.to_string(),
                    retry_after: core.retry_after(),
                }
            }
            error => self.broken(error),
        }
    }

    fn broken(&self, error: &dyn std::error::Error) -> RequestError {
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
}

/// A vector that nobody can use, and that JSON can't hold.
#[derive(Debug, thiserror::Error)]
#[error("the model's vector has an element that is not a finite number: are its weights damaged?")]
struct NotFinite;

fn ran(jobs: &[Job<Work>], outcome: Outcome, took: Duration) -> Ran {
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    Ran {
        outcome,
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
    fn memory(&self) -> Snapshot;
    fn trim_memory(&self) -> usize;
    fn memory_trace(&self) -> Trace;
    /// Ends what runs beside the batches.
    fn stop(&self);
}

impl<B: Backend> Worker for Device<B> {
    fn work(&self, core: &Core) {
        Device::work(self, core);
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn memory(&self) -> Snapshot {
        Snapshot { pool: self.pool.statistics(), plans: self.encoder.plan_statistics() }
    }

    fn trim_memory(&self) -> usize {
        self.pool.trim()
    }

    fn memory_trace(&self) -> Trace {
        self.pool.trace()
    }

    fn stop(&self) {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(keeper); // outside the lock: this waits for its thread
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

#[cfg(test)]
mod tests;
