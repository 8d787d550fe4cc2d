//! Blocks in one piece, for devices that can't map memory to addresses.

use std::ops::Range;
use std::sync::Arc;

use vecmill_memory::{Source, SourceError};

use super::{Calls, device_queues, outside};
use crate::driver::{Allocation, DeviceSpan};
use crate::gpu::Gpu;
use crate::stream::{CudaEvent, CudaStream};

/// Memory from `cuMemAlloc`. A block keeps its size, and releasing one waits for the device.
#[derive(Debug, Clone)]
pub struct PlainSource {
    device: Gpu,
    calls: Arc<Calls<2>>,
}

/// The kinds in [`Calls`].
const ALLOCATE: usize = 0;
const FREE: usize = 1;

/// Memory of a [`PlainSource`].
#[derive(Debug)]
pub struct PlainBlock(Allocation);

impl PlainBlock {
    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// Its first address.
    pub fn address(&self) -> u64 {
        self.0.address()
    }

    /// A part of it, for streams to work on.
    ///
    /// # Errors
    /// [`SourceError`] when `range` is not inside the block.
    pub fn span(&self, range: Range<usize>) -> Result<DeviceSpan<'_>, SourceError> {
        self.0.span(range.clone()).ok_or_else(|| outside(&range, self.bytes()))
    }
}

impl PlainSource {
    /// The memory of `device`.
    pub fn new(device: &Gpu) -> Self {
        Self { device: device.clone(), calls: Arc::new(Calls::new(["allocate", "free"])) }
    }

    /// The device whose memory it is.
    pub fn device(&self) -> &Gpu {
        &self.device
    }
}

impl Source for PlainSource {
    type Block = PlainBlock;

    device_queues!();

    fn allocate(&self, bytes: usize) -> Result<PlainBlock, SourceError> {
        self.calls.count(ALLOCATE);
        let allocation = Allocation::new(self.device.context(), bytes);
        allocation.map(PlainBlock).map_err(|error| error.of(self.name(), bytes))
    }

    fn release(&self, block: PlainBlock) -> Result<(), SourceError> {
        self.calls.count(FREE);
        let bytes = block.bytes();
        block.0.free().map_err(|error| error.of(self.name(), bytes))
    }

    fn address(&self, block: &PlainBlock) -> u64 {
        block.address()
    }

    fn calls(&self) -> Vec<(&'static str, u64)> {
        self.calls.all()
    }
}
