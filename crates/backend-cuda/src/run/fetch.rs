//! Activations copied to the host, by the staging ring.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use vecmill_encoder::{BackendError, Place};
use vecmill_memory::{Cause, SourceError};

use super::{CudaBackend, failed};
use crate::gemm::Format;
use crate::source::CudaBlock;
use crate::staging::Staged;
use crate::stream::CudaEvent;

/// Activations on their way to the host. The event is behind the copy: whoever collects waits for it
/// without the staging ring. There is none where the host has no more events.
#[derive(Debug)]
pub struct CudaFetched(Staged, Option<CudaEvent>);

impl CudaBackend {
    pub(super) fn start_fetch(
        &self,
        slab: &CudaBlock,
        from: Place,
    ) -> Result<CudaFetched, BackendError> {
        let fetch = || -> Result<CudaFetched, SourceError> {
            let span = slab.span(from.bytes())?;
            let staged = self.staging().copy_out(&self.stream, span)?;
            let mut copied = match self.device.event() {
                Ok(event) => Some(event),
                Err(error) if error.cause == Cause::Exhausted => None,
                Err(error) => return Err(error),
            };
            if let Some(event) = &mut copied {
                self.stream.record(event)?;
            }
            Ok(CudaFetched(staged, copied))
        };
        fetch().map_err(failed("fetch"))
    }

    pub(super) fn finish_fetch(
        &self,
        CudaFetched(staged, copied): CudaFetched,
        into: &mut [f32],
    ) -> Result<(), BackendError> {
        if let Some(event) = copied {
            event.synchronize().map_err(failed("collect"))?;
        }
        let mut bytes = vec![0; staged.bytes()];
        self.staging().read(staged, &mut bytes).map_err(failed("collect"))?;
        let numbers = bytes.chunks_exact(self.lowering.format.bytes());
        let short = || BackendError {
            operation: "collect",
            reason: format!("{} numbers came for {}", numbers.len(), into.len()),
        };
        if numbers.len() != into.len() {
            return Err(short());
        }
        match self.lowering.format {
            Format::F32 => bytemuck::cast_slice_mut(into).copy_from_slice(&bytes),
            Format::F16 => {
                bytemuck::pod_collect_to_vec::<u8, f16>(&bytes).convert_to_f32_slice(into);
            }
            Format::Bf16 => {
                bytemuck::pod_collect_to_vec::<u8, bf16>(&bytes).convert_to_f32_slice(into);
            }
        }
        Ok(())
    }
}
