//! Machine code on a device: modules, the kernels in them, and launching those.
//!
//! The choice behind it: modules are loaded as the driver's "libraries", whose kernels belong to no
//! context: the same kernel runs in a part of a GPU.

use std::ffi::{CStr, c_int, c_void};
use std::sync::Arc;

use cudarc::driver::sys;

use super::error::{DriverError, LaunchError, code};
use super::{Context, DeviceSpan, Stream, TensorMap, check};

/// Compiled code, loaded onto a device; it stays there as long as the context.
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
pub(crate) struct LoadedKernel {
    module: Arc<Module>,
    handle: sys::CUkernel,
    name: Arc<str>,
    /// Bytes of each parameter, if the driver says.
    parameters: Option<Arc<[usize]>>,
}

// SAFETY: as for `Module`.
unsafe impl Send for LoadedKernel {}
// SAFETY: as above.
unsafe impl Sync for LoadedKernel {}

/// How many threads run a kernel, and in which groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Blocks; none is nothing to do.
    pub(crate) blocks: usize,
    /// Threads per block.
    pub(crate) threads: u32,
    /// Dynamic shared memory of a block.
    pub(crate) shared_bytes: u32,
    /// Whether blocks may start while the last ones of the kernel before still run, where the device
    /// can do that. Only for kernels that wait for the end of that one by themselves.
    pub(crate) early: bool,
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
    /// By value: 128 bytes.
    TensorMap(&'a TensorMap<'a>),
    /// By value: a structure of so many times four bytes. All others have eight at most.
    Words(&'a [u32]),
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
        context.keep(handle);
        Ok(Arc::new(Self { context: Arc::clone(context), handle }))
    }

    /// The kernel of that name.
    pub(crate) fn kernel(self: &Arc<Self>, name: &CStr) -> Result<LoadedKernel, DriverError> {
        let api = self.context.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one pointer, to which `handle` has room; the name ends with a zero.
        let result = unsafe { (api.library_kernel)(&raw mut handle, self.handle, name.as_ptr()) };
        check("cuLibraryGetKernel", result)?;
        let name = name.to_string_lossy().into();
        Ok(LoadedKernel {
            module: Arc::clone(self),
            handle,
            name,
            parameters: self.parameters(handle)?,
        })
    }

    fn parameters(&self, kernel: sys::CUkernel) -> Result<Option<Arc<[usize]>>, DriverError> {
        let Some(parameter) = self.context.bind()?.kernel_parameter else {
            return Ok(None);
        };
        let mut sizes = Vec::new();
        loop {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: writes two numbers, to which there is room; the kernel is of a library that
            // is loaded. That there is no such parameter is an error.
            let result = unsafe { parameter(kernel, sizes.len(), &raw mut offset, &raw mut size) };
            match result {
                code::SUCCESS => sizes.push(size),
                code::INVALID_VALUE => return Ok(Some(sizes.into())),
                _ => return Ok(None),
            }
        }
    }
}

impl LoadedKernel {
    /// Lets launches take so much dynamic shared memory: without, it is at most 48 KiB.
    pub(crate) fn allow_shared(&self, bytes: u32) -> Result<(), DriverError> {
        const CALL: &str = "cuKernelSetAttribute";
        const LIMIT: sys::CUfunction_attribute =
            sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = c_int::try_from(bytes).map_err(|_| DriverError::invalid(CALL))?;
        let Module { context, .. } = &*self.module;
        let api = context.bind()?;
        // SAFETY: takes no pointers but the kernel's name, which is live, as is the device's.
        check(CALL, unsafe { (api.kernel_attribute)(LIMIT, bytes, self.handle, context.device()) })
    }

