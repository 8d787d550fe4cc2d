//! Which devices an engine runs on, and how each is opened: [`cpu`], [`cuda`].
//!
//! The choice behind it: a kind of device is one file here that makes a backend and says how much
//! memory it may take; loading the model onto it is the same for all.

mod budget;
mod cpu;
mod cuda;
mod spec;
mod speed_cache;

use std::sync::Arc;
use std::time::Duration;

use vecmill_backend_cpu::CpuLowering;
use vecmill_backend_cuda::CudaLowering;
use vecmill_encoder::{Ask, Backend, Encoder, Fit, Lower, Practised, Shape, fit};
use vecmill_memory::{Pool, Statistics};
use vecmill_model::{DType, Model};
use vecmill_scheduler::{Size, Speed};

use crate::builder::Builder;
use crate::error::StartError;
use crate::info;
use crate::recording::RefusalRecordings;
use crate::sensors::Sensors;
use crate::stage::Stage;
use crate::worker::{self, Resident, Worker};
use spec::parts_like;
use vecmill_hub::cache_folder;

pub use budget::MemoryBudget;
pub use spec::{DeviceSpec, DeviceSpecError};
pub(crate) use speed_cache::CachedSpeed;

pub(crate) use cpu::cpu_info;
pub(crate) use cuda::{free_memory, gpus, state};

/// A device with the model on it.
pub(crate) struct Opened {
    pub(crate) worker: Arc<dyn Worker>,
    pub(crate) info: info::DeviceSummary,
    /// What is known of its speed already.
    pub(crate) speed: Speed,
    /// Where that is kept.
    pub(crate) kept: Option<CachedSpeed>,
    /// What it can say about itself, if anything.
    pub(crate) sensors: Option<Sensors>,
    /// What other models are loaded onto it by.
    pub(crate) place: Place,
}

/// Tokens of the inputs for which batches are sized.
const TYPICAL_LENGTH: f64 = 128.0;

/// A device's free memory, before anything of this process was on it and at any time.
struct FreeMemory {
    before: usize,
    now: Box<dyn Fn() -> Option<usize>>,
}

/// What a device gives and takes.
struct Terms {
    budget_bytes: usize,
    /// Tokens of a batch from which on it gets no faster.
    batch_tokens: usize,
    /// How long practising may take.
    warm_up: Duration,
    /// Where its driver takes memory beside the budget.
    free_memory: Option<FreeMemory>,
}

/// What is the same of a device for all models that are loaded onto it.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) info: info::DeviceSummary,
    /// What beside name and number format its speed depends on.
    hardware: String,
    /// Tokens of a batch from which on it gets no faster.
    batch_tokens: usize,
    /// How long practising may take.
    warm_up: Duration,
}

/// A model that is about to be loaded onto a device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loading<'a> {
    /// Its settings.
    pub(crate) builder: &'a Builder,
    pub(crate) model: &'a Model,
    pub(crate) place: &'a Place,
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
        let budget = (budget_bytes, self.place.batch_tokens);
        self.builder.fit_in(self.model, lowering, budget, in_flight)
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
        let &Self { builder, model, place } = self;
        let loading = |done, total| (builder.progress)(Stage::Loading { done, total });
        let encoder =
            Encoder::load_beside(Arc::clone(backend), model, builder.pooling, pool, &loading)?;
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
        let kept = builder.kept_speed(place).as_ref().and_then(CachedSpeed::read);
        let mut speed = kept.map_or_else(Speed::new, Speed::kept);
        if patience.is_none() && (builder.warm_up || builder.batch_latency.is_some()) {
            let (name, most) = (&place.info.name, fit.largest.tokens);
            for Practised { shape, took } in
                builder.practise(name, &encoder, pool, most, place.warm_up)?
            {
                let each = shape.tokens / shape.sequences.max(1);
                speed.observe(Size::equal(shape.sequences, each), took);
            }
        }
        let batch_tokens = builder.batch_tokens(&speed, fit.largest);
        Ok((Resident::new(encoder, batch_tokens), speed))
    }
}

impl Builder {
    /// Opens the devices that were asked for and loads `model` onto each.
    pub(crate) fn open(&self, model: &Model) -> Result<Vec<Opened>, StartError> {
        let mut opened: Vec<Opened> = Vec::new();
        for spec in &self.devices {
            let more = match spec {
                DeviceSpec::Auto => self.open_any(model)?,
                DeviceSpec::Cpu => vec![self.open_cpu(model)?],
                DeviceSpec::Cuda(None) => self.open_gpus(model)?,
                DeviceSpec::Cuda(Some(ordinal)) => vec![self.open_gpu(model, *ordinal)?],
                DeviceSpec::CudaPart { ordinal, sms } => {
                    let names = opened.iter().map(|device| device.info.name.as_str());
                    let earlier = parts_like(*spec, names);
                    vec![self.open_part(model, (*ordinal, *sms), earlier)?]
                }
            };
            for device in more {
                let name = &device.info.name;
                if opened.iter().any(|other| other.info.name == *name) {
                    let reason = format!("{name} is given twice: name each device once");
                    return Err(StartError::Setting { setting: "device", reason });
                }
                opened.push(device);
            }
        }
        Ok(opened)
    }

    /// All GPUs that can be used, else the CPU.
    fn open_any(&self, model: &Model) -> Result<Vec<Opened>, StartError> {
        let ordinals = match gpus() {
            Ok(gpus) => gpus.into_iter().map(|gpu| gpu.ordinal).collect(),
            Err(reason) => {
                tracing::debug!(%reason, "no GPU");
                Vec::new()
            }
        };
        let mut opened = Vec::new();
        for ordinal in ordinals {
            match self.open_gpu(model, ordinal) {
                Ok(device) => opened.push(device),
                Err(StartError::NoDevice { device, reason }) => {
                    tracing::warn!(device, reason, "a GPU is left out");
                }
                Err(error) => return Err(error),
            }
        }
        if opened.is_empty() {
            opened.push(self.open_cpu(model)?);
        }
        Ok(opened)
    }

