//! Blocks that grow and shrink in place: addresses are reserved once, memory is mapped to them in
//! chunks.
//!
//! - [`MappedSource`] and [`MappedBlock`] face the pool; `region` has the logic, over the small
//!   trait `Vmm`, so that it is tested with every call failing in turn and without a GPU.
//!
//! The choice behind it: chunks have an upper size. The driver can't cut a chunk, so a cut inside
//! one puts a smaller chunk in its place, and until the old one is unmapped both are taken. With
//! chunks of at most 64 MiB that is never more than 62 MiB beyond the block; a large block takes a
//! few short calls more, while access, the slowest of them, is set once per resize.

mod region;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use vecmill_memory::{Cause, Source, SourceError};

use super::{Calls, device_queues, outside};
use crate::driver::DriverError;
use crate::driver::{Addresses, Chunk, DeviceSpan, VirtualMemory};
use crate::gpu::Gpu;
use crate::stream::{CudaEvent, CudaStream};
use region::{Refused, Region, Vmm};

/// Sizes that a pool asks for are multiples of this.
const GRANULE: usize = 2 << 20;

/// What a cut inside a chunk may take beyond the block for a moment: see the module's head.
const LARGEST_CHUNK: usize = 64 << 20;

/// Memory mapped to reserved addresses.
///
/// A block can grow up to the source's *reach* and keeps its address. Growing keeps all contents.
/// **Shrinking keeps contents up to the last chunk that stays whole, and not behind**: a cut inside
/// a chunk replaces it. (The pool needs no more: a slab's contents end with its lease.)
#[derive(Debug, Clone)]
pub struct MappedSource {
    device: Gpu,
    memory: Arc<CountedMemory>,
    reach: usize,
    largest_chunk: usize,
}

/// Memory of a [`MappedSource`]. Dropping it without a release waits for the whole device.
#[derive(Debug)]
pub struct MappedBlock {
    /// `None` once released.
    region: Option<Region<CountedMemory>>,
}

impl MappedBlock {
    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.region.as_ref().map_or(0, Region::bytes)
    }

    /// Its first address.
    pub fn address(&self) -> u64 {
        self.region.as_ref().map_or(0, |region| region.addresses().start())
    }

    /// A part of it, for streams to work on.
    ///
    /// # Errors
    /// [`SourceError`] when `range` is not inside the block.
    pub fn span(&self, range: Range<usize>) -> Result<DeviceSpan<'_>, SourceError> {
        self.region
            .as_ref()
            .filter(|region| range.end <= region.bytes())
            .and_then(|region| region.addresses().span(range.clone()))
            .ok_or_else(|| outside(&range, self.bytes()))
    }
}

impl Drop for MappedBlock {
    fn drop(&mut self) {
        if let Some(region) = self.region.take() {
            // Nobody said that its work is done, and unmapping does not wait. If anything fails
            // here, then the device is lost and its memory with it.
            let _ = region.memory().inner.context().synchronize();
            let _ = region.release();
        }
    }
}

impl MappedSource {
    /// The memory of `device`, with a reach of all of it.
    ///
    /// # Errors
    /// [`SourceError`]: `Unsupported` when the device can't map memory in steps of 2 MiB, `Lost`
    /// when it is lost.
    pub fn new(device: &Gpu) -> Result<Self, SourceError> {
        const CALL: &str = "cuMemGetAllocationGranularity";
        let unsupported =
            |reason: String| SourceError::new(device.name(), CALL, 0, Cause::Unsupported, reason);
        if !device.info().maps_memory {
            return Err(unsupported("the device can't map memory to addresses".to_owned()));
        }
        let inner = VirtualMemory::new(device.context());
        let granularity = inner.granularity().map_err(|error| error.of(device.name(), 0))?;
        if granularity == 0 || !GRANULE.is_multiple_of(granularity) {
            return Err(unsupported(format!("it maps memory in steps of {granularity} bytes")));
        }
        Ok(Self {
            device: device.clone(),
            memory: Arc::new(CountedMemory { inner, calls: Calls::new(KINDS) }),
            reach: device.info().total_memory.next_multiple_of(GRANULE),
            largest_chunk: LARGEST_CHUNK,
        })
    }

    /// The same with blocks that can grow to `bytes`, rounded up to 2 MiB; a block that is larger
    /// from the start can't grow. Reserved addresses cost nothing else.
    #[must_use]
    pub fn with_reach(mut self, bytes: usize) -> Self {
        self.reach = bytes.checked_next_multiple_of(GRANULE).unwrap_or(self.reach);
        self
    }

