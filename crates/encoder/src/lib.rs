//! Transformer encoders that turn token sequences into vectors, on any backend.
//!
//! Three levels, each made from the one before and none knowing the next:
//!
//! - a [`Graph`] is what a [`Model`](vecmill_model::Model) computes: the forward pass and a task's tail
//!   make operations of it, as data;
//! - a [`Program`] is how one kind of device does it: its [`Lower`] makes steps with kernels of its own;
//! - a plan is where each byte lies, of weights ([`WeightPlan`]) and of a batch ([`Placed`]).
//!
//! The path of a batch:
//!
//! - [`Encoder::load`] lays the weights out on a [`Backend`], as its [`Lower`] planned.
//! - [`Batch`] packs sequences behind each other, without padding.
//! - [`Encoder::start`] finds the program of the batch's bucket ([`Programs`]), leases its memory once
//!   and runs it; [`Encoder::collect`] waits for one row per sequence; [`finish`] cuts and normalises
//!   a row.
//! - [`fit()`] says beforehand, on paper, which batches fit a memory budget.
//!
//! The choice behind it: the forward pass is written once, over a handful of operations. Architectures
//! differ in data, devices in their lowering; neither knows of the other.

mod backend;
mod batch;
mod encoder;
mod error;
mod fit;
mod forward;
mod graph;
mod plain;
mod precision;
mod prepared;
mod program;
mod relative;
#[cfg(test)]
mod sizes;
mod tasks;
mod warm_up;
mod weights;

pub use backend::{Backend, Kernel, Lower, RepeatKey, Slab, Stream};
pub use batch::{Batch, Numbering, Shape, position_and_type};
pub use encoder::{EncodeError, Encoder, Limits, LoadError, Started, load_graph};
pub use error::BackendError;
pub use fit::{Ask, Fit, FitError, SlabSize, fit};
pub use graph::{AttentionBias, Graph, GraphBuilder, Node, Op, RelativeBias, Rows};
pub use graph::{ValueId, ValueShape, WeightId};
pub use plain::plain;
pub use precision::{NarrowPrecision, Precision};
pub use prepared::{PlanStatistics, Prepared, Programs};
pub use program::{Place, Placed, Places, Program, RowBound, Step, Value};
pub use relative::{alibi_slope, biases_by_distance};
pub use tasks::{Scaling, finish};
pub use warm_up::{PracticeBatches, Practised};
pub use weights::{RegionWriter, Stored, WEIGHT_ALIGNMENT, WeightPlan, Weights, load_weights};
