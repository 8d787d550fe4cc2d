//! The CUDA driver: the one module that calls it.
//!
//! - `api` is the table of its functions, looked up when the program runs.
//! - `context` starts it, asks what devices there are and makes a device's context current;
//!   `memory`, `virtual_memory` and `ordered` take memory in the driver's three ways, `host` takes
//!   pinned memory and `parts` cuts it up; `stream` has streams, events, fills and copies,
//!   and `hold` holds a stream back; `green` divides a device into parts.
//! - `kernel` loads machine code and launches it, and `graph` repeats what a stream was given;
//!   `tensor_map` describes matrices to Hopper's copy engine.
//! - `nvrtc` and `cublaslt` are NVIDIA's compiler of kernels and its library of matrix products, with
//!   tables of their own; `library` loads such a library, and `table` looks functions up.
//!
//! The choice behind it: each thing that the driver gives is a type that owns it and can't be made
//! elsewhere, so no wrong handle or address can be passed, and the functions here are safe to call.
//! Two facts carry the arguments beside the `unsafe` blocks:
//!
//! - **Device memory is nobody's Rust object.** An address in a [`DeviceSpan`] lies in a range that
//!   the driver reserved for a device. Work on it at the wrong moment reads stale numbers or makes
//!   the device fault (`Cause::Lost`); it does not touch the host's memory.
//! - **The driver is thread-safe**, and handles are names that it looks up. What belongs to a
//!   context holds an `Arc` of it, so no handle outlives its context.
#![allow(unsafe_code, reason = "calls the CUDA driver, with an argument beside each call")]

mod api;
mod context;
pub(crate) mod cublaslt;
mod graph;
mod green;
mod hold;
mod host;
mod kernel;
mod library;
mod memory;
pub(crate) mod nvrtc;
mod ordered;
mod parts;
mod stream;
mod table;
mod tensor_map;
#[cfg(test)]
mod tests;
mod virtual_memory;

use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

use cudarc::driver::sys;

use crate::error::{DriverError, Unavailable, code};
use api::Api;
pub(crate) use context::{Context, NEEDED, device_count, device_info, version};
pub(crate) use graph::CapturedGraph;
pub(crate) use hold::Hold;
pub(crate) use host::{HostMemory, PinnedRange};
pub(crate) use kernel::{Argument, Launch, LoadedKernel, Module};
pub(crate) use library::load_library;
pub(crate) use memory::Allocation;
pub use memory::DeviceSpan;
pub(crate) use ordered::{MemoryPool, OrderedAllocation};
pub(crate) use parts::{HostPart, HostParts};
pub(crate) use stream::{Event, Stream};
pub(crate) use tensor_map::{TensorElement, TensorMap};
pub(crate) use virtual_memory::{Addresses, Chunk, VirtualMemory};

static API: OnceLock<Api> = OnceLock::new();

/// The driver's functions. Nothing is remembered of a failure: a driver may be installed, or a
/// device attached to a container, while the program runs.
fn load() -> Result<&'static Api, Unavailable> {
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

fn check(call: &'static str, result: u32) -> Result<(), DriverError> {
    match result {
        code::SUCCESS => Ok(()),
        code => Err(DriverError { call, code }),
    }
}

/// An error's name and meaning in the driver's words, for example `CUDA_ERROR_OUT_OF_MEMORY (out of
/// memory)`.
pub(crate) fn describe(code: u32) -> String {
    let Some(api) = API.get() else {
        return format!("error {code}");
    };
    match (text(api.error_name, code), text(api.error_text, code)) {
        (Some(name), Some(meaning)) => format!("{name} ({meaning})"),
        _ => format!("error {code}, which the driver does not explain"),
    }
}

type Explain = unsafe extern "system" fn(u32, *mut *const c_char) -> u32;

fn text(explain: Explain, code: u32) -> Option<String> {
    let mut text = std::ptr::null();
    // SAFETY: the function looks any number up and writes one pointer, to which `text` has room.
    let result = unsafe { explain(code, &raw mut text) };
    if result != code::SUCCESS || text.is_null() {
        return None;
    }
    // SAFETY: on success it points to a string of the driver's, ended by a zero and never freed.
    let text = unsafe { CStr::from_ptr(text) };
    Some(text.to_string_lossy().into_owned())
}
