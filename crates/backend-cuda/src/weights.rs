//! A model's tensors on the device: in one region, apart from slabs, at the offsets that were planned
//! before anything was read.

use half::{bf16, f16};
use vecmill_encoder::{BackendError, RegionWriter, Stored};
use vecmill_memory::{Cause, SourceError};

use crate::driver::DeviceSpan;
use crate::gemm::Format;
use crate::source::CudaBlock;
use crate::stream::CudaStream;

/// Writes tensors to their places.
pub(crate) struct Loader<'a> {
    stream: &'a CudaStream,
    into: &'a mut RegionWriter<CudaBlock>,
}

/// Numbers on the device; they stay there as long as this lives.
#[derive(Debug)]
pub(crate) struct Tensor(Stored<CudaBlock>);

impl<'a> Loader<'a> {
    pub(crate) fn new(stream: &'a CudaStream, into: &'a mut RegionWriter<CudaBlock>) -> Self {
        Self { stream, into }
    }

    /// Puts `values` onto the device, rounded to `format`.
    pub(crate) fn store(&mut self, values: &[f32], format: Format) -> Result<Tensor, BackendError> {
        match format {
            Format::F32 => self.put(values, f32::to_le_bytes),
            Format::F16 => self.put(values, |value| f16::from_f32(value).to_le_bytes()),
            Format::Bf16 => self.put(values, |value| bf16::from_f32(value).to_le_bytes()),
        }
    }

    fn put<const N: usize>(
        &mut self,
        values: &[f32],
        bytes: impl Fn(f32) -> [u8; N],
    ) -> Result<Tensor, BackendError> {
        let bytes: Vec<u8> = values.iter().flat_map(|&value| bytes(value)).collect();
        self.store_bytes(&bytes)
    }

    /// Puts `bytes` onto the device.
    pub(crate) fn store_bytes(&mut self, bytes: &[u8]) -> Result<Tensor, BackendError> {
        let place = self.into.place(bytes.len())?;
        let span = self.into.memory().span(place.range());
        let copied = span.and_then(|span| self.stream.copy_from_host(bytes, span));
        let failed =
            |error: SourceError| BackendError { operation: "load", reason: error.to_string() };
        copied.map(|()| Tensor(place)).map_err(failed)
    }
}

impl Tensor {
    pub(crate) fn span(&self) -> Result<DeviceSpan<'_>, SourceError> {
        let unwritten = || {
            let reason = "the model is not loaded yet: please report this";
            SourceError::new("weights", "span", self.0.range().len(), Cause::Failed, reason)
        };
        self.0.memory().ok_or_else(unwritten)?.span(self.0.range())
    }
}