    fn open_gpus(&self, model: &Model) -> Result<Vec<Opened>, StartError> {
        let found = gpus().map_err(|reason| StartError::NoDevice {
            device: "cuda".into(),
            reason: reason.to_string(),
        })?;
        found.into_iter().map(|gpu| self.open_gpu(model, gpu.ordinal)).collect()
    }

    /// Loads the model onto a backend, for batches as large as the budget allows. `hardware` is what
    /// beside name and number format the device's speed depends on.
    fn load<B: Backend>(
        &self,
        model: &Model,
        info: info::DeviceSummary,
        hardware: &str,
        backend: B,
        terms: Terms,
    ) -> Result<Opened, StartError> {
        let Terms { budget_bytes, batch_tokens, warm_up, free_memory } = terms;
        let place = Place { info, hardware: hardware.to_owned(), batch_tokens, warm_up };
        let loading = Loading { builder: self, model, place: &place };
        let fit = loading.fit(backend.lowering().clone(), budget_bytes, backend.in_flight())?;
        let pool = Pool::with_settings(backend.source(), budget_bytes, self.memory.clone());
        let (resident, speed) = loading.load(&Arc::new(backend), &pool, &fit, None)?;
        let kept = self.kept_speed(&place);
        pool.trim();
        if let Some(FreeMemory { before, now }) = free_memory
            && let Some(free) = now()
        {
            let Statistics { reserved_bytes, held_bytes, .. } = pool.statistics();
            pool.note_driver(before.saturating_sub(free + reserved_bytes + held_bytes));
        }
        let traces = self.refusal_traces.clone().map(RefusalRecordings::new);
        let device = worker::Device::new(&place.info.name, resident, pool, traces);
        let worker = Arc::new(device.map_err(StartError::Thread)?);
        Ok(Opened { worker, info: place.info.clone(), speed, kept, sensors: None, place })
    }

    /// The most tokens of a batch: what fits, or less where the device is at nearly full speed with
    /// less, or where more would take too long.
    fn batch_tokens(&self, speed: &Speed, largest: Shape) -> usize {
        match (self.batch_latency, speed.coefficients()) {
            (Some(bound), Some(model)) => {
                model.saturation_tokens(TYPICAL_LENGTH, bound, largest.longest, largest.tokens)
            }
            _ => largest.tokens,
        }
    }

    pub(crate) fn kept_speed(&self, place: &Place) -> Option<CachedSpeed> {
        let Place { info: info::DeviceSummary { name, dtype, .. }, hardware, .. } = place;
        let folder = cache_folder(self.cache.as_deref())?.join("speeds");
        let (model, revision) = self.model_name();
        let revision = revision.unwrap_or_default();
        let version = env!("CARGO_PKG_VERSION");
        let of = format!("{name} | {hardware} | {dtype} | {model}@{revision} | vecmill {version}");
        Some(CachedSpeed::new(&folder, of))
    }

    fn practise<B: Backend>(
        &self,
        name: &str,
        encoder: &Encoder<B>,
        pool: &Pool<B::Source>,
        most: usize,
        limit: Duration,
    ) -> Result<Vec<Practised>, StartError> {
        let progress = |done, total| {
            (self.progress)(Stage::WarmingUp { device: name.to_owned(), done, total });
        };
        encoder.warm_up(pool, most, limit, &progress).map_err(|error| StartError::NoDevice {
            device: name.to_owned(),
            reason: format!("a batch of practice failed: {error}"),
        })
    }

    /// The largest batch of `model` within so many bytes, of so many tokens at most.
    fn fit_in(
        &self,
        model: &Model,
        lowering: impl Lower,
        (budget_bytes, batch_tokens): (usize, usize),
        in_flight: usize,
    ) -> Result<Fit, StartError> {
        let longest_input = model.max_input_tokens();
        let max_batch_tokens = self.max_batch_tokens.min(batch_tokens);
        let ask = Ask { budget_bytes, in_flight, longest_input, max_batch_tokens };
        Ok(fit(model, self.pooling, lowering, ask)?)
    }

    /// The largest batch of `model` on the CPU.
    pub(crate) fn fit_on_cpu(&self, model: &Model, in_flight: usize) -> Result<Fit, StartError> {
        let Terms { budget_bytes, batch_tokens, .. } = self.cpu_terms()?;
        let lowering = CpuLowering::new(self.cpu_threads);
        self.fit_in(model, lowering, (budget_bytes, batch_tokens), in_flight)
    }

    /// The largest batch of `model` on a GPU that need not be there.
    pub(crate) fn fit_on_gpu(
        &self,
        model: &Model,
        format: DType,
        in_flight: usize,
    ) -> Result<Fit, StartError> {
        let Some(MemoryBudget::Bytes(budget_bytes)) = self.memory_budget else {
            return Err(StartError::Setting {
                setting: "memory budget",
                reason: "planning for a GPU needs it: give the bytes that vecmill may take there"
                    .into(),
            });
        };
        let Terms { budget_bytes, batch_tokens, .. } = cuda::terms(budget_bytes);
        let lowering = CudaLowering::most(format);
        self.fit_in(model, lowering, (budget_bytes, batch_tokens), in_flight)
    }
}

/// A number format's name in settings and answers, for example `float16`.
pub(crate) fn format_name(format: DType) -> &'static str {
    match format {
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        DType::F8E4M3 => "fp8",
    }
}
