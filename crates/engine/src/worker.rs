//! A device: a backend with its memory and the models on it, on a thread of its own.
//!
//! [`device_loop`] is what that thread does.

mod device_loop;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use vecmill_encoder::{
    Backend, BackendError, Batch, EncodeError, Encoder, Limits, LoadError, PlanStatistics, Shape,
    Started,
};
use vecmill_memory::recording::Recording;
use vecmill_memory::{LeaseError, Pool, Remedy, Statistics, Trimmer};
use vecmill_scheduler::{ClassId, Speed};

use crate::core::Core;
use crate::devices::Loading;
use crate::error::StartError;
use crate::metrics::PoolSample;
use crate::recording::RefusalRecordings;
use device_loop::DeviceLoop;

/// How long a batch, with all that it is split into, waits for memory.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often one input that can't be split looks for memory that other processes have: nobody tells
/// when they give it back.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How often it is looked whether a model is let go of.
const FAREWELL: Duration = Duration::from_millis(1);

/// How often unused memory is looked for.
const UPKEEP_INTERVAL: Duration = Duration::from_millis(250);

/// Sizes of slabs of which is kept how many tokens fit: a pool has few of them at a time.
const FITTING: usize = 32;

/// A device: a backend, its memory, and the models that are on it.
#[derive(Debug)]
pub(crate) struct Device<B: Backend> {
    name: String,
    backend: Arc<B>,
    pool: Pool<B::Source>,
    /// The models, by the numbers of their classes.
    residents: RwLock<Vec<Option<Arc<Resident<B>>>>>,
    patience: Duration,
    /// Ways of computing that were taken in practice.
    ways_practised: u64,
    refusal_traces: Option<RefusalRecordings>,
    trimmer: Mutex<Option<Trimmer>>,
}

/// A model on a device.
#[derive(Debug)]
pub(crate) struct Resident<B: Backend> {
    pub(crate) encoder: Encoder<B>,
    /// The most tokens of a batch here.
    batch_tokens: usize,
    /// Bytes of slabs, and the tokens that surely fit each: the last answers.
    fitting: Mutex<VecDeque<(usize, usize)>>,
}

impl<B: Backend> Resident<B> {
    pub(crate) fn new(encoder: Encoder<B>, batch_tokens: usize) -> Self {
        Self { encoder, batch_tokens, fitting: Mutex::default() }
    }

    /// Tokens of a batch that a slab of so many bytes holds.
    fn tokens_within(&self, bytes: usize) -> usize {
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

    /// The most tokens of a batch where slabs may have so many bytes together: enough for any one
    /// input.
    fn batch_tokens_in(&self, bytes: usize) -> usize {
        let tokens = self.encoder.tokens_within(bytes / self.encoder.backend().in_flight().max(1));
        tokens.max(self.encoder.limits().max_tokens).min(self.batch_tokens)
    }

    /// Bytes of a slab for the longest input alone.
    fn least_bytes(&self) -> usize {
        let longest = self.encoder.limits().max_tokens;
        self.encoder.peak_bytes(Shape { tokens: longest, sequences: 1, longest })
    }
}

impl<B: Backend> Device<B> {
    /// A device with the first model on it, whose pool is maintained from now on, by a thread of its
    /// own.
    pub(crate) fn new(
        name: &str,
        first: Resident<B>,
        pool: Pool<B::Source>,
        refusal_traces: Option<RefusalRecordings>,
    ) -> std::io::Result<Self> {
        let trimmer = Mutex::new(Some(pool.trimmer(UPKEEP_INTERVAL)?));
        let ways_practised = first.encoder.backend().ways_taken();
        Ok(Self {
            name: name.to_owned(),
            backend: first.encoder.shared_backend(),
            pool,
            residents: RwLock::new(vec![Some(Arc::new(first))]),
            patience: PATIENCE,
            ways_practised,
            refusal_traces,
            trimmer,
        })
    }

    /// With another patience for memory.
    #[cfg(test)]
    fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The model of a class, if it is here.
    pub(crate) fn resident(&self, class: ClassId) -> Option<Arc<Resident<B>>> {
        let residents = self.residents.read().unwrap_or_else(PoisonError::into_inner);
        residents.get(class.index()).cloned().flatten()
    }