    /// How many clusters of `blocks` blocks fit on the device at once.
    pub(crate) fn resident_clusters(
        &self,
        launch: Launch,
        blocks: u32,
    ) -> Result<usize, DriverError> {
        const CALL: &str = "cuOccupancyMaxActiveClusters";
        let grid = u32::try_from(launch.blocks).map_err(|_| DriverError::invalid(CALL))?;
        let api = self.module.context.bind()?;
        let clusters = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: blocks, y: 1, z: 1 };
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { clusterDim: clusters },
        };
        let config = launch.config(grid, std::ptr::null_mut(), &mut attribute, 1);
        let mut count = 0;
        // SAFETY: writes one number, to which `count` has room, and reads the configuration and its
        // one attribute, whose identifier says which member of the union is set. The kernel is
        // live, and may stand for its function here.
        let result = unsafe {
            (api.resident_clusters)(&raw mut count, self.handle.cast(), &raw const config)
        };
        check(CALL, result)?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Has `stream` run it behind its work so far. `arguments` are what the kernel's file says.
    pub(crate) fn launch(
        &self,
        stream: &Stream,
        launch: Launch,
        arguments: &[Argument<'_>],
    ) -> Result<(), LaunchError> {
        const CALL: &str = "cuLaunchKernelEx";
        self.check(arguments)?;
        if launch.blocks == 0 {
            return Ok(());
        }
        let blocks = u32::try_from(launch.blocks).map_err(|_| DriverError::invalid(CALL))?;
        let context = &self.module.context;
        let api = context.bind()?;
        // Eight bytes for each: narrower ones are read from the first of them (little-endian).
        let mut values: Vec<u64> = arguments.iter().map(|argument| argument.bits()).collect();
        let pointer = |(argument, value): (&Argument<'_>, _)| match argument {
            Argument::TensorMap(map) => std::ptr::from_ref(*map).cast_mut().cast(),
            Argument::Words(words) => words.as_ptr().cast_mut().cast(),
            _ => std::ptr::from_mut::<u64>(value).cast(),
        };
        let mut pointers: Vec<*mut c_void> =
            arguments.iter().zip(&mut values).map(pointer).collect();
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let attributes = u32::from(launch.early && context.starts_early());
        let config = launch.config(blocks, stream.handle(), &mut early, attributes);
        // SAFETY: kernel and stream are live; a kernel may stand for its function here. The attribute's
        // identifier says which member of the union is set. The driver
        // reads as many pointers as the kernel has parameters, and behind each no more than eight
        // bytes, or a tensor map's or all words, without writing there; that there are as many, and of
        // the kernel's sizes, was checked. A driver before 12.4 can't tell: then it is what each
        // caller's constant list says, and newer drivers have checked. The kernel itself touches
        // device memory only: see the module's head.
        let result = unsafe {
            (api.launch)(
                &raw const config,
                self.handle.cast(),
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        Ok(check(CALL, result)?)
    }

    /// Compares the arguments with the kernel's parameters.
    fn check(&self, arguments: &[Argument<'_>]) -> Result<(), LaunchError> {
        let sizes = || arguments.iter().map(|argument| argument.bytes());
        match &self.parameters {
            Some(expected) if !sizes().eq(expected.iter().copied()) => {
                Err(LaunchError::Arguments {
                    kernel: self.name.to_string(),
                    expected: expected.to_vec(),
                    found: sizes().collect(),
                })
            }
            _ => Ok(()),
        }
    }
}

impl Launch {
    /// As the driver reads it; as long as `attribute` lives, of which there are `attributes`.
    fn config(
        self,
        blocks: u32,
        stream: sys::CUstream,
        attribute: &mut sys::CUlaunchAttribute,
        attributes: u32,
    ) -> sys::CUlaunchConfig {
        sys::CUlaunchConfig {
            gridDimX: blocks,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: self.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared_bytes,
            hStream: stream,
            attrs: attribute,
            numAttrs: attributes,
        }
    }
}

impl Argument<'_> {
    fn bytes(&self) -> usize {
        match self {
            Self::Span(_) | Self::Null | Self::U64(_) => 8,
            Self::U32(_) | Self::F32(_) => 4,
            Self::TensorMap(_) => size_of::<TensorMap<'_>>(),
            Self::Words(words) => size_of_val(*words),
        }
    }

    fn bits(self) -> u64 {
        match self {
            Self::Span(span) => span.address(),
            Self::Null | Self::TensorMap(_) | Self::Words(_) => 0,
            Self::U32(value) => value.into(),
            Self::U64(value) => value,
            Self::F32(value) => value.to_bits().into(),
        }
    }
}
