//! A device: a model on a backend, with its memory, on a thread of its own.
//!
//! [`shift`] is what that thread does.

mod shift;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vecmill_encoder::{Backend, Batch, EncodeError, Encoder, Limits, Started};
use vecmill_memory::recording::Recording;
use vecmill_memory::{LeaseError, Pool, Remedy, Statistics, Trimmer};

use crate::core::Core;
use crate::metrics::PoolSample;
use crate::recording::RefusalRecordings;
use shift::Shift;

/// How long a batch, with all that it is split into, waits for memory.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often one input that can't be split looks for memory that other processes have: nobody tells
/// when they give it back.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How often unused memory is looked for.
const UPKEEP_INTERVAL: Duration = Duration::from_millis(250);

/// Sizes of slabs of which is kept how many tokens fit: a pool has few of them at a time.
const FITTING: usize = 32;

/// A model on a device, with the device's memory.
#[derive(Debug)]
pub(crate) struct Device<B: Backend> {
    name: String,
    encoder: Encoder<B>,
    pool: Pool<B::Source>,
    /// The most tokens of a batch here.
    batch_tokens: usize,
    patience: Duration,
    /// Ways of computing that were taken in practice.
    ways_practised: u64,
    /// Bytes of slabs, and the tokens that surely fit each: the last answers.
    fitting: Mutex<VecDeque<(usize, usize)>>,
    refusal_traces: Option<RefusalRecordings>,
    trimmer: Mutex<Option<Trimmer>>,
}

impl<B: Backend> Device<B> {
    /// A device whose pool is maintained from now on, by a thread of its own.
    pub(crate) fn new(
        name: &str,
        encoder: Encoder<B>,
        pool: Pool<B::Source>,
        batch_tokens: usize,
        refusal_traces: Option<RefusalRecordings>,
    ) -> std::io::Result<Self> {
        let trimmer = Mutex::new(Some(pool.trimmer(UPKEEP_INTERVAL)?));
        let ways_practised = encoder.backend().ways_taken();
        Ok(Self {
            name: name.to_owned(),
            encoder,
            pool,
            batch_tokens,
            patience: PATIENCE,
            ways_practised,
            fitting: Mutex::default(),
            refusal_traces,
            trimmer,
        })
    }

    /// With another patience for memory.
    #[cfg(test)]
    fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Tokens of a batch that the largest idle slab holds.
    fn warm_tokens(&self) -> usize {
        let bytes = self.pool.warm_bytes();
        let known = || self.fitting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&(_, tokens)) = known().iter().find(|(slab, _)| *slab == bytes) {
            return tokens;
        }
        let tokens = self.encoder.tokens_within(bytes);
        let mut known = known();
        known.truncate(FITTING - 1);
        known.push_front((bytes, tokens));
        tokens
    }

    /// Starts a batch. One that can't be split waits until `deadline` for memory that others use.
    fn start(&self, batch: &Batch, deadline: Instant) -> Result<Started<B>, EncodeError> {
        let mut refused = false;
        loop {
            let patience = deadline.saturating_duration_since(Instant::now());
            let result = self.encoder.start(batch, &self.pool, patience);
            let Err(EncodeError::Memory(error)) = &result else { return result };
            if let Some(traces) = self.refusal_traces.as_ref().filter(|_| !refused) {
                traces.refused(&self.name, || self.pool.recording());
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

    /// Waits for a batch that was started.
    fn collect(&self, batch: Started<B>) -> Result<Vec<f32>, EncodeError> {
        self.encoder.collect(batch)
    }
}

/// A device of any backend, on a thread of its own.
pub(crate) trait Worker: Send + Sync {
    /// Runs batches as the engine's device number `index`, until that device's work is over.
    fn work(&self, core: &Core, index: usize);
    /// The vectors of texts given as ids, beside all queues.
    fn try_out(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EncodeError>;
    fn name(&self) -> &str;
    fn limits(&self) -> Limits;
    /// The most tokens of a batch.
    fn batch_tokens(&self) -> usize;
    /// The most tokens of a batch where nobody uses `free` bytes of the device's memory: fewer than
    /// usual if what was counted on is no longer there, but enough for any one input.
    fn batch_tokens_with(&self, free: usize) -> usize;
    /// Batches that it has at once.
    fn in_flight(&self) -> usize;
    /// Bytes that it has of the device, for weights and batches.
    fn memory_bytes(&self) -> usize;
    fn memory(&self) -> PoolSample;
    fn trim_memory(&self) -> usize;
    fn memory_trace(&self) -> Recording;
    /// Ends what runs beside the batches.
    fn stop(&self);
}

impl<B: Backend> Worker for Device<B> {
    fn work(&self, core: &Core, index: usize) {
        Shift::new(self, core, index).work();
    }

    fn try_out(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EncodeError> {
        let batch: Batch = texts.iter().collect();
        let rows = self.encoder.encode(&batch, &self.pool, Duration::ZERO)?;
        self.pool.trim(); // memory follows use
        Ok(rows.chunks_exact(self.encoder.limits().dimensions).map(<[f32]>::to_vec).collect())
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn limits(&self) -> Limits {
        self.encoder.limits()
    }

    fn batch_tokens(&self) -> usize {
        self.batch_tokens
    }

    fn batch_tokens_with(&self, free: usize) -> usize {
        let Statistics { budget_bytes, reserved_bytes, held_bytes, .. } = self.pool.statistics();
        if held_bytes.saturating_add(free) >= budget_bytes.saturating_sub(reserved_bytes) {
            return self.batch_tokens;
        }
        // As at the start, not all that is free: the driver needs some.
        let room = held_bytes + free / 10 * 9;
        let tokens = self.encoder.tokens_within(room / self.in_flight().max(1));
        tokens.max(self.encoder.limits().max_tokens).min(self.batch_tokens)
    }

    fn in_flight(&self) -> usize {
        self.encoder.backend().in_flight()
    }

    fn memory_bytes(&self) -> usize {
        let Statistics { reserved_bytes, held_bytes, .. } = self.pool.statistics();
        reserved_bytes + held_bytes
    }

    fn memory(&self) -> PoolSample {
        let ways = self.encoder.backend().ways_taken();
        PoolSample {
            pool: self.pool.statistics(),
            plans: self.encoder.plan_statistics(),
            first_uses: ways.saturating_sub(self.ways_practised),
        }
    }

    fn trim_memory(&self) -> usize {
        self.pool.trim()
    }

    fn memory_trace(&self) -> Recording {
        self.pool.recording()
    }

    fn stop(&self) {
        let trimmer = self.trimmer.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(trimmer); // outside the lock: this waits for its thread
    }
}

/// Starts a device's thread. If that ends before its work is over, by a panic that no batch has to do
/// with, the device is gone: others do its work, or nobody.
pub(crate) fn spawn(
    device: Arc<dyn Worker>,
    core: Arc<Core>,
    index: usize,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let name = device.name().to_owned();
    std::thread::Builder::new().name(name).spawn(move || {
        let work = AssertUnwindSafe(|| device.work(&core, index));
        if catch_unwind(work).is_err() {
            let _ = catch_unwind(AssertUnwindSafe(|| core.dispatch.lose(index)));
            let device = device.name();
            tracing::error!(device, "the device's thread panicked and is gone: please report this");
        }
    })
}

#[cfg(test)]
mod tests;
