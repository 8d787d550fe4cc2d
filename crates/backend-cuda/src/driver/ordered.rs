//! The driver's own memory pools, which allocate and free in a stream's order.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys;

use super::DriverError;
use super::{Context, DeviceSpan, Stream, check};

/// A `CUmemoryPool`, destroyed when dropped.
#[derive(Debug)]
pub(crate) struct MemoryPool {
    context: Arc<Context>,
    handle: sys::CUmemoryPool,
}

// SAFETY: the driver locks its pools; the pointer is only a name for one.
unsafe impl Send for MemoryPool {}
// SAFETY: as above.
unsafe impl Sync for MemoryPool {}

impl MemoryPool {
    /// A new pool that keeps up to `threshold` bytes when a stream, event or context is waited for.
    pub(crate) fn new(context: &Arc<Context>, threshold: u64) -> Result<Self, DriverError> {
        let api = context.bind()?;
        let properties = sys::CUmemPoolProps {
            allocType: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            handleTypes: sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
            location: sys::CUmemLocation {
                type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
                id: context.device(),
            },
            win32SecurityAttributes: std::ptr::null_mut(),
            maxSize: 0,
            usage: 0,
            reserved: [0; 54],
        };
        let mut handle = std::ptr::null_mut();
        // SAFETY: reads the properties, which outlive the call, and writes one pointer, to which
        // `handle` has room.
        let result = unsafe { (api.pool_create)(&raw mut handle, &raw const properties) };
        check("cuMemPoolCreate", result)?;
        let pool = Self { context: Arc::clone(context), handle };
        let mut threshold = threshold;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let value = (&raw mut threshold).cast::<c_void>();
        // SAFETY: this attribute is a 64-bit number, which is read during the call.
        let result = unsafe { (api.pool_set)(pool.handle, attribute, value) };
        check("cuMemPoolSetAttribute", result)?;
        Ok(pool)
    }

    /// Bytes that the pool holds of the device's memory.
    pub(crate) fn reserved(&self) -> Result<u64, DriverError> {
        self.number(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)
    }

    /// Bytes of those that are allocated.
    pub(crate) fn used(&self) -> Result<u64, DriverError> {
        self.number(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
    }

    fn number(&self, attribute: sys::CUmemPool_attribute) -> Result<u64, DriverError> {
        let api = self.context.bind()?;
        let mut number = 0_u64;
        let value = (&raw mut number).cast::<c_void>();
        // SAFETY: the attributes that are asked for are 64-bit numbers, to which there is room.
        let result = unsafe { (api.pool_get)(self.handle, attribute, value) };
        check("cuMemPoolGetAttribute", result)?;
        Ok(number)
    }

    /// Takes memory that can be used by work behind this in `stream`.
    pub(crate) fn allocate(
        self: &Arc<Self>,
        bytes: usize,
        stream: &Arc<Stream>,
    ) -> Result<OrderedAllocation, DriverError> {
        let api = self.context.bind()?;
        let mut address = 0;
        // SAFETY: writes one address, to which there is room; pool and stream are live.
        let result =
            unsafe { (api.pool_allocate)(&raw mut address, bytes, self.handle, stream.handle()) };
        check("cuMemAllocFromPoolAsync", result)?;
        let (pool, stream) = (Arc::clone(self), Arc::clone(stream));
        Ok(OrderedAllocation { pool, stream, address, bytes, freed: false })
    }
}

impl Drop for MemoryPool {
    fn drop(&mut self) {
        if let Ok(api) = self.context.bind() {
            // SAFETY: created once and destroyed once. Its allocations held an `Arc` of it, and
            // those whose freeing is under way are waited for by the driver.
            let _ = unsafe { (api.pool_destroy)(self.handle) };
        }
    }
}

/// Memory of a [`MemoryPool`], freed when dropped.
#[derive(Debug)]
pub(crate) struct OrderedAllocation {
    pool: Arc<MemoryPool>,
    /// Where it was allocated, for freeing it when it is dropped.
    stream: Arc<Stream>,
    address: u64,
    bytes: usize,
    freed: bool,
}

impl OrderedAllocation {
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn span(&self, range: Range<usize>) -> Option<DeviceSpan<'_>> {
        DeviceSpan::within(self.address, self.bytes, range)
    }

    /// Frees it behind the work that `stream` was given so far.
    pub(crate) fn free(mut self, stream: &Stream) -> Result<(), DriverError> {
        self.free_once(stream)
    }

    fn free_once(&mut self, stream: &Stream) -> Result<(), DriverError> {
        if std::mem::replace(&mut self.freed, true) {
            return Ok(());
        }
        let api = self.pool.context.bind()?;
        // SAFETY: the address is from this pool and freed once: `freed` was false. The stream is
        // live.
        check("cuMemFreeAsync", unsafe { (api.pool_free)(self.address, stream.handle()) })
    }
}

impl Drop for OrderedAllocation {
    fn drop(&mut self) {
        if self.freed {
            return;
        }
        // Work on other streams may still use it, and nobody said otherwise.
        let _ = self.pool.context.synchronize();
        let stream = Arc::clone(&self.stream);
        let _ = self.free_once(&stream);
    }
}
