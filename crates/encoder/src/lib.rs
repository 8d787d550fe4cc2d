//! Transformer encoders that turn token sequences into vectors, on any backend.
//!
//! The path of a batch:
//!
//! - [`Encoder::load`] lays the weights of a [`Model`](vecmill_model::Model) out on a [`Backend`],
//!   as its [`Lower`] planned.
//! - [`Batch`] packs sequences behind each other, without padding.
//! - [`Encoder::start`] plans the batch's memory, leases it once and starts the forward pass;
//!   [`Encoder::collect`] waits for one row per sequence; [`finish`] cuts and normalises a row.
//! - [`fit()`] says beforehand, on paper, which batches fit a memory budget.
//!
//! The choice behind it: the forward pass is written once, over a handful of coarse operations.
//! Architectures differ in data, devices in their implementation of [`Backend`]; neither knows of
//! the other. With the feature `conformance` comes the suite that every backend must pass.

mod backend;
mod batch;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod encoder;
mod fit;
mod forward;
mod paper;
mod program;
mod relative;
mod warm_up;

pub use backend::{
    AddNorm, Attention, Backend, BackendError, Between, Buffer, Copies, Embed, EmbeddingTensors,
    FeedForward, Indices, Linear, LinearAddNorm, LinearShape, LinearTensors, Lower,
    NarrowPrecision, NormTensors, Normalize, Pool, Precision, RegionWriter, Sequences, Slab,
    StackTensors, Stored, Stream, WEIGHT_ALIGNMENT, Weight, WeightPlan, Workspace, load_weights,
};
pub use batch::{Batch, Shape};
pub use encoder::{EncodeError, Encoder, Limits, Scaling, Started, finish};
pub use fit::{Demand, Fit, FitError, SlabSize, fit};
pub use forward::LoadError;
pub use paper::PaperBackend;
pub use relative::biases_by_distance;
pub use warm_up::Practised;
