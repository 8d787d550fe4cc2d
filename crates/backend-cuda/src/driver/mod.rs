//! The CUDA driver: the one module that calls it.
//!
//! - `api` is the table of its functions, looked up when the program runs; `error` sorts what they
//!   return.
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
pub(crate) mod error;
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

pub(crate) use api::library_names;
pub(crate) use context::{Context, device_count, device_info, version};
use error::check;
pub(crate) use error::{DriverError, LaunchError};
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
