//! NVIDIA GPUs, and parts of them.

use std::time::Duration;

use vecmill_backend_cuda::{
    self as cuda, CudaBackend, CudaLowering, Gpu, GpuInfo, GpuState, MemoryInfo, NoSensors,
    Unavailable, devices,
};
use vecmill_encoder::Fit;
use vecmill_model::DType;
use vecmill_model::disk::cache_folder;

use super::inventory::{Found, Library, LibraryFile};
use super::{FreeMemory, Kind, Opened, Opening, Terms, format_name};
use crate::error::StartError;
use crate::info::DeviceSummary;
use crate::sensors::Sensors;
use crate::settings::MemoryBudget;

/// How long practising may take, after which what remains is compiled and chosen when it comes up.
const WARM_UP: Duration = Duration::from_secs(20);

const NAME: &str = "cuda";

/// The kind.
pub(crate) struct Cuda;

/// Which GPUs are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    All,
    One(usize),
    /// A part of one, of at least so many multiprocessors that no other part has.
    Part {
        ordinal: usize,
        sms: u32,
    },
}

impl Which {
    /// As users write it behind the kind's name.
    fn of(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::All);
        }
        let text = text.strip_prefix(':')?;
        let (ordinal, part) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let ordinal = ordinal.parse().ok()?;
        let Some(part) = part else { return Some(Self::One(ordinal)) };
        let sms = part.strip_prefix("sms=")?.parse().ok().filter(|&sms| sms > 0)?;
        Some(Self::Part { ordinal, sms })
    }

    /// The name of such a device.
    fn name(self) -> String {
        match self {
            Self::All => NAME.to_owned(),
            Self::One(ordinal) => format!("{NAME}:{ordinal}"),
            Self::Part { ordinal, sms } => format!("{NAME}:{ordinal}/sms={sms}"),
        }
    }

    /// The same, where devices of the same name may be open: `cuda:0/sms=32`, then `cuda:0/sms=32#2`.
    fn name_after(self, earlier: &[&str]) -> String {
        let name = self.name();
        match earlier.iter().filter(|other| other.split('#').next() == Some(&name)).count() {
            0 => name,
            count => format!("{name}#{}", count + 1),
        }
    }
}

