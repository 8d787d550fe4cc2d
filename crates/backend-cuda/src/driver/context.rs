//! Starting the driver, asking what devices there are, and the context in which one works.
//!
//! The choice behind it: the *primary* context, of which a device has one per process, because
//! libraries that are loaded later (compiler, matrix products) use the same.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};

use super::DriverError;
use super::api::Api;
use super::api::{NEEDED, load};
use super::check;
use super::green::Part;
use crate::error::Unavailable;
use crate::probe::GpuInfo;

/// The driver's functions, after it has been started. Starting it again does nothing.
fn start() -> Result<(&'static Api, (u32, u32)), Unavailable> {
    let api = load()?;
    let mut version: c_int = 0;
    // SAFETY: writes one number, to which `version` has room; allowed before `cuInit`.
    check("cuDriverGetVersion", unsafe { (api.driver_version)(&raw mut version) })?;
    // 12040 is 12.4.
    let version = u32::try_from(version).unwrap_or(0);
    let found = (version / 1000, version % 1000 / 10);
    if found < NEEDED {
        let reason = format!("it supports CUDA {}.{}", found.0, found.1);
        return Err(Unavailable::TooOld { needed: NEEDED, reason });
    }
    // SAFETY: takes no pointers; the flags must be 0.
    check("cuInit", unsafe { (api.init)(0) })?;
    Ok((api, found))
}

/// The CUDA version that the driver supports.
pub(crate) fn version() -> Result<(u32, u32), Unavailable> {
    start().map(|(_, version)| version)
}

