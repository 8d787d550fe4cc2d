//! Device memory in one piece, and [`DeviceSpan`], a part of any device memory.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use super::DriverError;
use super::{Context, check};

/// A part of a block of device memory, which a stream can fill or copy.
///
/// It borrows the block, so that the block is there when the work is handed to the device. The work
/// may be done later: the block must not be given back before (a pool sees to that by events).
#[derive(Debug, Clone, Copy)]
pub struct DeviceSpan<'block> {
    address: u64,
    bytes: usize,
    block: PhantomData<&'block ()>,
}

impl DeviceSpan<'_> {
    /// The part `range` of the `bytes` bytes of device memory at `address`; `None` if it is not
    /// inside. Only for addresses that the driver gave: see the module's head.
    pub(super) fn within(address: u64, bytes: usize, range: Range<usize>) -> Option<Self> {
        (range.start <= range.end && range.end <= bytes).then(|| DeviceSpan {
            address: address + range.start as u64,
            bytes: range.len(),
            block: PhantomData,
        })
    }

    /// The part `range` of it; `None` if that is not inside.
    pub(crate) fn part(self, range: Range<usize>) -> Option<Self> {
        Self::within(self.address, self.bytes, range)
    }

    /// The device address of its first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Memory from `cuMemAlloc`, freed when dropped.
#[derive(Debug)]
pub(crate) struct Allocation {
    context: Arc<Context>,
    address: u64,
    bytes: usize,
    freed: bool,
}

impl Allocation {
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, DriverError> {
        let api = context.bind()?;
        let mut address = 0;
        // SAFETY: writes one address, to which `address` has room.
        let result = unsafe { (api.memory_allocate)(&raw mut address, bytes) };
        check("cuMemAlloc", result)?;
        Ok(Self { context: Arc::clone(context), address, bytes, freed: false })
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn span(&self, range: Range<usize>) -> Option<DeviceSpan<'_>> {
        DeviceSpan::within(self.address, self.bytes, range)
    }

    /// Frees it, and says how that went.
    pub(crate) fn free(mut self) -> Result<(), DriverError> {
        self.free_once()
    }

    fn free_once(&mut self) -> Result<(), DriverError> {
        if std::mem::replace(&mut self.freed, true) {
            return Ok(());
        }
        let api = self.context.bind()?;
        // SAFETY: the address is from `cuMemAlloc` and freed once: `freed` was false. The driver
        // itself waits for work that uses it.
        check("cuMemFree", unsafe { (api.memory_free)(self.address) })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // Nobody to tell: the device is gone, and its memory with it.
        let _ = self.free_once();
    }
}
