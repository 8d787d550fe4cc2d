//! NVIDIA GPUs.

use std::time::Duration;

use vecmill_backend_cuda::{CudaBackend, DeviceInfo, MemoryInfo, Unavailable, devices};
use vecmill_encoder::model::DType;
use vecmill_encoder::{Footprint, Model};

use super::{MemoryBudget, Opened, Terms, format_name};
use crate::builder::Builder;
use crate::error::StartError;
use crate::fetch::cache_folder;
use crate::info;

/// How long practising may take, after which what remains is compiled and chosen when it comes up.
const WARM_UP: Duration = Duration::from_secs(20);

/// The GPUs of this machine.
pub(crate) fn gpus() -> Result<Vec<DeviceInfo>, Unavailable> {
    devices()
}

/// What a GPU that computes in `format` takes.
pub(super) fn terms(format: DType, budget_bytes: usize) -> Terms {
    let footprint = Footprint::gpu(format);
    Terms { footprint, budget_bytes, batch_tokens: usize::MAX, warm_up: WARM_UP }
}

impl Builder {
    pub(super) fn open_gpu(&self, model: &Model, ordinal: usize) -> Result<Opened, StartError> {
        let name = format!("cuda:{ordinal}");
        let missing = |reason: String| StartError::NoDevice { device: name.clone(), reason };
        let format = self.dtype.unwrap_or(DType::F16);
        let cache = cache_folder(self.cache.as_deref()).map(|folder| folder.join("kernels"));
        let backend = CudaBackend::open(ordinal, format, cache);
        let backend = backend.map_err(|reason| missing(reason.to_string()))?;
        let device = backend.device().clone();
        let memory = device.memory_info().map_err(|error| missing(error.to_string()))?;
        let terms = terms(format, self.gpu_budget(memory)?);
        let (worker, practised) = self.load(model, &name, backend, terms)?;
        Ok(Opened { worker, info: gpu_info(device.info(), format), practised })
    }

    /// What was asked for, or most of what is free now: the driver and others need some, too.
    fn gpu_budget(&self, memory: MemoryInfo) -> Result<usize, StartError> {
        self.memory_budget
            .map_or(Ok(memory.free / 10 * 9), |budget: MemoryBudget| budget.of(Some(memory.total)))
    }
}

/// What a GPU is.
fn gpu_info(gpu: &DeviceInfo, format: DType) -> info::Device {
    info::Device {
        name: format!("cuda:{}", gpu.ordinal),
        description: describe(gpu),
        dtype: format_name(format).into(),
    }
}

/// For example `NVIDIA H200, compute capability 9.0`.
pub(crate) fn describe(gpu: &DeviceInfo) -> String {
    let (major, minor) = gpu.compute_capability;
    format!("{}, compute capability {major}.{minor}", gpu.name)
}
