//! The table of the driver's functions that vecmill calls.
//!
//! The choice behind it: `cudarc` has bindings for all of them, and this table in place of those
//! for three reasons. They look a function up when it is first called, and panic if it is missing:
//! here all are looked up at the start, and a missing one is an answer. They return a Rust `enum`,
//! for which a code that a newer driver invents is undefined behaviour: here it is a number. And
//! they declare what one version of CUDA has: the functions below have had these names and
//! parameters since CUDA 12.0 at the latest, and still have them in 13, so any driver from 12.0 on
//! will do.

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys;

use super::table::function_table;
use crate::error::Unavailable;

/// The CUDA version whose driver vecmill needs: the first of the line that NVIDIA still repairs.
pub(super) const NEEDED: (u32, u32) = (12, 0);

pub(super) static API: OnceLock<Api> = OnceLock::new();

/// The driver's functions. Nothing is remembered of a failure: a driver may be installed, or a
/// device attached to a container, while the program runs.
pub(super) fn load() -> Result<&'static Api, Unavailable> {
    if let Some(api) = API.get() {
        return Ok(api);
    }
    // `culib` panics when there is no library: so this comes first.
    // SAFETY: loading a library runs its initialisers. These names are the driver's, and whoever
    // can place another file under them in the loader's path can run code in any program here.
    if !unsafe { sys::is_culib_present() } {
        return Err(Unavailable::NoLibrary { looked_for: library_names() });
    }
    // SAFETY: as above: it loads the file that was just found, and never unloads it.
    let library = unsafe { sys::culib() };
    let api = Api::find(library).map_err(|symbol| {
        let reason = format!("it has no function {symbol}");
        Unavailable::TooOld { needed: NEEDED, reason }
    })?;
    Ok(API.get_or_init(|| api))
}

/// What the driver's library may be called: first its usual name, then the others that are tried.
pub(crate) fn library_names() -> Vec<String> {
    let usual = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
    let others = ["cuda", "nvcuda"].map(cudarc::get_lib_name_candidates).concat();
    let mut names = vec![usual.to_owned()];
    names.extend(others.into_iter().filter(|name| name != usual));
    names
}

