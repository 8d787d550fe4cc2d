//! NVIDIA GPUs: finding them, their streams and events, and their memory as sources for the pool.
//!
//! - [`devices`] says what is there, or in plain words why nothing is ([`Unavailable`]);
//!   [`driver_library`] and [`libraries`] say it of the driver and NVIDIA's libraries beside it.
//! - [`Sensors`] read a GPU's [`GpuState`]: heat, clocks, memory in use, faults.
//! - [`Gpu`] is one GPU with its context; [`CudaStream`] and [`CudaEvent`] order its work;
//!   [`PinnedBuffer`] is host memory that it copies from and to by itself, [`StagingRing`] a small
//!   one that all batches share.
//! - [`Gemm`] computes matrix products.
//! - [`CudaLowering`] says what operations and weights take, without a GPU.
//! - [`CudaSource`] gives the pool its memory: [`MappedSource`] where blocks can grow in place,
//!   [`PlainSource`] where they can't. [`StreamOrderedSource`] is the driver's own pool, to compare
//!   with.
//!
//! The choice behind it: the driver is found when the program runs, so one binary serves machines
//! with and without a GPU, and nothing of CUDA is needed to build it. `driver` is the only module
//! that calls it, and the only one with `unsafe` code; it hands out owned things (a stream, a chunk
//! of memory), so that the rest is ordinary safe Rust.

mod compiler;
mod driver;
mod error;
#[cfg(feature = "faults")]
mod faults;
mod gemm;
mod gpu;
mod graphs;
mod kernels;
mod libraries;
mod lower;
mod open;
mod pinned;
mod probe;
mod row_order;
mod run;
mod sensors;
mod source;
mod staging;
mod state;
mod stopwatch;
mod stream;
mod weights;

pub use driver::DeviceSpan;
pub use error::Unavailable;
#[cfg(feature = "faults")]
pub use faults::provoke_fault;
pub use gemm::{
    ACTIVATION_ALIGNMENT, Format, Gemm, GemmError, Linear, RowRange, Tuned, WEIGHT_ALIGNMENT,
};
pub use gpu::{Gpu, MemoryInfo};
pub use libraries::{Found, Missing, NvidiaLibrary, driver_library, libraries};
pub use lower::{CudaKernel, CudaLowering, Form};
pub use open::OpenError;
pub use pinned::PinnedBuffer;
pub use probe::{GpuInfo, devices};
pub use run::{CudaBackend, CudaFetched};
pub use sensors::{NoSensors, Sensors};
pub use source::{
    CudaBlock, CudaSource, MappedBlock, MappedSource, OrderedBlock, PlainBlock, PlainSource,
    StreamOrderedSource,
};
pub use staging::{Staged, StagingRing, StagingStatistics};
pub use state::{GpuState, MemoryUse, Throttling, XidErrors};
pub use stream::{CudaEvent, CudaStream, HeldStream};
pub use weights::CudaWeight;
