//! The driver's own pool behind the same contract, to measure ours against.
//!
//! The driver hands memory out in a stream's order, and [`Source`] to all streams at once. So as a
//! source it waits for its stream after each allocation, which is also when the driver gives back
//! what its threshold does not keep. [`StreamOrderedSource::allocate_in`] and
//! [`release_in`](StreamOrderedSource::release_in) are the bare calls.

use std::ops::Range;
use std::sync::Arc;

use vecmill_memory::{Cause, Source, SourceError};

use super::{Calls, device_queues, outside};
use crate::driver::DriverError;
use crate::driver::{DeviceSpan, MemoryPool, OrderedAllocation};
use crate::gpu::Gpu;
use crate::stream::{CudaEvent, CudaStream};

/// Memory from `cuMemAllocFromPoolAsync`, of a driver's pool of its own, on a stream of its own.
#[derive(Debug, Clone)]
pub struct StreamOrderedSource {
    device: Gpu,
    pool: Arc<MemoryPool>,
    stream: CudaStream,
    calls: Arc<Calls<2>>,
}

/// The kinds in [`Calls`].
const ALLOCATE: usize = 0;
const FREE: usize = 1;

/// Memory of a [`StreamOrderedSource`]. Dropping it without a release waits for the whole device.
#[derive(Debug)]
pub struct OrderedBlock(OrderedAllocation);

impl OrderedBlock {
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

impl StreamOrderedSource {
    /// A new pool of the driver's, which keeps up to `threshold` bytes that nobody uses whenever a
    /// stream, an event or the device is waited for: 0 is the driver's default, `u64::MAX` keeps
    /// all.
    ///
    /// # Errors
    /// [`SourceError`] when the device has no such pools, or is lost.
    pub fn new(device: &Gpu, threshold: u64) -> Result<Self, SourceError> {
        if !device.info().pools_memory {
            let reason = "the device has no memory pools";
            let cause = Cause::Unsupported;
            return Err(SourceError::new(device.name(), "cuMemPoolCreate", 0, cause, reason));
        }
        let pool = MemoryPool::new(device.context(), threshold)
            .map_err(|error| error.of(device.name(), 0))?;
        Ok(Self {
            device: device.clone(),
            pool: Arc::new(pool),
            stream: device.stream()?,
            calls: Arc::new(Calls::new(["allocate_async", "free_async"])),
        })
    }

    /// The device whose memory it is.
    pub fn device(&self) -> &Gpu {
        &self.device
    }

    /// Bytes that the driver's pool holds.
    ///
    /// # Errors
    /// [`SourceError`] when the device is lost.
    pub fn reserved_bytes(&self) -> Result<u64, SourceError> {
        self.pool.reserved().map_err(self.error(0))
    }

    /// Bytes of those that are in use.
    ///
    /// # Errors
    /// [`SourceError`] when the device is lost.
    pub fn used_bytes(&self) -> Result<u64, SourceError> {
        self.pool.used().map_err(self.error(0))
    }

    /// Takes memory for work that is given to `stream` later. Other streams have to wait for an
    /// event recorded there.
    ///
    /// # Errors
    /// [`SourceError`] when the memory can't be had.
    pub fn allocate_in(
        &self,
        stream: &CudaStream,
        bytes: usize,
    ) -> Result<OrderedBlock, SourceError> {
        self.calls.count(ALLOCATE);
        self.pool.allocate(bytes, stream.raw()).map(OrderedBlock).map_err(self.error(bytes))
    }

    /// Gives a block back behind the work that `stream` has been given so far.
    ///
    /// # Errors
    /// [`SourceError`] when the device objects; the block is gone either way.
    pub fn release_in(&self, stream: &CudaStream, block: OrderedBlock) -> Result<(), SourceError> {
        self.calls.count(FREE);
        let bytes = block.bytes();
        block.0.free(stream.raw()).map_err(self.error(bytes))
    }

    fn error(&self, bytes: usize) -> impl FnOnce(DriverError) -> SourceError {
        move |error| error.of(self.device.name(), bytes)
    }
}

impl Source for StreamOrderedSource {
    type Block = OrderedBlock;

    device_queues!();

    fn allocate(&self, bytes: usize) -> Result<OrderedBlock, SourceError> {
        let block = self.allocate_in(&self.stream, bytes)?;
        match self.stream.synchronize() {
            Ok(()) => Ok(block),
            Err(error) => {
                // It says why the memory can't be used; that giving it back fails says less.
                let _ = self.release_in(&self.stream, block);
                Err(error)
            }
        }
    }

    fn release(&self, block: OrderedBlock) -> Result<(), SourceError> {
        self.release_in(&self.stream, block)
    }

    fn address(&self, block: &OrderedBlock) -> u64 {
        block.address()
    }

    fn calls(&self) -> Vec<(&'static str, u64)> {
        self.calls.all()
    }
}
