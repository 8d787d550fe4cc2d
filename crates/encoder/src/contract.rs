//! What a backend implements: graphs, programs, and the two traits. It moves to the crate's root when
//! the last backend has a lowering.

pub use crate::backend::{Backend, Kernel, Lower, Slab, Stream};
pub use crate::encoder::{EncodeError, Encoder, Limits, LoadError, Started, load_graph};
pub use crate::fit::{Ask, Fit, FitError, SlabSize, fit};
pub use crate::graph::{
    Graph, GraphBuilder, Node, Op, RelativeBias, Rows, ValueId, ValueShape, WeightId, WeightShape,
};
pub use crate::plain::plain;
pub use crate::prepared::{PlanStatistics, Prepared, Programs};
pub use crate::program::{Place, Placed, Places, Program, RowBound, Step, Value};
pub use crate::tasks::{Scaling, finish};
pub use crate::warm_up::Practised;
pub use crate::weight::{Linear, Norm, Weight};
pub use crate::weights::Weights;
