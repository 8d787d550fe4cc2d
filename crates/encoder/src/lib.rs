//! Transformer encoders that turn token sequences into vectors, on any backend.
//!
//! The path of a batch:
//!
//! - [`model`] reads a folder: configuration, pipeline, weights.
//! - [`Encoder::load`] lays the weights out on a [`Backend`], as its [`Lower`] planned.
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
pub mod contract;
pub mod e4m3;
mod encoder;
mod fit;
mod forward;
mod graph;
pub mod model;
mod old;
mod plain;
mod prepared;
mod program;
mod relative;
#[cfg(test)]
mod sizes;
mod tasks;
mod warm_up;
mod weight;
mod weights;

pub use backend::{BackendError, NarrowPrecision, Precision};
pub use batch::{Batch, Shape};
pub use model::{Activation, Model, ModelError, Pooling, TensorView};
pub use old::backend::{
    AddNorm, Attention, Backend, Between, Buffer, Copies, Embed, EmbeddingTensors, FeedForward,
    Indices, Linear, LinearAddNorm, LinearShape, LinearTensors, Lower, NormTensors, Normalize,
    Pool, Sequences, Slab, StackTensors, Stream, Weight, Workspace,
};
pub use old::encoder::{EncodeError, Encoder, Limits, Scaling, Started, finish};
pub use old::fit::{Demand, Fit, FitError, SlabSize, fit};
pub use old::forward::LoadError;
pub use old::paper::PaperBackend;
pub use old::warm_up::Practised;
pub use relative::biases_by_distance;
pub use weights::{RegionWriter, Stored, WEIGHT_ALIGNMENT, WeightPlan, load_weights};