    fn all_residents(&self) -> Vec<(ClassId, Arc<Resident<B>>)> {
        let residents = self.residents.read().unwrap_or_else(PoisonError::into_inner);
        let each = residents.iter().enumerate();
        each.filter_map(|(at, it)| Some((ClassId::new(at), Arc::clone(it.as_ref()?)))).collect()
    }

    fn put(&self, class: ClassId, resident: Option<Arc<Resident<B>>>) -> Option<Arc<Resident<B>>> {
        let mut residents = self.residents.write().unwrap_or_else(PoisonError::into_inner);
        let count = residents.len().max(class.index() + 1);
        residents.resize_with(count, || None);
        std::mem::replace(&mut residents[class.index()], resident)
    }

    /// Tokens of a batch of a class that the largest idle slab holds.
    fn warm_tokens(&self, class: ClassId) -> usize {
        let bytes = self.pool.warm_bytes();
        self.resident(class).map_or(0, |resident| resident.tokens_within(bytes))
    }

    /// Starts a batch of a model. One that can't be split waits until `deadline` for memory that others
    /// use.
    fn start(
        &self,
        encoder: &Encoder<B>,
        batch: &Batch,
        deadline: Instant,
    ) -> Result<Started<B>, EncodeError> {
        let mut refused = false;
        loop {
            let patience = deadline.saturating_duration_since(Instant::now());
            let result = encoder.start(batch, &self.pool, patience);
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

    /// Bytes that are left for slabs beside all weights, with so many bytes more of these; an error says
    /// what the longest input of some model lacks.
    fn room_beside(&self, weights_bytes: usize) -> Result<usize, LeaseError> {
        let Statistics { budget_bytes, reserved_bytes, .. } = self.pool.statistics();
        let available = budget_bytes.saturating_sub(reserved_bytes);
        let room = available.saturating_sub(weights_bytes);
        let least = self.all_residents().iter().map(|(_, resident)| resident.least_bytes()).max();
        match least.unwrap_or_default() {
            least if weights_bytes > available || least > room => {
                Err(LeaseError::TooLarge { needed: weights_bytes.saturating_add(least), available })
            }
            _ => Ok(room),
        }
    }

    /// Puts another model beside those that are here. Their batches go on, smaller ones from the
    /// beginning, so that memory comes free.
    fn load_beside(
        &self,
        (index, class): (usize, ClassId),
        core: &Core,
        loading: &Loading<'_>,
    ) -> Result<Speed, StartError> {
        let lowering = self.backend.lowering().clone();
        let Statistics { budget_bytes, reserved_bytes, .. } = self.pool.statistics();
        let available = budget_bytes.saturating_sub(reserved_bytes);
        let fit = loading.fit(lowering, available, self.backend.in_flight())?;
        let room = self.room_beside(fit.weights_bytes)?;
        self.fit_batches(index, core, room);
        let deadline = Instant::now() + self.patience;
        let loaded = loop {
            match loading.load(&self.backend, &self.pool, &fit, Some(self.patience)) {
                // What is taken now are slabs of batches under way.
                Err(StartError::Load(LoadError::Memory(_))) if Instant::now() < deadline => {
                    std::thread::park_timeout(LOOK_AGAIN);
                }
                result => break result,
            }
        };
        let (resident, speed) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                self.fit_batches(index, core, available);
                return Err(error);
            }
        };
        self.put(class, Some(Arc::new(resident)));
        Ok(speed)
    }

    /// Has each model's batches fit so many bytes for slabs.
    fn fit_batches(&self, index: usize, core: &Core, room: usize) {
        for (class, resident) in self.all_residents() {
            core.queue.set_batch_tokens(index, class, resident.batch_tokens_in(room));
        }
    }
}

/// A device of any backend, on a thread of its own.
pub(crate) trait Worker: Send + Sync {
    /// Runs batches as the engine's device number `index`, until that device's work is over.
    fn work(&self, core: &Core, index: usize);
    /// The vectors of texts given as ids, by the model of a class, beside all queues.
    fn try_out(&self, class: ClassId, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EncodeError>;
    /// Puts another model on it, as the class of that number; says what is known of its speed there.
    fn load(
        &self,
        at: (usize, ClassId),
        core: &Core,
        loading: &Loading<'_>,
    ) -> Result<Speed, StartError>;
    /// Takes a model off it that has no more work, and gives its memory back.
    fn unload(&self, at: (usize, ClassId), core: &Core);
    fn name(&self) -> &str;
    /// Of the model of a class, if it is here.
    fn limits(&self, class: ClassId) -> Option<Limits>;
    /// The most tokens of a batch of a class; 0 if it is not here.
    fn batch_tokens(&self, class: ClassId) -> usize;
    /// The most tokens of a batch of each class where nobody uses `free` bytes of the device's memory:
    /// fewer than usual if what was counted on is no longer there, but enough for any one input.
    fn batch_tokens_with(&self, free: usize) -> Vec<(ClassId, usize)>;
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
        DeviceLoop::new(self, core, index).work();
    }