function_table! {
    /// The functions, under shorter names. Each returns a `CUresult`.
    Api {
        init = "cuInit"(c_uint);
        driver_version = "cuDriverGetVersion"(*mut c_int);
        error_name = "cuGetErrorName"(u32, *mut *const c_char);
        error_text = "cuGetErrorString"(u32, *mut *const c_char);

        device_count = "cuDeviceGetCount"(*mut c_int);
        device_get = "cuDeviceGet"(*mut sys::CUdevice, c_int);
        device_name = "cuDeviceGetName"(*mut c_char, c_int, sys::CUdevice);
        device_uuid = "cuDeviceGetUuid_v2"(*mut sys::CUuuid, sys::CUdevice);
        device_memory = "cuDeviceTotalMem_v2"(*mut usize, sys::CUdevice);
        device_attribute = "cuDeviceGetAttribute"(*mut c_int, sys::CUdevice_attribute, sys::CUdevice);

        context_retain = "cuDevicePrimaryCtxRetain"(*mut sys::CUcontext, sys::CUdevice);
        context_release = "cuDevicePrimaryCtxRelease_v2"(sys::CUdevice);
        context_bind = "cuCtxSetCurrent"(sys::CUcontext);
        context_synchronize = "cuCtxSynchronize"();

        memory_info = "cuMemGetInfo_v2"(*mut usize, *mut usize);
        memory_allocate = "cuMemAlloc_v2"(*mut sys::CUdeviceptr, usize);
        memory_free = "cuMemFree_v2"(sys::CUdeviceptr);
        host_allocate = "cuMemHostAlloc"(*mut *mut c_void, usize, c_uint);
        host_free = "cuMemFreeHost"(*mut c_void);

        virtual_granularity = "cuMemGetAllocationGranularity"(
            *mut usize,
            *const sys::CUmemAllocationProp,
            sys::CUmemAllocationGranularity_flags,
        );
        virtual_reserve = "cuMemAddressReserve"(
            *mut sys::CUdeviceptr, usize, usize, sys::CUdeviceptr, c_ulonglong,
        );
        virtual_free = "cuMemAddressFree"(sys::CUdeviceptr, usize);
        virtual_create = "cuMemCreate"(
            *mut sys::CUmemGenericAllocationHandle,
            usize,
            *const sys::CUmemAllocationProp,
            c_ulonglong,
        );
        virtual_release = "cuMemRelease"(sys::CUmemGenericAllocationHandle);
        virtual_map = "cuMemMap"(
            sys::CUdeviceptr, usize, usize, sys::CUmemGenericAllocationHandle, c_ulonglong,
        );
        virtual_unmap = "cuMemUnmap"(sys::CUdeviceptr, usize);
        virtual_access = "cuMemSetAccess"(
            sys::CUdeviceptr, usize, *const sys::CUmemAccessDesc, usize,
        );

        pool_create = "cuMemPoolCreate"(*mut sys::CUmemoryPool, *const sys::CUmemPoolProps);
        pool_destroy = "cuMemPoolDestroy"(sys::CUmemoryPool);
        pool_get = "cuMemPoolGetAttribute"(sys::CUmemoryPool, sys::CUmemPool_attribute, *mut c_void);
        pool_set = "cuMemPoolSetAttribute"(sys::CUmemoryPool, sys::CUmemPool_attribute, *mut c_void);
        pool_allocate = "cuMemAllocFromPoolAsync"(
            *mut sys::CUdeviceptr, usize, sys::CUmemoryPool, sys::CUstream,
        );
        pool_free = "cuMemFreeAsync"(sys::CUdeviceptr, sys::CUstream);

        stream_create = "cuStreamCreate"(*mut sys::CUstream, c_uint);
        stream_destroy = "cuStreamDestroy_v2"(sys::CUstream);
        stream_synchronize = "cuStreamSynchronize"(sys::CUstream);
        stream_query = "cuStreamQuery"(sys::CUstream);
        stream_wait = "cuStreamWaitEvent"(sys::CUstream, sys::CUevent, c_uint);
        event_create = "cuEventCreate"(*mut sys::CUevent, c_uint);
        event_destroy = "cuEventDestroy_v2"(sys::CUevent);
        event_record = "cuEventRecord"(sys::CUevent, sys::CUstream);
        event_query = "cuEventQuery"(sys::CUevent);
        event_synchronize = "cuEventSynchronize"(sys::CUevent);
        event_elapsed = "cuEventElapsedTime"(*mut f32, sys::CUevent, sys::CUevent);

        host_launch = "cuLaunchHostFunc"(
            sys::CUstream, unsafe extern "C" fn(*mut c_void), *mut c_void,
        );

        library_load = "cuLibraryLoadData"(
            *mut sys::CUlibrary,
            *const c_void,
            *mut c_int, *mut *mut c_void, c_uint,
            *mut c_int, *mut *mut c_void, c_uint,
        );
        library_unload = "cuLibraryUnload"(sys::CUlibrary);
        library_kernel = "cuLibraryGetKernel"(*mut sys::CUkernel, sys::CUlibrary, *const c_char);
        kernel_attribute = "cuKernelSetAttribute"(
            sys::CUfunction_attribute, c_int, sys::CUkernel, sys::CUdevice,
        );
        resident_clusters = "cuOccupancyMaxActiveClusters"(
            *mut c_int, sys::CUfunction, *const sys::CUlaunchConfig,
        );
        // Map, format, rank, address, sizes, distances in bytes, sizes and steps of a box.
        tensor_map_encode = "cuTensorMapEncodeTiled"(
            *mut sys::CUtensorMap, sys::CUtensorMapDataType, c_uint, *mut c_void,
            *const u64, *const u64, *const c_uint, *const c_uint,
            sys::CUtensorMapInterleave,
            sys::CUtensorMapSwizzle,
            sys::CUtensorMapL2promotion,
            sys::CUtensorMapFloatOOBfill,
        );
        // Shape and stream, function, arguments, more of them.
        launch = "cuLaunchKernelEx"(
            *const sys::CUlaunchConfig, sys::CUfunction, *mut *mut c_void, *mut *mut c_void,
        );

        capture_begin = "cuStreamBeginCapture_v2"(sys::CUstream, c_uint);
        capture_end = "cuStreamEndCapture"(sys::CUstream, *mut sys::CUgraph);
        graph_destroy = "cuGraphDestroy"(sys::CUgraph);
        graph_instantiate = "cuGraphInstantiateWithFlags"(
            *mut sys::CUgraphExec, sys::CUgraph, c_ulonglong,
        );
        graph_launch = "cuGraphLaunch"(sys::CUgraphExec, sys::CUstream);
        graph_exec_destroy = "cuGraphExecDestroy"(sys::CUgraphExec);

        fill_u32 = "cuMemsetD32Async"(sys::CUdeviceptr, c_uint, usize, sys::CUstream);
        copy_to_host = "cuMemcpyDtoHAsync_v2"(*mut c_void, sys::CUdeviceptr, usize, sys::CUstream);
        copy_from_host = "cuMemcpyHtoDAsync_v2"(
            sys::CUdeviceptr, *const c_void, usize, sys::CUstream,
        );
    }
    optional {
        // From CUDA 12.4 on.
        kernel_parameter = "cuKernelGetParamInfo"(sys::CUkernel, usize, *mut usize, *mut usize);

        green_resource = "cuDeviceGetDevResource"(sys::CUdevice, *mut sys::CUdevResource, c_uint);
        green_split = "cuDevSmResourceSplitByCount"(
            *mut sys::CUdevResource,
            *mut c_uint,
            *const sys::CUdevResource,
            *mut sys::CUdevResource,
            c_uint,
            c_uint,
        );
        green_describe = "cuDevResourceGenerateDesc"(
            *mut sys::CUdevResourceDesc, *mut sys::CUdevResource, c_uint,
        );
        green_create = "cuGreenCtxCreate"(
            *mut sys::CUgreenCtx, sys::CUdevResourceDesc, sys::CUdevice, c_uint,
        );
        green_destroy = "cuGreenCtxDestroy"(sys::CUgreenCtx);
        // From CUDA 12.5 on.
        green_stream = "cuGreenCtxStreamCreate"(
            *mut sys::CUstream, sys::CUgreenCtx, c_uint, c_int,
        );
    }
}
