//! A model's tensors on the device.
//!
//! They lie apart from slabs, one behind the other in large blocks: what never comes back would pin
//! whatever lies around it.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use half::{bf16, f16};
use vecmill_memory::{Source, SourceError};

use crate::driver::DeviceSpan;
use crate::gemm::{Format, WEIGHT_ALIGNMENT};
use crate::source::{CudaBlock, CudaSource};
use crate::stream::CudaStream;

/// What blocks are multiples of.
const GRANULE: usize = 2 << 20;

/// What a block is at least: little enough that its unused end does not matter.
const BLOCK_BYTES: usize = 4 * GRANULE;

/// Where tensors are put.
#[derive(Debug)]
pub(crate) struct Weights {
    source: CudaSource,
    stream: CudaStream,
    last: Mutex<Option<(Arc<CudaBlock>, usize)>>,
}

/// Numbers on the device; they stay there as long as this lives.
#[derive(Debug)]
pub(crate) struct Tensor {
    block: Arc<CudaBlock>,
    bytes: Range<usize>,
}

impl Weights {
    pub(crate) fn new(source: CudaSource, stream: CudaStream) -> Self {
        Self { source, stream, last: Mutex::new(None) }
    }

    /// Puts `values` onto the device, rounded to `format`.
    pub(crate) fn store(&self, values: &[f32], format: Format) -> Result<Tensor, SourceError> {
        match format {
            Format::F32 => self.put(values, f32::to_le_bytes),
            Format::F16 => self.put(values, |value| f16::from_f32(value).to_le_bytes()),
            Format::Bf16 => self.put(values, |value| bf16::from_f32(value).to_le_bytes()),
        }
    }

    fn put<const N: usize>(
        &self,
        values: &[f32],
        bytes: impl Fn(f32) -> [u8; N],
    ) -> Result<Tensor, SourceError> {
        let bytes: Vec<u8> = values.iter().flat_map(|&value| bytes(value)).collect();
        self.store_bytes(&bytes)
    }

    /// Puts `bytes` onto the device.
    pub(crate) fn store_bytes(&self, bytes: &[u8]) -> Result<Tensor, SourceError> {
        let tensor = self.place(bytes.len())?;
        self.stream.copy_from_host(bytes, tensor.span()?)?;
        Ok(tensor)
    }

    fn place(&self, bytes: usize) -> Result<Tensor, SourceError> {
        let taken = bytes.max(1).next_multiple_of(WEIGHT_ALIGNMENT as usize);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (block, used) = match last.take() {
            Some((block, used)) if used + taken <= block.bytes() => (block, used),
            _ => {
                let size = taken.max(BLOCK_BYTES).next_multiple_of(GRANULE);
                (Arc::new(self.source.allocate(size)?), 0)
            }
        };
        *last = Some((Arc::clone(&block), used + taken));
        Ok(Tensor { block, bytes: used..used + bytes })
    }
}

impl Tensor {
    pub(crate) fn span(&self) -> Result<DeviceSpan<'_>, SourceError> {
        self.block.span(self.bytes.clone())
    }
}
