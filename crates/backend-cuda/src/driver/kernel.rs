//! Machine code on a device: modules, the kernels in them, and launching those.
//!
//! The choice behind it: modules are loaded as the driver's "libraries", whose kernels belong to no
//! context: the same kernel runs in a part of a GPU.

use std::ffi::{CStr, c_void};
use std::sync::Arc;

use cudarc::driver::sys;

use super::{Context, DeviceSpan, Stream, check};
use crate::error::DriverError;

/// Compiled code, loaded onto a device; unloaded when it and all kernels from it are dropped.
#[derive(Debug)]
pub(crate) struct Module {
    context: Arc<Context>,
    handle: sys::CUlibrary,
}

// SAFETY: the driver locks its libraries; the pointer is only a name for one.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A function of a module that the device can be told to run.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    module: Arc<Module>,
    handle: sys::CUkernel,
}

// SAFETY: as for `Module`, which it keeps loaded.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// How many threads run a kernel, and in which groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Blocks; none is nothing to do.
    pub(crate) blocks: usize,
    /// Threads per block.
    pub(crate) threads: u32,
    /// Dynamic shared memory of a block.
    pub(crate) shared_bytes: u32,
}

/// One argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Argument<'a> {
    /// A device address.
    Span(DeviceSpan<'a>),
    /// A device address, of nothing.
    Null,
    U32(u32),
    U64(u64),
    F32(f32),
}

impl Module {
    /// Loads machine code, as the compiler made it for this device.
    pub(crate) fn load(context: &Arc<Context>, code: &[u8]) -> Result<Arc<Self>, DriverError> {
        let api = context.bind()?;
        let (mut handle, none) = (std::ptr::null_mut(), std::ptr::null_mut::<*mut c_void>());
        // SAFETY: writes one pointer, to which `handle` has room, and copies the code; that this is
        // whole is the caller's: the compiler gave it, or a file whose checksum holds. There are no
        // options, so their lists are not read.
        let result = unsafe {
            (api.library_load)(
                &raw mut handle,
                code.as_ptr().cast(),
                none.cast(),
                none,
                0,
                none.cast(),
                none,
                0,
            )
        };
        check("cuLibraryLoadData", result)?;
        Ok(Arc::new(Self { context: Arc::clone(context), handle }))
    }

    /// The kernel of that name.
    pub(crate) fn kernel(self: &Arc<Self>, name: &CStr) -> Result<Kernel, DriverError> {
        let api = self.context.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one pointer, to which `handle` has room; the name ends with a zero.
        let result = unsafe { (api.library_kernel)(&raw mut handle, self.handle, name.as_ptr()) };
        check("cuLibraryGetKernel", result)?;
        Ok(Kernel { module: Arc::clone(self), handle })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(api) = self.context.bind() {
            // SAFETY: loaded once, unloaded once. Kernels held an `Arc` of it and so are gone. A
            // failure leaks it, nothing more.
            let _ = unsafe { (api.library_unload)(self.handle) };
        }
    }
}

impl Kernel {
    /// Has `stream` run it behind its work so far. `arguments` are what the kernel's file says.
    pub(crate) fn launch(
        &self,
        stream: &Stream,
        launch: Launch,
        arguments: &[Argument<'_>],
    ) -> Result<(), DriverError> {
        const CALL: &str = "cuLaunchKernel";
        if launch.blocks == 0 {
            return Ok(());
        }
        let blocks = u32::try_from(launch.blocks).map_err(|_| DriverError::invalid(CALL))?;
        let api = self.module.context.bind()?;
        // Eight bytes for each: narrower ones are read from the first of them (little-endian).
        let mut values: Vec<u64> = arguments.iter().map(|argument| argument.bits()).collect();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        let Launch { threads, shared_bytes, .. } = launch;
        // SAFETY: kernel and stream are live; a kernel may stand for its function here. The driver
        // reads as many pointers as the kernel has parameters, and behind each no more than eight
        // bytes; that there are as many is what each caller's constant list says, and tests run
        // every kernel. The kernel itself touches device memory only: see the module's head.
        let result = unsafe {
            (api.launch)(
                self.handle.cast(),
                blocks,
                1,
                1,
                threads,
                1,
                1,
                shared_bytes,
                stream.handle(),
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check(CALL, result)
    }
}

impl Argument<'_> {
    fn bits(self) -> u64 {
        match self {
            Self::Span(span) => span.address(),
            Self::Null => 0,
            Self::U32(value) => value.into(),
            Self::U64(value) => value,
            Self::F32(value) => value.to_bits().into(),
        }
    }
}