    /// The same with chunks of at most `bytes`, rounded up to 2 MiB. Larger ones take fewer calls;
    /// smaller ones take less for a moment when a block shrinks.
    #[must_use]
    pub fn with_largest_chunk(mut self, bytes: usize) -> Self {
        let chunk = bytes.max(1).checked_next_multiple_of(GRANULE);
        self.largest_chunk = chunk.unwrap_or(self.largest_chunk);
        self
    }

    /// The device whose memory it is.
    pub fn device(&self) -> &Gpu {
        &self.device
    }

    fn refused(&self, refused: Refused, bytes: usize) -> SourceError {
        let mut error = refused.error.of(self.name(), bytes);
        if refused.broken {
            error.cause = Cause::Lost;
        }
        error
    }

    /// Refuses what is not a multiple of 2 MiB.
    fn check(&self, operation: &'static str, bytes: usize) -> Result<(), SourceError> {
        if bytes.is_multiple_of(GRANULE) {
            return Ok(());
        }
        let reason = "not a multiple of 2 MiB";
        Err(SourceError::new(self.name(), operation, bytes, Cause::Failed, reason))
    }
}

impl Source for MappedSource {
    type Block = MappedBlock;

    device_queues!();

    fn allocate(&self, bytes: usize) -> Result<MappedBlock, SourceError> {
        self.check("allocate", bytes)?;
        let reach = self.reach.max(bytes);
        let region = Region::new(&self.memory, reach, bytes, self.largest_chunk)
            .map_err(|error| error.of(self.name(), bytes))?;
        Ok(MappedBlock { region: Some(region) })
    }

    fn resizes_in_place(&self) -> bool {
        true
    }

    /// As in the contract, but that shrinking keeps contents only up to the last whole chunk.
    fn resize(&self, block: &mut MappedBlock, bytes: usize) -> Result<(), SourceError> {
        const CALL: &str = "resize";
        self.check(CALL, bytes)?;
        let Some(region) = &mut block.region else {
            let reason = "the block was released";
            return Err(SourceError::new(self.name(), CALL, bytes, Cause::Failed, reason));
        };
        let reach = region.addresses().bytes();
        if bytes > reach {
            // What helps is what helps against full memory: to give it back and take a new one.
            let reason = format!("the block's addresses end after {reach} bytes");
            return Err(SourceError::new(self.name(), CALL, bytes, Cause::Exhausted, reason));
        }
        region.resize(bytes).map_err(|refused| self.refused(refused, bytes))
    }

    fn release(&self, mut block: MappedBlock) -> Result<(), SourceError> {
        let bytes = block.bytes();
        match block.region.take() {
            Some(region) => region.release().map_err(|error| error.of(self.name(), bytes)),
            None => Ok(()),
        }
    }

    fn address(&self, block: &MappedBlock) -> u64 {
        block.address()
    }

    fn calls(&self) -> Vec<(&'static str, u64)> {
        self.memory.calls.all()
    }
}

/// The kinds in [`Calls`], in this order.
const KINDS: [&str; 7] =
    ["address_reserve", "create", "map", "set_access", "unmap", "release", "address_free"];

/// A device's memory, with calls counted.
#[derive(Debug)]
struct CountedMemory {
    inner: VirtualMemory,
    calls: Calls<7>,
}

impl Vmm for CountedMemory {
    type Addresses = Addresses;
    type Chunk = Chunk;

    fn reserve(&self, bytes: usize) -> Result<Addresses, DriverError> {
        self.calls.count(0);
        self.inner.reserve(bytes)
    }

    fn create(&self, bytes: usize) -> Result<Chunk, DriverError> {
        self.calls.count(1);
        self.inner.create(bytes)
    }

    fn map(&self, on: &Addresses, at: &Range<usize>, chunk: &Chunk) -> Result<(), DriverError> {
        self.calls.count(2);
        self.inner.map(on, at, chunk)
    }

    fn set_access(&self, on: &Addresses, at: &Range<usize>) -> Result<(), DriverError> {
        self.calls.count(3);
        self.inner.set_access(on, at)
    }

    fn unmap(&self, on: &Addresses, at: &Range<usize>) -> Result<(), DriverError> {
        self.calls.count(4);
        self.inner.unmap(on, at)
    }

    fn release(&self, chunk: Chunk) -> Result<(), (Chunk, DriverError)> {
        self.calls.count(5);
        self.inner.release(chunk)
    }

    fn free(&self, addresses: Addresses) -> Result<(), DriverError> {
        self.calls.count(6);
        self.inner.free(addresses)
    }
}