impl Kind for Cuda {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forms(&self) -> &'static str {
        "cuda, cuda:0 for the first GPU, or cuda:0/sms=32 for 32 of its multiprocessors"
    }

    fn knows(&self, which: &str) -> bool {
        Which::of(which).is_some()
    }

    fn open(
        &self,
        opening: &Opening<'_>,
        which: &str,
        earlier: &[&str],
    ) -> Result<Vec<Opened>, StartError> {
        match Which::of(which) {
            Some(Which::One(ordinal)) => Ok(vec![open_gpu(opening, ordinal)?]),
            Some(part @ Which::Part { ordinal, sms }) => {
                let name = part.name_after(earlier);
                Ok(vec![open_part(opening, (ordinal, sms), &name)?])
            }
            Some(Which::All) | None => {
                let found = devices().map_err(missing(NAME))?;
                found.into_iter().map(|gpu| open_gpu(opening, gpu.ordinal)).collect()
            }
        }
    }

    fn open_usable(&self, opening: &Opening<'_>) -> Result<Vec<Opened>, StartError> {
        let without = |reason: &Unavailable| tracing::debug!(%reason, "no GPU");
        let mut opened = Vec::new();
        for gpu in devices().inspect_err(without).unwrap_or_default() {
            match open_gpu(opening, gpu.ordinal) {
                Ok(device) => opened.push(device),
                Err(StartError::NoDevice { device, reason }) => {
                    tracing::warn!(device, reason, "a GPU is left out");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(opened)
    }

    fn find(&self) -> Result<Vec<Found>, String> {
        let gpus = devices().map_err(|reason| reason.to_string())?;
        Ok(gpus.iter().map(found).collect())
    }

    fn libraries(&self) -> Vec<Library> {
        libraries()
    }

    fn fit(
        &self,
        opening: &Opening<'_>,
        format: DType,
        in_flight: usize,
    ) -> Result<Fit, StartError> {
        let Some(MemoryBudget::Bytes(budget_bytes)) = opening.settings.memory_budget else {
            return Err(StartError::Setting {
                setting: "memory budget",
                reason: "planning for a GPU needs it: give the bytes that vecmill may take there"
                    .into(),
            });
        };
        opening.fit(CudaLowering::most(format), &terms(budget_bytes), in_flight)
    }

    fn driver_bytes(&self) -> Option<usize> {
        Some(CudaLowering::DRIVER_BYTES)
    }
}

/// Bytes of a GPU's memory that nobody uses, beside what a context on it takes.
fn free_memory(ordinal: usize) -> Option<usize> {
    Gpu::open(ordinal).ok()?.info().free_memory
}

/// What a GPU says of itself, if it does.
fn state(gpu: &GpuInfo) -> Option<GpuState> {
    Some(cuda::Sensors::open(gpu).ok()?.read())
}

/// A GPU's sensors, if they can be read.
fn sensors(gpu: &GpuInfo) -> Option<Sensors> {
    let told = |reason: &NoSensors| tracing::debug!(%reason, "by measured times alone");
    let mut sensors = cuda::Sensors::open(gpu).inspect_err(told).ok()?;
    Some(Sensors { gpu: gpu.uuid.clone(), read: Box::new(move || sensors.read()) })
}

/// What a GPU gives and takes.
fn terms(budget_bytes: usize) -> Terms {
    Terms { budget_bytes, batch_tokens: usize::MAX, warm_up: WARM_UP, free_memory: None }
}

/// A GPU's free memory, by its sensors: they tell of it before there is a context.
fn sensed(ordinal: usize) -> Option<FreeMemory> {
    let gpu = devices().ok()?.into_iter().find(|gpu| gpu.ordinal == ordinal)?;
    let now = move || Some(state(&gpu)?.memory?.free_bytes);
    Some(FreeMemory { before: now()?, now: Box::new(now) })
}

/// A GPU's free memory, by its driver: what its context takes is gone already.
fn free_by_driver(device: &Gpu) -> Option<FreeMemory> {
    let before = device.info().free_memory?;
    let device = device.clone();
    Some(FreeMemory { before, now: Box::new(move || Some(device.memory_info().ok()?.free)) })
}

fn open_gpu(opening: &Opening<'_>, ordinal: usize) -> Result<Opened, StartError> {
    let name = Which::One(ordinal).name();
    let free = sensed(ordinal);
    let device = Gpu::open(ordinal).map_err(missing(&name))?;
    let budget = |memory: MemoryInfo| memory.free / 10 * 9;
    open_on(opening, &name, (device, free), budget)
}

/// A part of a GPU, as the device `name`.
fn open_part(
    opening: &Opening<'_>,
    (ordinal, sms): (usize, u32),
    name: &str,
) -> Result<Opened, StartError> {
    let free = sensed(ordinal);
    let device = Gpu::open_part(ordinal, sms).map_err(missing(name))?;
    let whole = devices().map_err(missing(name))?;
    let whole = whole.into_iter().find(|gpu| gpu.ordinal == ordinal);
    let parts = whole.map_or(1, |gpu| gpu.multiprocessors / sms.max(1)).max(1) as usize;
    // Its share of the memory is that of the multiprocessors.
    let budget = |memory: MemoryInfo| (memory.free / 10 * 9).min(memory.total / parts / 10 * 9);
    open_on(opening, name, (device, free), budget)
}

/// `budget` is what may be taken if nothing else is said: not all, because the driver and
/// others need some, too.
fn open_on(
    opening: &Opening<'_>,
    name: &str,
    (device, free): (Gpu, Option<FreeMemory>),
    budget: impl Fn(MemoryInfo) -> usize,
) -> Result<Opened, StartError> {
    let settings = opening.settings;
    let format = format(opening)?;
    let cache = cache_folder(settings.cache.as_deref()).map(|folder| folder.join("kernels"));
    let summary = summary(name, device.info(), format);
    let free_memory = free.or_else(|| free_by_driver(&device));
    let backend = CudaBackend::on(device, format, cache).map_err(missing(name))?;
    let memory = backend.device().memory_info().map_err(missing(name))?;
    let given = settings.memory_budget.map(|budget: MemoryBudget| budget.of(Some(memory.total)));
    let budget_bytes = given.transpose()?.unwrap_or_else(|| budget(memory));
    let terms = Terms { free_memory, ..terms(budget_bytes) };
    let gpu = backend.device().info();
    let hardware = format!("{} {}, driver {:?}", summary.description, gpu.uuid, gpu.driver);
    let sensors = sensors(gpu);
    Ok(Opened { sensors, ..opening.onto(backend, summary, &hardware, terms)? })
}

/// The number format that is asked for, or the best for the model's family.
fn format(opening: &Opening<'_>) -> Result<DType, StartError> {
    let family = opening.model.config.family;
    let format = opening.settings.dtype.unwrap_or(family.best_format());
    if family.formats.contains(&format) {
        return Ok(format);
    }
    let sound: Vec<_> = family.formats.iter().map(|&format| format_name(format)).collect();
    let (name, sound) = (format_name(format), sound.join(", "));
    let reason = format!("{} is not computed in {name}: choose one of {sound}", family.name);
    Err(StartError::Setting { setting: "dtype", reason })
}

fn missing<E: std::fmt::Display>(device: &str) -> impl Fn(E) -> StartError {
    move |reason| StartError::NoDevice { device: device.to_owned(), reason: reason.to_string() }
}

/// What a GPU is.
fn summary(name: &str, gpu: &GpuInfo, format: DType) -> DeviceSummary {
    DeviceSummary {
        name: name.into(),
        description: describe(gpu),
        dtype: format_name(format).into(),
    }
}

/// For example `NVIDIA H200, compute capability 9.0`.
fn describe(gpu: &GpuInfo) -> String {
    let (major, minor) = gpu.compute_capability;
    format!("{}, compute capability {major}.{minor}", gpu.name)
}

fn found(gpu: &GpuInfo) -> Found {
    let (major, minor) = gpu.compute_capability;
    Found {
        name: Which::One(gpu.ordinal).name().into(),
        description: format!("compute capability {major}.{minor}"),
        processor: Some(gpu.name.clone()),
        memory_bytes: Some(gpu.total_memory),
        memory_limited_by: None,
        free_memory_bytes: free_memory(gpu.ordinal),
        state: state(gpu),
    }
}

/// The driver's library, and those that are looked for beside it.
fn libraries() -> Vec<Library> {
    let file = |found: cuda::Found| {
        let (major, minor) = found.version;
        LibraryFile { version: format!("{major}.{minor}"), file: found.file }
    };
    let driver = Library {
        name: "driver",
        purpose: "all work on GPUs",
        found: cuda::driver_library().map(file).map_err(|reason| reason.to_string()),
    };
    let [nvrtc, cublaslt] = cuda::libraries().map(|(library, found)| Library {
        name: library.name(),
        purpose: library.purpose(),
        found: found.map(file).map_err(|missing| missing.to_string()),
    });
    vec![driver, nvrtc, cublaslt]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_apart_by_their_whole_names() {
        let mut names: Vec<String> = Vec::new();
        for text in
            ["cuda:0/sms=80", "cuda:0/sms=8", "cuda:0/sms=8", "cuda:0/sms=80", "cuda:0/sms=8"]
                .into_iter()
                .chain(["cuda:1/sms=8", "cuda:10/sms=8", "cuda:1/sms=8", "cuda:0/sms=800"])
        {
            let part = Which::of(text.strip_prefix(NAME).unwrap()).unwrap();
            assert_eq!(part.name(), text);
            let earlier: Vec<&str> = names.iter().map(String::as_str).collect();
            let name = part.name_after(&earlier);
            names.push(name);
        }
        let expected = [
            "cuda:0/sms=80",
            "cuda:0/sms=8",
            "cuda:0/sms=8#2",
            "cuda:0/sms=80#2",
            "cuda:0/sms=8#3",
            "cuda:1/sms=8",
            "cuda:10/sms=8",
            "cuda:1/sms=8#2",
            "cuda:0/sms=800",
        ];
        assert_eq!(names, expected);
    }
}
