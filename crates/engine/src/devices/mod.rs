//! Which devices an engine runs on, and how each is opened.
//!
//! - [`Kind`] is all that there is to know of a kind of device, a file each: [`cpu`], [`cuda`]. [`KINDS`]
//!   has them in a table, which users' words (`spec`), what this machine has ([`inventory`]), capacity
//!   and the start of an engine go by.
//! - [`Opening`] loads a model onto any kind's backend, in the same way.
//!
//! The choice behind it: a kind is a backend, how much memory it may take, and words. So a new one is its
//! crate, one file here and one line of the table.

mod cpu;
mod cuda;
pub mod inventory;
mod spec;

use std::sync::Arc;
use std::time::Duration;

use vecmill_encoder::{Backend, Fit, Lower};
use vecmill_memory::{Pool, Statistics};
use vecmill_model::{DType, Model};
use vecmill_scheduler::Speed;

use crate::error::StartError;
use crate::info::DeviceSummary;
use crate::recording::RefusalRecordings;
use crate::sensors::Sensors;
use crate::settings::Settings;
use crate::speed_cache::CachedSpeed;
use crate::worker::{Device, Loading, Profile, Worker, largest_batch};
use inventory::{Found, Library};

pub(crate) use cpu::Cpu;
pub(crate) use cuda::Cuda;
pub use spec::{DeviceSpec, DeviceSpecError};

/// The kinds of devices. Of these, `auto` takes all that can be used of the first that has any.
const KINDS: [&dyn Kind; 2] = [&Cuda, &Cpu];

/// A kind of device.
pub(crate) trait Kind: Sync {
    /// What the names of such devices begin with, for example `cuda`.
    fn name(&self) -> &'static str;

    /// What users may write to have such devices, in words.
    fn forms(&self) -> &'static str;

    /// Whether what a user wrote behind the name says which devices are wanted.
    fn knows(&self, which: &str) -> bool;

    /// Opens these; those `earlier` are open already.
    fn open(
        &self,
        opening: &Opening<'_>,
        which: &str,
        earlier: &[&str],
    ) -> Result<Vec<Opened>, StartError>;

    /// Opens all that can be used: none, where there is none.
    fn open_usable(&self, opening: &Opening<'_>) -> Result<Vec<Opened>, StartError>;

    /// Those of this machine, or why there is none.
    fn find(&self) -> Result<Vec<Found>, String>;

    /// The libraries that they need.
    fn libraries(&self) -> Vec<Library> {
        Vec::new()
    }

    /// The largest batch on one that computes in `format`, has so many batches at once, and need not be
    /// there.
    fn fit(
        &self,
        opening: &Opening<'_>,
        format: DType,
        in_flight: usize,
    ) -> Result<Fit, StartError>;

    /// What its driver takes beside the budget, roughly.
    fn driver_bytes(&self) -> Option<usize> {
        None
    }
}

/// A device with the model on it.
pub(crate) struct Opened {
    pub(crate) worker: Arc<dyn Worker>,
    /// What is known of its speed already.
    pub(crate) speed: Speed,
    /// Where that is kept.
    pub(crate) speed_cache: Option<CachedSpeed>,
    /// What it can say about itself, if anything.
    pub(crate) sensors: Option<Sensors>,
    /// What other models are loaded onto it by.
    pub(crate) profile: Profile,
}

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

/// The first model, and how it is loaded onto devices.
#[derive(Clone, Copy)]
pub(crate) struct Opening<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) model: &'a Model,
}

/// Opens the devices that are asked for, and loads a model onto each.
pub(crate) fn open(
    devices: &[DeviceSpec],
    settings: &Settings,
    model: &Model,
) -> Result<Vec<Opened>, StartError> {
    let opening = Opening { settings, model };
    let mut opened: Vec<Opened> = Vec::new();
    for spec in devices {
        let names: Vec<&str> = opened.iter().map(Opened::name).collect();
        let more = match spec.kind() {
            Some((kind, which)) => kind.open(&opening, which, &names)?,
            None => opening.usable()?,
        };
        for device in more {
            let name = device.name();
            if opened.iter().any(|other| other.name() == name) {
                let reason = format!("{name} is given twice: name each device once");
                return Err(StartError::Setting { setting: "device", reason });
            }
            opened.push(device);
        }
    }
    Ok(opened)
}

impl Opened {
    fn name(&self) -> &str {
        &self.profile.info.name
    }
}

impl Opening<'_> {
    /// All that can be used of the first kind that has any.
    fn usable(&self) -> Result<Vec<Opened>, StartError> {
        for kind in KINDS {
            let opened = kind.open_usable(self)?;
            if !opened.is_empty() {
                return Ok(opened);
            }
        }
        Err(StartError::no_device())
    }

    /// Loads the model onto a backend, for batches as large as the budget allows. `hardware` is what
    /// beside name and number format the device's speed depends on.
    fn onto<B: Backend>(
        &self,
        backend: B,
        info: DeviceSummary,
        hardware: &str,
        terms: Terms,
    ) -> Result<Opened, StartError> {
        let &Self { settings, model } = self;
        let Terms { budget_bytes, batch_tokens, warm_up, free_memory } = terms;
        let profile = Profile { info, hardware: hardware.to_owned(), batch_tokens, warm_up };
        let loading = Loading { settings, model, profile: &profile };
        let fit = loading.fit(backend.lowering().clone(), budget_bytes, backend.in_flight())?;
        let pool = Pool::with_settings(backend.source(), budget_bytes, settings.memory.clone());
        let (resident, speed) = loading.load(&Arc::new(backend), &pool, &fit, None)?;
        let speed_cache = profile.speed_cache(settings);
        pool.trim();
        if let Some(FreeMemory { before, now }) = free_memory
            && let Some(free) = now()
        {
            let Statistics { reserved_bytes, held_bytes, .. } = pool.statistics();
            pool.note_driver(before.saturating_sub(free + reserved_bytes + held_bytes));
        }
        let recordings = settings.refusal_recordings.clone().map(RefusalRecordings::new);
        let device = Device::new(profile.info.name.clone(), resident, pool, recordings);
        let worker = Arc::new(device.map_err(StartError::Thread)?);
        Ok(Opened { worker, speed, speed_cache, sensors: None, profile })
    }

    /// The largest batch on a device of a kind that need not be there.
    fn fit(
        &self,
        lowering: impl Lower,
        terms: &Terms,
        in_flight: usize,
    ) -> Result<Fit, StartError> {
        let budget = (terms.budget_bytes, terms.batch_tokens);
        largest_batch((self.settings, self.model), lowering, budget, in_flight)
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