/// How many devices the driver shows. `CUDA_VISIBLE_DEVICES` limits and reorders them.
pub(crate) fn device_count() -> Result<usize, Unavailable> {
    let (api, _) = start()?;
    let mut count: c_int = 0;
    // SAFETY: writes one number, to which `count` has room.
    check("cuDeviceGetCount", unsafe { (api.device_count)(&raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

fn device(api: &Api, ordinal: usize) -> Result<sys::CUdevice, Unavailable> {
    let count = device_count()?;
    let no_device = || Unavailable::NoDevice { ordinal, count };
    let number = c_int::try_from(ordinal).map_err(|_| no_device())?;
    if ordinal >= count {
        return Err(no_device());
    }
    let mut device = 0;
    // SAFETY: writes one number, to which `device` has room.
    check("cuDeviceGet", unsafe { (api.device_get)(&raw mut device, number) })?;
    Ok(device)
}

/// What the driver says about a device, without making a context on it.
pub(crate) fn device_info(ordinal: usize) -> Result<GpuInfo, Unavailable> {
    let (api, driver) = start()?;
    let device = device(api, ordinal)?;
    let attribute = |attribute| attribute_of(api, device, attribute);
    let mut total_memory = 0;
    // SAFETY: writes one number, to which `total_memory` has room.
    let result = unsafe { (api.device_memory)(&raw mut total_memory, device) };
    check("cuDeviceTotalMem", result)?;
    Ok(GpuInfo {
        ordinal,
        name: name(api, device)?,
        uuid: uuid(api, device)?,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        total_memory,
        free_memory: None,
        maps_memory: attribute(Attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED)?
            != 0,
        pools_memory: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0,
        driver,
    })
}

fn attribute_of(
    api: &Api,
    device: sys::CUdevice,
    attribute: Attribute,
) -> Result<u32, DriverError> {
    let mut value: c_int = 0;
    // SAFETY: writes one number, to which `value` has room; `device` is from `cuDeviceGet`.
    let result = unsafe { (api.device_attribute)(&raw mut value, attribute, device) };
    check("cuDeviceGetAttribute", result)?;
    Ok(u32::try_from(value).unwrap_or(0))
}

fn name(api: &Api, device: sys::CUdevice) -> Result<String, DriverError> {
    let mut name: [c_char; 256] = [0; 256];
    // SAFETY: writes at most 255 characters, to which there is room.
    let result = unsafe { (api.device_name)(name.as_mut_ptr(), 255, device) };
    check("cuDeviceGetName", result)?;
    // SAFETY: `name` was all zeros and its last character was not written, so a zero ends it.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Ok(name.to_string_lossy().into_owned())
}

fn uuid(api: &Api, device: sys::CUdevice) -> Result<String, DriverError> {
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: writes 16 bytes, to which `uuid` has room.
    check("cuDeviceGetUuid", unsafe { (api.device_uuid)(&raw mut uuid, device) })?;
    let mut text = String::new();
    for (index, byte) in uuid.bytes.into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{:02x}", byte.to_ne_bytes()[0]));
    }
    Ok(text)
}

thread_local! {
    /// The `id` of the context that is current on this thread; 0 for none.
    static BOUND: Cell<u64> = const { Cell::new(0) };
}

/// A device's primary context, retained while this lives; or a part of the device, in it.
#[derive(Debug)]
pub(crate) struct Context {
    /// The multiprocessors that streams run on, if not all.
    part: Option<Part>,
    pub(super) api: &'static Api,
    handle: sys::CUcontext,
    device: sys::CUdevice,
    /// Whether kernels can start while the one before ends: from compute capability 9.0 on.
    starts_early: bool,
    /// Never used twice in a process, where the driver's pointers are.
    id: u64,
    name: String,
    /// Kernels that were loaded. They stay as long as this, because graphs, and work under way, may
    /// refer to them.
    libraries: Mutex<Vec<sys::CUlibrary>>,
}

// SAFETY: a context may be current on any number of threads at once, and the driver locks what its
// calls share; the pointer is only a name for it.
unsafe impl Send for Context {}
// SAFETY: as above; what changes in it has a lock.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of device `ordinal`. The first retaining in a process sets the
    /// device up: that takes some tenths of a second, and memory on the device.
    pub(crate) fn retain(ordinal: usize) -> Result<Self, Unavailable> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (api, _) = start()?;
        let device = device(api, ordinal)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one pointer, to which `handle` has room; `device` is from `cuDeviceGet`.
        let result = unsafe { (api.context_retain)(&raw mut handle, device) };
        check("cuDevicePrimaryCtxRetain", result)?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let (name, libraries) = (format!("cuda:{ordinal}"), Mutex::default());
        let major = Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
        let starts_early = attribute_of(api, device, major)? >= 9;
        Ok(Self { part: None, api, handle, device, starts_early, id, name, libraries })
    }

    /// The same, limited to a part of the device: at least `wanted` multiprocessors, in groups of
    /// at least `least`, that no other part has.
    pub(crate) fn part(mut self, wanted: u32, least: u32) -> Result<Self, Unavailable> {
        self.part = Some(Part::new(self.api, self.device, wanted, least)?);
        self.name = format!("{}/sms={wanted}", self.name);
        Ok(self)
    }

    /// Multiprocessors that streams run on, if not all.
    pub(crate) fn multiprocessors(&self) -> Option<u32> {
        self.part.as_ref().map(Part::multiprocessors)
    }

    /// A new stream's handle; the context is bound.
    pub(super) fn create_stream(&self) -> Result<sys::CUstream, DriverError> {
        if let Some(part) = &self.part {
            return part.stream();
        }
        let mut handle = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one pointer, to which `handle` has room.
        check("cuStreamCreate", unsafe { (self.api.stream_create)(&raw mut handle, flags) })?;
        Ok(handle)
    }

    /// The device's name in errors, for example `cuda:0`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Unloads `library`, which nobody else does, after everything that belongs to this context.
    pub(super) fn keep(&self, library: sys::CUlibrary) {
        self.libraries.lock().unwrap_or_else(PoisonError::into_inner).push(library);
    }

    /// Whether kernels can start while the one before ends.
    pub(super) fn starts_early(&self) -> bool {
        self.starts_early
    }

    /// The device's number for the driver, as memory properties want it.
    pub(super) fn device(&self) -> sys::CUdevice {
        self.device
    }

    /// Makes this context current on the calling thread and returns the functions that need it so.
    /// Costs one comparison where it is: nothing else in the process changes a thread's context.
    pub(super) fn bind(&self) -> Result<&'static Api, DriverError> {
        if BOUND.get() != self.id {
            // SAFETY: the context is retained while `self` lives.
            check("cuCtxSetCurrent", unsafe { (self.api.context_bind)(self.handle) })?;
            BOUND.set(self.id);
        }
        Ok(self.api)
    }

    /// Bytes free and in total on the device, whoever uses them.
    pub(crate) fn memory_info(&self) -> Result<(usize, usize), DriverError> {
        let api = self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers, to which there is room.
        let result = unsafe { (api.memory_info)(&raw mut free, &raw mut total) };
        check("cuMemGetInfo", result)?;
        Ok((free, total))
    }

    /// Waits for all work that the device was given in this context.
    pub(crate) fn synchronize(&self) -> Result<(), DriverError> {
        let api = self.bind()?;
        // SAFETY: takes nothing; acts on the context that was just bound.
        check("cuCtxSynchronize", unsafe { (api.context_synchronize)() })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // A failure means that the driver is shutting down, and the context is gone anyway.
        for library in self.libraries.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // SAFETY: loaded once and unloaded once. Kernels and graphs that refer to it are gone:
            // see below.
            let _ = unsafe { (self.api.library_unload)(library) };
        }
        drop(self.part.take()); // needs the context
        // SAFETY: retained once by `retain` and released once, here. Whatever belongs to the
        // context held an `Arc` of it and so is gone.
        let _ = unsafe { (self.api.context_release)(self.device) };
    }
}