    fn try_out(&self, class: ClassId, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EncodeError> {
        let batch: Batch = texts.iter().collect();
        let Some(resident) = self.resident(class) else { return Err(not_here()) };
        let rows = resident.encoder.encode(&batch, &self.pool, self.patience)?;
        self.pool.trim(); // memory follows use
        let dimensions = resident.encoder.limits().dimensions;
        Ok(rows.chunks_exact(dimensions).map(<[f32]>::to_vec).collect())
    }

    fn load(
        &self,
        at: (usize, ClassId),
        core: &Core,
        loading: &Loading<'_>,
    ) -> Result<Speed, StartError> {
        self.load_beside(at, core, loading)
    }

    fn unload(&self, (index, class): (usize, ClassId), core: &Core) {
        let mut leaving = self.put(class, None);
        // Whoever answered its last request may still hold it for a moment.
        while let Some(resident) = leaving.take() {
            leaving = match Arc::try_unwrap(resident) {
                Ok(resident) => {
                    drop(resident);
                    None
                }
                Err(resident) => {
                    std::thread::park_timeout(FAREWELL);
                    Some(resident)
                }
            };
        }
        self.pool.trim();
        let Statistics { budget_bytes, reserved_bytes, .. } = self.pool.statistics();
        self.fit_batches(index, core, budget_bytes.saturating_sub(reserved_bytes));
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn limits(&self, class: ClassId) -> Option<Limits> {
        Some(self.resident(class)?.encoder.limits())
    }

    fn batch_tokens(&self, class: ClassId) -> usize {
        self.resident(class).map_or(0, |resident| resident.batch_tokens)
    }

    fn batch_tokens_with(&self, free: usize) -> Vec<(ClassId, usize)> {
        let Statistics { budget_bytes, reserved_bytes, held_bytes, .. } = self.pool.statistics();
        let residents = self.all_residents();
        let room = budget_bytes.saturating_sub(reserved_bytes);
        let alone = residents.len() < 2;
        let tokens = |resident: &Resident<B>| {
            if held_bytes.saturating_add(free) < room {
                // As at the start, not all that is free: the driver needs some.
                resident.batch_tokens_in(held_bytes + free / 10 * 9)
            } else if alone {
                resident.batch_tokens
            } else {
                resident.batch_tokens_in(room)
            }
        };
        residents.iter().map(|(class, resident)| (*class, tokens(resident))).collect()
    }

    fn in_flight(&self) -> usize {
        self.backend.in_flight()
    }

    fn memory_bytes(&self) -> usize {
        let Statistics { reserved_bytes, held_bytes, .. } = self.pool.statistics();
        reserved_bytes + held_bytes
    }

    fn memory(&self) -> PoolSample {
        let ways = self.backend.ways_taken();
        let plans = self.all_residents().into_iter().map(|(_, it)| it.encoder.plan_statistics());
        let add = |a: PlanStatistics, b: PlanStatistics| PlanStatistics {
            plans: a.plans + b.plans,
            hits: a.hits + b.hits,
            misses: a.misses + b.misses,
            evictions: a.evictions + b.evictions,
        };
        PoolSample {
            pool: self.pool.statistics(),
            plans: plans.reduce(add).unwrap_or_default(),
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

/// A batch of a model that is not on the device: a defect, for it was to be retired first.
fn not_here() -> EncodeError {
    let reason = "the model is not on this device: please report this".into();
    EncodeError::Backend(BackendError { operation: "finding the model", reason })
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
            let _ = catch_unwind(AssertUnwindSafe(|| core.queue.lose(index)));
            let device = device.name();
            tracing::error!(device, "the device's thread panicked and is gone: please report this");
        }
    })
}

#[cfg(test)]
mod tests;
