//! A GPU made ready to run models: libraries, kernels, memory, and what may be missing.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use vecmill_memory::{Cause, SourceError};
use vecmill_model::DType;

use crate::compiler::Compiler;
use crate::error::Unavailable;
use crate::gemm::{Format, Gemm, HopperGemm, Measured};
use crate::gpu::Gpu;
use crate::graphs::Graphs;
use crate::kernels::Kernels;
use crate::lower::CudaLowering;
use crate::row_order::RowOrder;
use crate::run::CudaBackend;

use crate::source::CudaSource;
use crate::staging::StagingRing;

/// Pinned memory for indices and vectors of the batches in flight, and the least that is tried where
/// the host doesn't have that much: what finds no room goes around it.
const STAGING_BYTES: usize = 32 << 20;
const LEAST_STAGING_BYTES: usize = 64 << 10;

/// A GPU can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no such GPU, or no driver.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// A library is missing, or the GPU can't compute in this format.
    #[error("{device} can't run models: {reason}")]
    Unusable {
        /// For example `cuda:0`.
        device: String,
        /// What is missing, and what to do.
        reason: String,
    },
}

impl CudaBackend {
    /// The GPU of that number, computing in `format`. Compiled kernels are kept in `cache`, if that
    /// is a folder.
    ///
    /// # Errors
    /// [`OpenError`] says what is missing and what to do.
    pub fn open(ordinal: usize, format: DType, cache: Option<PathBuf>) -> Result<Self, OpenError> {
        Self::on(Gpu::open(ordinal)?, format, cache)
    }

    /// As [`open`](Self::open), on a device or a [part](Gpu::open_part) of one.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn on(device: Gpu, format: DType, cache: Option<PathBuf>) -> Result<Self, OpenError> {
        let unusable =
            |reason: String| OpenError::Unusable { device: device.name().to_owned(), reason };
        let (dtype, fp8, format) = (format, format == DType::F8E4M3, Format::from(format));
        let info = device.info();
        let compiler = Compiler::new(&device, cache).map_err(|e| unusable(e.to_string()))?;
        let compiler = Arc::new(compiler);
        let hopper = HopperGemm::new(&device, &compiler, format);
        if let Some(reason) = missing(format, fp8, info.compute_capability, hopper.is_some()) {
            return Err(unusable(reason));
        }
        let kernels = Kernels::new(&device, compiler, format, fp8);
        let kernels = kernels.map_err(|e| unusable(e.to_string()))?;
        let gemm = Gemm::open(&device).map_err(|e| unusable(e.to_string()))?;
        let parts = || -> Result<_, SourceError> {
            let staging = staging(&device)?;
            Ok((CudaSource::new(&device)?, device.stream()?, staging))
        };
        let (source, stream, staging) = parts().map_err(|e| unusable(e.to_string()))?;
        Ok(Self {
            lowering: CudaLowering::of(device.info(), dtype, hopper.is_some()),
            staging: Mutex::new(staging),
            graphs: Graphs::default(),
            measured: Measured::default(),
            row_order: RowOrder::default(),
            device,
            source,
            stream,
            kernels,
            gemm,
            hopper,
        })
    }
}

/// As much pinned memory as the host has, of what is wanted.
fn staging(device: &Gpu) -> Result<StagingRing, SourceError> {
    let mut bytes = STAGING_BYTES;
    loop {
        match StagingRing::new(device, bytes) {
            Err(error) if error.cause == Cause::Exhausted && bytes > LEAST_STAGING_BYTES => {
                bytes /= 2;
            }
            ring => return ring,
        }
    }
}

/// What a device lacks to compute in `format`, and what to do.
fn missing(format: Format, fp8: bool, (major, minor): (u32, u32), hopper: bool) -> Option<String> {
    if format == Format::Bf16 && major < 8 {
        return Some(format!(
            "it has no bfloat16 (compute capability {major}.{minor}, expected 8.0 or more): choose \
             float16 or float32"
        ));
    }
    (fp8 && !hopper).then(|| {
        format!(
            "FP8 is for compute capability 9.0, with an NVRTC that knows it (the device has \
             {major}.{minor}): choose float16"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_lack_fp8_are_refused_with_what_to_do() {
        let missing = |fp8, capability, hopper| missing(Format::F16, fp8, capability, hopper);
        assert_eq!(missing(true, (9, 0), true), None);
        assert_eq!(missing(false, (8, 0), false), None);
        let reason = missing(true, (8, 0), false).unwrap();
        assert!(reason.contains("has 8.0") && reason.contains("choose float16"), "{reason}");
    }
}
