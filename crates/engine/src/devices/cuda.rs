//! NVIDIA GPUs.

use std::time::Duration;

use vecmill_backend_cuda::{
    self as cuda, CudaBackend, Gpu, GpuInfo, GpuState, MemoryInfo, NoSensors, Unavailable, devices,
};
use vecmill_model::{DType, Model};

use super::spec::part_name;
use super::{DeviceSpec, FreeMemory, MemoryBudget, Opened, Terms, format_name};
use crate::builder::Builder;
use crate::error::StartError;
use crate::info;
use crate::sensors::Sensors;
use vecmill_hub::cache_folder;

/// How long practising may take, after which what remains is compiled and chosen when it comes up.
const WARM_UP: Duration = Duration::from_secs(20);

/// The GPUs of this machine.
pub(crate) fn gpus() -> Result<Vec<GpuInfo>, Unavailable> {
    devices()
}

/// Bytes of a GPU's memory that nobody uses, beside what a context on it takes.
pub(crate) fn free_memory(ordinal: usize) -> Option<usize> {
    Gpu::open(ordinal).ok()?.info().free_memory
}

/// What a GPU says of itself, if it does.
pub(crate) fn state(gpu: &GpuInfo) -> Option<GpuState> {
    Some(cuda::Sensors::open(gpu).ok()?.read())
}

/// A GPU's sensors, if they can be read.
fn sensors(gpu: &GpuInfo) -> Option<Sensors> {
    let told = |reason: &NoSensors| tracing::debug!(%reason, "by measured times alone");
    let mut sensors = cuda::Sensors::open(gpu).inspect_err(told).ok()?;
    Some(Sensors { gpu: gpu.uuid.clone(), read: Box::new(move || sensors.read()) })
}

/// What a GPU gives and takes.
pub(super) fn terms(budget_bytes: usize) -> Terms {
    Terms { budget_bytes, batch_tokens: usize::MAX, warm_up: WARM_UP, free_memory: None }
}

/// A GPU's free memory, by its sensors: they tell of it before there is a context.
fn sensed(ordinal: usize) -> Option<FreeMemory> {
    let gpu = gpus().ok()?.into_iter().find(|gpu| gpu.ordinal == ordinal)?;
    let now = move || Some(state(&gpu)?.memory?.free_bytes);
    Some(FreeMemory { before: now()?, now: Box::new(now) })
}

/// A GPU's free memory, by its driver: what its context takes is gone already.
fn free_by_driver(device: &Gpu) -> Option<FreeMemory> {
    let before = device.info().free_memory?;
    let device = device.clone();
    Some(FreeMemory { before, now: Box::new(move || Some(device.memory_info().ok()?.free)) })
}

impl Builder {
    pub(super) fn open_gpu(&self, model: &Model, ordinal: usize) -> Result<Opened, StartError> {
        let name = DeviceSpec::Cuda(Some(ordinal)).to_string();
        let free = sensed(ordinal);
        let device = Gpu::open(ordinal).map_err(missing(&name))?;
        let budget = |memory: MemoryInfo| memory.free / 10 * 9;
        self.open_on(model, &name, (device, free), budget)
    }

    /// A part of a GPU; `earlier` ones are as large.
    pub(super) fn open_part(
        &self,
        model: &Model,
        (ordinal, sms): (usize, u32),
        earlier: usize,
    ) -> Result<Opened, StartError> {
        let name = part_name(DeviceSpec::CudaPart { ordinal, sms }, earlier);
        let free = sensed(ordinal);
        let device = Gpu::open_part(ordinal, sms).map_err(missing(&name))?;
        let whole = gpus().map_err(missing(&name))?;
        let whole = whole.into_iter().find(|gpu| gpu.ordinal == ordinal);
        let parts = whole.map_or(1, |gpu| gpu.multiprocessors / sms.max(1)).max(1) as usize;
        // Its share of the memory is that of the multiprocessors.
        let budget = |memory: MemoryInfo| (memory.free / 10 * 9).min(memory.total / parts / 10 * 9);
        self.open_on(model, &name, (device, free), budget)
    }

    /// `budget` is what may be taken if nothing else is said: not all, because the driver and
    /// others need some, too.
    fn open_on(
        &self,
        model: &Model,
        name: &str,
        (device, free): (Gpu, Option<FreeMemory>),
        budget: impl Fn(MemoryInfo) -> usize,
    ) -> Result<Opened, StartError> {
        let format = self.dtype.unwrap_or(DType::F16);
        let cache = cache_folder(self.cache.as_deref()).map(|folder| folder.join("kernels"));
        let info = gpu_info(name, device.info(), format);
        let free_memory = free.or_else(|| free_by_driver(&device));
        let backend = CudaBackend::on(device, format, cache).map_err(missing(name))?;
        let memory = backend.device().memory_info().map_err(missing(name))?;
        let given = self.memory_budget.map(|budget: MemoryBudget| budget.of(Some(memory.total)));
        let budget_bytes = given.transpose()?.unwrap_or_else(|| budget(memory));
        let terms = Terms { free_memory, ..terms(budget_bytes) };
        let gpu = backend.device().info();
        let hardware = format!("{} {}, driver {:?}", info.description, gpu.uuid, gpu.driver);
        let sensors = sensors(gpu);
        Ok(Opened { sensors, ..self.load(model, info, &hardware, backend, terms)? })
    }
}

fn missing<E: std::fmt::Display>(device: &str) -> impl Fn(E) -> StartError {
    move |reason| StartError::NoDevice { device: device.to_owned(), reason: reason.to_string() }
}

/// What a GPU is.
fn gpu_info(name: &str, gpu: &GpuInfo, format: DType) -> info::DeviceSummary {
    info::DeviceSummary {
        name: name.to_owned(),
        description: describe(gpu),
        dtype: format_name(format).into(),
    }
}

/// For example `NVIDIA H200, compute capability 9.0`.
pub(crate) fn describe(gpu: &GpuInfo) -> String {
    let (major, minor) = gpu.compute_capability;
    format!("{}, compute capability {major}.{minor}", gpu.name)
}
