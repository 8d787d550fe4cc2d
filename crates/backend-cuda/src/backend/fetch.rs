//! Activations copied to the host, by the staging ring or, where that is full, directly.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use vecmill_encoder::{BackendError, Buffer};
use vecmill_memory::{Cause, SourceError};

use super::{CudaBackend, failed};
use crate::gemm::Format;
use crate::source::CudaBlock;
use crate::staging::Staged;
use crate::stream::CudaEvent;

/// Activations on their way to the host.
#[derive(Debug)]
pub struct CudaFetched(Way);

#[derive(Debug)]
enum Way {
    /// The event is behind the copy: whoever collects waits for it without the staging ring.
    Staged(Staged, CudaEvent),
    /// There was no room in the ring.
    Here(Vec<u8>),
}

impl CudaBackend {
    pub(super) fn start_fetch(
        &self,
        slab: &CudaBlock,
        from: Buffer,
    ) -> Result<CudaFetched, BackendError> {
        let fetch = || -> Result<Way, SourceError> {
            let span = self.span(slab, from)?;
            let staged = match self.staging().copy_out(&self.stream, span) {
                Ok(staged) => staged,
                // Full of what nobody has collected yet: wait for this one instead.
                Err(error) if error.cause == Cause::Failed => {
                    let mut bytes = vec![0; span.bytes()];
                    self.stream.copy_to_host(span, &mut bytes)?;
                    return Ok(Way::Here(bytes));
                }
                Err(error) => return Err(error),
            };
            let mut copied = self.device.event()?;
            self.stream.record(&mut copied)?;
            Ok(Way::Staged(staged, copied))
        };
        fetch().map(CudaFetched).map_err(failed("fetch"))
    }

    pub(super) fn finish_fetch(
        &self,
        fetched: CudaFetched,
        into: &mut [f32],
    ) -> Result<(), BackendError> {
        let bytes = match fetched.0 {
            Way::Here(bytes) => bytes,
            Way::Staged(staged, copied) => {
                copied.synchronize().map_err(failed("collect"))?;
                let mut bytes = vec![0; staged.bytes()];
                self.staging().read(staged, &mut bytes).map_err(failed("collect"))?;
                bytes
            }
        };
        let numbers = bytes.chunks_exact(self.format.bytes());
        let short = || BackendError {
            operation: "collect",
            reason: format!("{} numbers came for {}", numbers.len(), into.len()),
        };
        if numbers.len() != into.len() {
            return Err(short());
        }
        match self.format {
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
