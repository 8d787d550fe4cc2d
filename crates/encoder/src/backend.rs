//! What a device must be able to do, in two parts.
//!
//! - [`Lower`] says how its kind computes a graph: steps, sizes, where weights lie. It is a pure function
//!   of facts about the kind, so that what fits is known before anything is read, by the code that
//!   serves.
//! - [`Backend`] is the device itself: it loads weights, runs steps, and brings rows to the host.
//!
//! The choice behind it: the encoder knows operations as data, and of a program no more than bytes
//! and lifetimes. Which operations are one kernel is a device's own business, in one place; the least
//! that a new one writes is a match over the operations ([`plain`](crate::plain::plain)).

use std::fmt::Debug;

use vecmill_memory::Source;

use crate::batch::Shape;
use crate::error::BackendError;
use crate::graph::{Graph, Node};
use crate::precision::Precision;
use crate::program::{Place, Places, Program, RowBound, Step};
use crate::weights::{RegionWriter, WeightPlan, Weights};
use vecmill_model::Weight;

/// The slab type of a backend's memory source.
pub type Slab<B> = <<B as Backend>::Source as Source>::Block;

/// A queue of work of a backend's device.
pub type Stream<B> = <<B as Backend>::Source as Source>::Stream;

/// What a backend's steps compute.
pub type Kernel<B> = <<B as Backend>::Lower as Lower>::Kernel;

/// What makes the steps of two batches the same, where they run padded and on the same slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RepeatKey {
    /// The graph and the lowering, by a number that no others have in this process.
    pub programs: u64,
    /// The bucket.
    pub shape: Shape,
}

/// How one kind of device computes. Pure: two that are equal say the same of all graphs.
///
/// Whatever operations of a graph have no kernel become a step all the same, whose run fails.
pub trait Lower: Debug + Clone + Send + Sync + 'static {
    /// What a step computes: which kernel, the numbers of its weights, its constants.
    type Kernel: Debug + Clone + PartialEq + Send + Sync;

    /// The steps that compute `graph`. For fewer rows than `rows` has they are right, too, and no step
    /// needs more scratch.
    fn lower(&self, graph: &Graph, rows: RowBound) -> Program<Self::Kernel>;

    /// Plans where the weights of `node` are stored: every form in which they are loaded, in the order
    /// in which [`Backend::load`] writes it. It depends on the graph and on no number of a weight.
    fn store(&self, graph: &Graph, node: &Node, plan: &mut WeightPlan);

    /// The rounding errors of `node` in a program for `rows`.
    fn precision(&self, graph: &Graph, node: &Node, rows: RowBound) -> Precision;

    /// The same for any two counts of rows whose operations, if all else is the same, take the same
    /// ways: kernels, algorithms. `rows` are a batch's, `planned` those of the bucket that its program
    /// is for. Practice takes each way once, so that no request has to wait for one to be made ready.
    fn way(&self, rows: usize, planned: usize) -> u64 {
        let _ = (rows, planned);
        0
    }

    /// Batches of which attention takes ways that depend on more than one length: the longest
    /// sequence's tokens, and those of all others.
    fn attention_mixes(&self) -> &'static [(usize, usize)] {
        &[]
    }
}

/// A device that can run encoders.
///
/// Loading happens once, from any thread. The steps of one slab are called in order from one thread; a
/// backend may run them asynchronously, in the order of its [stream](Backend::stream): only
/// [`collect`](Backend::collect) waits. After [`fetch`](Backend::fetch) the slab may be another
/// batch's as soon as the stream has come that far.
///
/// Results for a row must not depend on which other rows are in the batch, beyond the tolerance
/// that the backend documents. Rows of a matrix that belong to no sequence may hold anything, NaN
/// too, and need not be written; no other row may be changed by them.
pub trait Backend: Debug + Send + Sync + Sized + 'static {
    /// How its kind computes.
    type Lower: Lower;
    /// Where slabs come from.
    type Source: Source;
    /// The loaded weights of one operation.
    type Weight: Debug + Send + Sync;
    /// A result on its way to the host; dropping it gives the result up.
    type Fetched: Debug + Send;

    /// How its kind computes.
    fn lowering(&self) -> &Self::Lower;

    /// A source of slabs that steps can work on.
    fn source(&self) -> Self::Source;

    /// The queue that steps go into, in order.
    fn stream(&self) -> Stream<Self>;

    /// Loads the weights of `node`, whose numbers are places in `weights`, into the places that
    /// [`Lower::store`] named for it.
    ///
    /// # Errors
    /// When the device fails.
    fn load(
        &self,
        graph: &Graph,
        node: &Node,
        weights: &[Weight],
        into: &mut RegionWriter<Slab<Self>>,
    ) -> Result<Self::Weight, BackendError>;

    /// Copies a batch's indices from the host into the slab, from the byte `at` on. `values` are free
    /// again when it returns.
    ///
    /// # Errors
    /// When the device fails.
    fn copy_in(&self, slab: &mut Slab<Self>, values: &[u32], at: usize)
    -> Result<(), BackendError>;

    /// Runs one step.
    ///
    /// # Errors
    /// When the device fails.
    fn run(
        &self,
        weights: &Weights<Self::Weight>,
        step: &Step<Kernel<Self>>,
        places: &Places<'_>,
        slab: &mut Slab<Self>,
    ) -> Result<(), BackendError>;

    /// Starts copying rows of activations to the host, behind everything before: the first plane of an
    /// output.
    ///
    /// # Errors
    /// When the device fails, or failed in a step before.
    fn fetch(&self, slab: &mut Slab<Self>, from: Place) -> Result<Self::Fetched, BackendError>;

    /// Waits until activations have arrived, and writes them as `f32`. `into` has as many elements
    /// as were fetched. Any thread may wait.
    ///
    /// # Errors
    /// When the device failed in this or a step before.
    fn collect(&self, fetched: Self::Fetched, into: &mut [f32]) -> Result<(), BackendError>;

    /// Does the work of one batch, or of many. A backend with threads of its own moves onto them here,
    /// once, instead of at every step; calls may be nested.
    fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        work()
    }

    /// How many batches are worth having started before the first is collected: more than one where
    /// the device works while the host goes on.
    fn in_flight(&self) -> usize {
        1
    }

    /// From now on, and until this is called with `false`, batches are for practice: the backend
    /// may run steps many times over, to find out which of its ways is fastest.
    fn tune(&self, on: bool) {
        let _ = on;
    }

    /// How many ways steps have taken so far, that had to be made ready for the first time: kernels
    /// loaded, algorithms chosen. After practice it should stay what it is.
    fn ways_taken(&self) -> u64 {
        0
    }

    /// Whether batches of `shape` run padded to the [bucket](Shape::bucket) that it falls into, so
    /// that all batches of a bucket take the very same steps. Padding adds tokens that belong to no
    /// sequence and sequences without tokens.
    fn pads(&self, shape: Shape) -> bool {
        let _ = shape;
        false
    }

    /// Runs the steps between [`copy_in`](Self::copy_in) and [`fetch`](Self::fetch), which `steps`
    /// calls. Where the backend [pads](Self::pads), the same key on the same slab means the same steps
    /// on the same operands, whatever the batch: they may be captured once and replayed instead of
    /// calling `steps`.
    ///
    /// # Errors
    /// When the device fails.
    fn repeat(
        &self,
        slab: &mut Slab<Self>,
        key: RepeatKey,
        mut steps: impl FnMut(&mut Slab<Self>) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let _ = key;
        steps(slab)
    }
}
