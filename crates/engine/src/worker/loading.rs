//! Models that come and go on a device beside others, and the memory that these leave each other.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use vecmill_encoder::{Backend, Encoder, LoadError, Shape};
use vecmill_memory::{LeaseError, Pool, Statistics};
use vecmill_scheduler::{ClassId, Speed};

use super::device::{Device, LOOK_AGAIN, PATIENCE, Resident};
use crate::answer::JobQueue;
use crate::devices::Loading;
use crate::error::StartError;
use crate::recording::RefusalRecordings;

/// How often unused memory is looked for.
const UPKEEP_INTERVAL: Duration = Duration::from_millis(250);

/// How often it is looked whether a model is let go of.
const FAREWELL: Duration = Duration::from_millis(1);

impl<B: Backend> Resident<B> {
    pub(crate) fn new(encoder: Encoder<B>, batch_tokens: usize) -> Self {
        Self { encoder, batch_tokens, fitting: Mutex::default() }
    }

    /// The most tokens of a batch where slabs may have so many bytes together: enough for any one
    /// input.
    pub(super) fn batch_tokens_in(&self, bytes: usize) -> usize {
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

    /// All models that are here.
    pub(super) fn all_residents(&self) -> Vec<(ClassId, Arc<Resident<B>>)> {
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
    pub(super) fn load_beside(
        &self,
        (index, class): (usize, ClassId),
        queue: &JobQueue,
        loading: &Loading<'_>,
    ) -> Result<Speed, StartError> {
        let lowering = self.backend.lowering().clone();
        let Statistics { budget_bytes, reserved_bytes, .. } = self.pool.statistics();
        let available = budget_bytes.saturating_sub(reserved_bytes);
        let fit = loading.fit(lowering, available, self.backend.in_flight())?;
        let room = self.room_beside(fit.weights_bytes)?;
        self.fit_batches(index, queue, room);
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
                self.fit_batches(index, queue, available);
                return Err(error);
            }
        };
        self.put(class, Some(Arc::new(resident)));
        Ok(speed)
    }

    /// Has each model's batches fit so many bytes for slabs.
    fn fit_batches(&self, index: usize, queue: &JobQueue, room: usize) {
        for (class, resident) in self.all_residents() {
            queue.set_batch_tokens(index, class, resident.batch_tokens_in(room));
        }
    }

    /// Takes a model off, and gives its memory back.
    pub(super) fn unload_from(&self, (index, class): (usize, ClassId), queue: &JobQueue) {
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
        self.fit_batches(index, queue, budget_bytes.saturating_sub(reserved_bytes));
    }
}
