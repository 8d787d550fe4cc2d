//! Addresses and memory apart: ranges of addresses are reserved, memory is created in chunks, and
//! chunks are mapped to addresses.
//!
//! The choice behind it: no `Drop` here. What is mapped where, and in which order it is undone, is
//! the business of `source::mapped`, which is tested without a driver.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys;

use super::DriverError;
use super::{Context, DeviceSpan, check};

/// A reserved range of device addresses. Dropping it leaves it reserved.
#[derive(Debug)]
pub(crate) struct Addresses {
    start: u64,
    bytes: usize,
}

impl Addresses {
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn span(&self, range: Range<usize>) -> Option<DeviceSpan<'_>> {
        DeviceSpan::within(self.start, self.bytes, range)
    }

    /// The address and length of a part of it.
    fn part(&self, call: &'static str, range: &Range<usize>) -> Result<(u64, usize), DriverError> {
        let span = self.span(range.clone()).ok_or(DriverError::invalid(call))?;
        Ok((span.address(), span.bytes()))
    }
}

/// Memory without an address. Dropping it leaves it taken.
#[derive(Debug)]
pub(crate) struct Chunk {
    handle: sys::CUmemGenericAllocationHandle,
    bytes: usize,
}

/// What a device has of both.
#[derive(Debug)]
pub(crate) struct VirtualMemory {
    context: Arc<Context>,
    properties: sys::CUmemAllocationProp,
    access: sys::CUmemAccessDesc,
}

// SAFETY: the properties have a pointer, for exporting memory on Windows. It is null.
unsafe impl Send for VirtualMemory {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for VirtualMemory {}

impl VirtualMemory {
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        let location = sys::CUmemLocation {
            type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
            id: context.device(),
        };
        let properties = sys::CUmemAllocationProp {
            type_: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            requestedHandleTypes: sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
            location,
            win32HandleMetaData: std::ptr::null_mut(),
            allocFlags: sys::CUmemAllocationProp_st__bindgen_ty_1 {
                compressionType: 0,
                gpuDirectRDMACapable: 0,
                usage: 0,
                reserved: [0; 4],
            },
        };
        let flags = sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        let access = sys::CUmemAccessDesc { location, flags };
        Self { context: Arc::clone(context), properties, access }
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Sizes and offsets must be multiples of this many bytes.
    pub(crate) fn granularity(&self) -> Result<usize, DriverError> {
        use sys::CUmemAllocationGranularity_flags as Granularity;
        let api = self.context.bind()?;
        let mut bytes = 0;
        // SAFETY: reads the properties, which outlive the call, and writes one number, to which
        // `bytes` has room.
        let result = unsafe {
            (api.virtual_granularity)(
                &raw mut bytes,
                &raw const self.properties,
                Granularity::CU_MEM_ALLOC_GRANULARITY_MINIMUM,
            )
        };
        check("cuMemGetAllocationGranularity", result)?;
        Ok(bytes)
    }

    /// Reserves addresses. Takes no memory.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<Addresses, DriverError> {
        let api = self.context.bind()?;
        let mut start = 0;
        // SAFETY: writes one address, to which `start` has room. The zeros leave alignment and
        // place to the driver; the flags must be 0.
        let result = unsafe { (api.virtual_reserve)(&raw mut start, bytes, 0, 0, 0) };
        check("cuMemAddressReserve", result)?;
        Ok(Addresses { start, bytes })
    }

    /// Gives addresses back. Nothing may be mapped to them.
    #[expect(clippy::needless_pass_by_value, reason = "the addresses are gone afterwards")]
    pub(crate) fn free(&self, addresses: Addresses) -> Result<(), DriverError> {
        let api = self.context.bind()?;
        // SAFETY: exactly what `cuMemAddressReserve` gave, once: the value is consumed. The driver
        // refuses while something is mapped there.
        check("cuMemAddressFree", unsafe { (api.virtual_free)(addresses.start, addresses.bytes) })
    }

    /// Takes memory.
    pub(crate) fn create(&self, bytes: usize) -> Result<Chunk, DriverError> {
        let api = self.context.bind()?;
        let mut handle = 0;
        // SAFETY: reads the properties, which outlive the call, and writes one handle, to which
        // there is room; the flags must be 0.
        let result =
            unsafe { (api.virtual_create)(&raw mut handle, bytes, &raw const self.properties, 0) };
        check("cuMemCreate", result)?;
        Ok(Chunk { handle, bytes })
    }

    /// Gives memory back, once it is mapped nowhere; returns it if the driver refuses.
    pub(crate) fn release(&self, chunk: Chunk) -> Result<(), (Chunk, DriverError)> {
        let api = match self.context.bind() {
            Ok(api) => api,
            Err(error) => return Err((chunk, error)),
        };
        // SAFETY: a handle of `cuMemCreate`, and released once: only a refusal returns it.
        let result = unsafe { (api.virtual_release)(chunk.handle) };
        check("cuMemRelease", result).map_err(|error| (chunk, error))
    }

    /// Puts a chunk behind the part `at` of `addresses`, which has its length.
    pub(crate) fn map(
        &self,
        addresses: &Addresses,
        at: &Range<usize>,
        chunk: &Chunk,
    ) -> Result<(), DriverError> {
        const CALL: &str = "cuMemMap";
        let api = self.context.bind()?;
        let (address, bytes) = addresses.part(CALL, at)?;
        if bytes != chunk.bytes {
            return Err(DriverError::invalid(CALL));
        }
        // SAFETY: the addresses are reserved and inside the range, the chunk is live and of that
        // length; offset and flags must be 0. The driver refuses where something is mapped.
        check(CALL, unsafe { (api.virtual_map)(address, bytes, 0, chunk.handle, 0) })
    }

    /// Lets the device read and write the part `at` of `addresses`, mapped throughout.
    pub(crate) fn set_access(
        &self,
        addresses: &Addresses,
        at: &Range<usize>,
    ) -> Result<(), DriverError> {
        const CALL: &str = "cuMemSetAccess";
        let api = self.context.bind()?;
        let (address, bytes) = addresses.part(CALL, at)?;
        // SAFETY: reads one description, which outlives the call. The driver refuses where
        // something is not mapped.
        check(CALL, unsafe { (api.virtual_access)(address, bytes, &raw const self.access, 1) })
    }

    /// Takes away what is behind the part `at` of `addresses`, which must be one mapped chunk.
    pub(crate) fn unmap(
        &self,
        addresses: &Addresses,
        at: &Range<usize>,
    ) -> Result<(), DriverError> {
        const CALL: &str = "cuMemUnmap";
        let api = self.context.bind()?;
        let (address, bytes) = addresses.part(CALL, at)?;
        // SAFETY: inside a reserved range; the driver refuses what is not one mapping. Work that
        // still uses it makes the device fault: the contract of `Source` rules that out.
        check(CALL, unsafe { (api.virtual_unmap)(address, bytes) })
    }
}
