//! Models that come and go on a device beside others, and the memory that these leave each other.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use vecmill_encoder::{Ask, Backend, Encoder, Fit, LoadError, Lower, Practised, Shape, fit};
use vecmill_hub::cache_folder;
use vecmill_memory::{LeaseError, Pool, Statistics};
use vecmill_model::Model;
use vecmill_scheduler::{ClassId, Size, Speed};

use super::device::{Device, LOOK_AGAIN, PATIENCE, Resident};
use crate::answer::JobQueue;
use crate::error::StartError;
use crate::info::DeviceSummary;
use crate::recording::RefusalRecordings;
use crate::settings::Settings;
use crate::speed_cache::CachedSpeed;
use crate::stage::Stage;

/// How often unused memory is looked for.
const UPKEEP_INTERVAL: Duration = Duration::from_millis(250);

/// What is the same of a device for all models that are loaded onto it.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) info: DeviceSummary,
    /// What beside name and number format its speed depends on.
    pub(crate) hardware: String,
    /// Tokens of a batch from which on it gets no faster.
    pub(crate) batch_tokens: usize,
    /// How long practising may take.
    pub(crate) warm_up: Duration,
}

/// A model that is about to be loaded onto a device.
#[derive(Clone, Copy)]
pub(crate) struct Loading<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) model: &'a Model,
    pub(crate) profile: &'a Profile,
}

impl Profile {
    /// Where the device's speed with a model is kept.
    pub(crate) fn speed_cache(&self, settings: &Settings) -> Option<CachedSpeed> {
        let Self { info: DeviceSummary { name, dtype, .. }, hardware, .. } = self;
        let folder = cache_folder(settings.cache.as_deref())?.join("speeds");
        let (model, revision) = settings.model_name();
        let revision = revision.unwrap_or_default();
        let version = env!("CARGO_PKG_VERSION");
        let of = format!("{name} | {hardware} | {dtype} | {model}@{revision} | vecmill {version}");
        Some(CachedSpeed::new(&folder, of))
    }
}

impl Loading<'_> {
    /// The largest batch of it in a device's memory, beside weights whose bytes are known before any is
    /// read.
    pub(crate) fn fit(
        &self,
        lowering: impl Lower,
        budget_bytes: usize,
        in_flight: usize,
    ) -> Result<Fit, StartError> {
        let budget = (budget_bytes, self.profile.batch_tokens);
        largest_batch((self.settings, self.model), lowering, budget, in_flight)
    }

    /// Loads it, and says what is known of its speed there. With
    /// `patience` for memory that batches of other models have, it is loaded beside them: a device at
    /// work is not warmed up.
    pub(crate) fn load<B: Backend>(
        &self,
        backend: &Arc<B>,
        pool: &Pool<B::Source>,
        fit: &Fit,
        patience: Option<Duration>,
    ) -> Result<(Resident<B>, Speed), StartError> {
        let &Self { settings, model, profile } = self;
        let loading = |done, total| (settings.progress)(Stage::Loading { done, total });
        let encoder =
            Encoder::load_beside(Arc::clone(backend), model, settings.pooling, pool, &loading)?;
        let encoder = encoder.with_largest(fit.largest);
        // What fits on paper must be there: the longest input's memory is taken once, and given
        // back, because memory follows use.
        let longest = fit.largest.longest;
        let longest = Shape { tokens: longest, sequences: 1, longest };
        let bytes = encoder.peak_bytes(longest);
        drop(pool.lease_waiting(
            bytes,
            &encoder.backend().stream(),
            patience.unwrap_or_default(),
        )?);
        let cached = profile.speed_cache(settings).as_ref().and_then(CachedSpeed::read);
        let mut speed = cached.map_or_else(Speed::new, Speed::kept);
        if patience.is_none() && (settings.warm_up || settings.batch_latency.is_some()) {
            for Practised { shape, took } in self.warm_up(&encoder, pool, fit.largest.tokens)? {
                let each = shape.tokens / shape.sequences.max(1);
                speed.observe(Size::equal(shape.sequences, each), took);
            }
        }
        let batch_tokens = settings.batch_tokens(&speed, fit.largest.longest, fit.largest.tokens);
        Ok((Resident::new(encoder, batch_tokens), speed))
    }

    fn warm_up<B: Backend>(
        &self,
        encoder: &Encoder<B>,
        pool: &Pool<B::Source>,
        most: usize,
    ) -> Result<Vec<Practised>, StartError> {
        let Profile { info: DeviceSummary { name, .. }, warm_up, .. } = self.profile;
        let progress = |done, total| {
            (self.settings.progress)(Stage::WarmingUp { device: name.clone(), done, total });
        };
        encoder.warm_up(pool, most, *warm_up, &progress).map_err(|error| StartError::NoDevice {
            device: name.clone(),
            reason: format!("a batch of practice failed: {error}"),
        })
    }
}

/// The largest batch of a model within so many bytes, of so many tokens at most.
pub(crate) fn largest_batch(
    (settings, model): (&Settings, &Model),
    lowering: impl Lower,
    (budget_bytes, batch_tokens): (usize, usize),
    in_flight: usize,
) -> Result<Fit, StartError> {
    let longest_input = model.max_input_tokens();
    let max_batch_tokens = settings.max_batch_tokens.min(batch_tokens);
    let ask = Ask { budget_bytes, in_flight, longest_input, max_batch_tokens };
    Ok(fit(model, settings.pooling, lowering, ask)?)
}

impl<B: Backend> Resident<B> {
    pub(crate) fn new(encoder: Encoder<B>, batch_tokens: usize) -> Self {
        Self {
            encoder,
            batch_tokens: AtomicUsize::new(batch_tokens),
            fitting: Mutex::default(),
            gone: Mutex::default(),
        }
    }

    /// The most tokens of a batch here.
    pub(super) fn batch_tokens(&self) -> usize {
        self.batch_tokens.load(Ordering::Relaxed)
    }

    /// The most tokens of a batch where slabs may have so many bytes together: enough for any one
    /// input.
    pub(super) fn batch_tokens_in(&self, bytes: usize) -> usize {
        let tokens = self.encoder.tokens_within(bytes / self.encoder.backend().in_flight().max(1));
        tokens.max(self.encoder.limits().max_tokens).min(self.batch_tokens())
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
        refusal_recordings: Option<RefusalRecordings>,
    ) -> std::io::Result<Self> {
        let trimmer = Mutex::new(Some(pool.trimmer(UPKEEP_INTERVAL)?));
        let ways_practised = first.encoder.backend().ways_taken();
        Ok(Self {
            name: name.into(),
            backend: first.encoder.shared_backend(),
            pool,
            residents: RwLock::new(vec![Some(Arc::new(first))]),
            patience: PATIENCE,
            ways_practised,
            refusal_recordings,
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
        if let Some(resident) = self.put(class, None) {
            // Whoever answered its last request may still hold it for a moment.
            let (gone, wait) = channel();
            *resident.gone.lock().unwrap_or_else(PoisonError::into_inner) = Some(gone);
            drop(resident);
            let _ = wait.recv(); // nothing is sent: it ends with the resident
        }
        self.pool.trim();
        let Statistics { budget_bytes, reserved_bytes, .. } = self.pool.statistics();
        self.fit_batches(index, queue, budget_bytes.saturating_sub(reserved_bytes));
    }
}
