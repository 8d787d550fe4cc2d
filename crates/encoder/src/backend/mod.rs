//! What a device must be able to do: a handful of coarse, fused operations on buffers of one slab.
//!
//! - [`Backend`] is the contract; `conformance` (feature of the same name) is the suite that every
//!   implementation must pass.
//! - [`Lower`] has its sizes, which are known without the device (`lower`); `weights` has the plan of
//!   where weights lie, and the region that follows it.
//! - One struct per operation carries its operands (`operations`); [`Buffer`] and [`Indices`] say
//!   where in the slab it reads and writes.
//!
//! The choice behind it: operations are coarse, so that a backend can fuse (a GPU pays for every
//! launch, a CPU for every pass over memory), and few, so that a new backend is a day's work.

mod lower;
mod operations;
mod weights;

use std::fmt::Debug;

use vecmill_memory::Source;

use crate::batch::Shape;
use vecmill_model::{DType, TensorView, e4m3};

pub use lower::{LinearShape, Lower, Weight};
pub use operations::{
    AddNorm, Attention, Between, Buffer, Copies, Embed, EmbeddingTensors, FeedForward, Indices,
    Linear, LinearAddNorm, LinearTensors, NormTensors, Normalize, Pool, Sequences, StackTensors,
    Workspace,
};
pub use weights::{RegionWriter, Stored, WEIGHT_ALIGNMENT, WeightPlan, load_weights};

/// The slab type of a backend's memory source.
pub type Slab<B> = <<B as Backend>::Source as Source>::Block;

/// A queue of work of a backend's device.
pub type Stream<B> = <<B as Backend>::Source as Source>::Stream;

/// The rounding errors of a backend, from which the conformance suite derives its tolerances.
///
/// Activations, and whatever passes from one kernel to the next within an operation, are rounded to
/// the storage format; so may be biases, and the weights of attention before they meet the values.
/// Sums are of the accumulation's precision; elementary functions are, too, or within a sixteenth of
/// the storage's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Precision {
    /// Unit roundoff of the format in which activations are stored, for example 2⁻²⁴ for `f32`.
    pub storage: f64,
    /// Half the spacing of the numbers next to zero in that format: what rounding a tiny number
    /// costs.
    pub underflow: f64,
    /// Unit roundoff of the format in which sums are accumulated.
    pub accumulation: f64,
    /// Of linear layers whose operands are narrow.
    pub narrow: Option<NarrowPrecision>,
}

/// The rounding errors of linear layers that round their operands to FP8 before they multiply.
///
/// Operands are scaled first. An input's scale is a power of two and no less than one. That of a
/// weight's row may be anything, unless the row's numbers are all of FP8: then it leaves them what
/// they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NarrowPrecision {
    /// Unit roundoff of the operands.
    pub operands: f64,
    /// What rounding an input near zero costs at most.
    pub underflow: f64,
    /// Unit roundoff of the products' sums.
    pub accumulation: f64,
}

impl Precision {
    /// Storage in `format`, sums in `f32`. With FP8, storage is in half precision.
    pub fn of(format: DType) -> Self {
        let (digits, smallest) = match format {
            DType::F32 => (24, -149),
            DType::F16 | DType::F8E4M3 => (11, -24),
            DType::BF16 => (8, -133),
        };
        let power = |exponent| 2.0_f64.powi(exponent);
        let (storage, underflow) = (power(-digits), power(smallest - 1));
        let narrow = (format == DType::F8E4M3).then_some(NarrowPrecision {
            operands: e4m3::ROUNDOFF,
            underflow: e4m3::UNDERFLOW,
            accumulation: power(-24),
        });
        Self { storage, underflow, accumulation: power(-24), narrow }
    }

    /// As [`of`](Self::of), with sums on tensor cores, which cut where others round
    /// (M. Fasi et al., "Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science 7:e330).
    pub fn of_tensor_cores(format: DType) -> Self {
        // Of products in FP8, 32 at a time are added with at least 13 bits (DeepSeek-AI,
        // arXiv:2412.19437, section 3.3.2), so that n terms cost less than n + 1 roundings of this.
        let narrow = |narrow| NarrowPrecision { accumulation: 2.0_f64.powi(-17), ..narrow };
        let of = Self::of(format);
        Self { accumulation: 2.0_f64.powi(-23), narrow: of.narrow.map(narrow), ..of }
    }
}

/// A device's operation failed. Never the caller's fault: operands are checked before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation} failed: {reason}")]
pub struct BackendError {
    /// The operation's name.
    pub operation: &'static str,
    /// What the device said.
    pub reason: String,
}

/// A device that can run encoders.
///
/// Loading happens once, from any thread. The operations of one slab are called in order from one
/// thread; a backend may run them asynchronously, in the order of its [stream](Backend::stream):
/// only [`collect`](Backend::collect) waits. After [`fetch`](Backend::fetch) the slab may be
/// another batch's as soon as the stream has come that far.
///
/// Results for a row must not depend on which other rows are in the batch, beyond the tolerance
/// that the backend documents. Rows of a matrix that belong to no sequence may hold anything, NaN
/// too, and need not be written; no other row may be changed by them.
pub trait Backend: Debug + Send + Sync + Sized + 'static {
    /// Its kind, as far as sizes follow from it.
    type Lower: Lower;
    /// Where slabs come from.
    type Source: Source;
    /// A loaded linear layer.
    type Linear: Debug + Send + Sync;
    /// A loaded layer normalisation.
    type Norm: Debug + Send + Sync;
    /// Loaded embedding tables.
    type Embeddings: Debug + Send + Sync;
    /// A loaded table of relative position biases.
    type RelativeBias: Debug + Send + Sync;
    /// A result on its way to the host; dropping it gives the result up.
    type Fetched: Debug + Send;

    /// A source of slabs that the operations can work on.
    fn source(&self) -> Self::Source;

    /// The queue that operations go into, in order.
    fn stream(&self) -> Stream<Self>;

    /// The sizes of what it computes with.
    fn lowering(&self) -> &Self::Lower;

    /// The backend's rounding errors.
    fn precision(&self) -> Precision;

    /// Loads linear layers that share their input, stacked as one, into the places that
    /// [`Lower::store`] named for them; so do the others.
    ///
    /// # Errors
    /// When the device fails.
    fn load_linear(
        &self,
        stack: StackTensors<'_>,
        into: &mut RegionWriter<Slab<Self>>,
    ) -> Result<Self::Linear, BackendError>;

    /// Loads a layer normalisation.
    ///
    /// # Errors
    /// When the device fails.
    fn load_norm(
        &self,
        tensors: &NormTensors,
        into: &mut RegionWriter<Slab<Self>>,
    ) -> Result<Self::Norm, BackendError>;

    /// Loads embedding tables.
    ///
    /// # Errors
    /// When the device fails.
    fn load_embeddings(
        &self,
        tensors: &EmbeddingTensors,
        into: &mut RegionWriter<Slab<Self>>,
    ) -> Result<Self::Embeddings, BackendError>;

    /// Loads a table of relative position biases, `[buckets, heads]`; distances fall into
    /// logarithmic buckets up to `max_distance` (T5, arXiv:1910.10683, section 2.1).
    ///
    /// # Errors
    /// When the device fails.
    fn load_relative_bias(
        &self,
        table: &TensorView,
        max_distance: usize,
        into: &mut RegionWriter<Slab<Self>>,
    ) -> Result<Self::RelativeBias, BackendError>;

    /// Runs the operations of one batch, or of many. A backend with threads of its own moves onto
    /// them here, once, instead of at every operation; calls may be nested.
    fn run_batch<R: Send>(&self, operations: impl FnOnce() -> R + Send) -> R {
        operations()
    }

    /// How many batches are worth having started before the first is collected: more than one where
    /// the device works while the host goes on.
    fn in_flight(&self) -> usize {
        1
    }

    /// From now on, and until this is called with `false`, batches are for practice: the backend
    /// may run operations many times over, to find out which of its ways is fastest.
    fn tune(&self, on: bool) {
        let _ = on;
    }

    /// How many ways operations have taken so far, that had to be made ready for the first time:
    /// kernels loaded, algorithms chosen. After practice it should stay what it is.
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

    /// Runs the operations between [`copy_in`](Self::copy_in) and [`fetch`](Self::fetch), which
    /// `steps` calls. Where the backend [pads](Self::pads), `shape` is the bucket, and the same
    /// shape on the same slab means the same operations on the same operands, whatever the batch:
    /// they may be captured once and replayed instead of calling `steps`.
    ///
    /// # Errors
    /// When the device fails.
    fn repeat(
        &self,
        slab: &mut Slab<Self>,
        shape: Shape,
        mut steps: impl FnMut(&mut Slab<Self>) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let _ = shape;
        steps(slab)
    }

    /// Copies indices from the host into the slab, once per batch. `values` are free again when it
    /// returns.
    ///
    /// # Errors
    /// When the device fails.
    fn copy_in(
        &self,
        slab: &mut Slab<Self>,
        values: &[u32],
        into: Indices,
    ) -> Result<(), BackendError>;

    /// Looks tokens up and normalises them.
    ///
    /// # Errors
    /// When the device fails.
    fn embed(&self, slab: &mut Slab<Self>, op: &Embed<'_, Self>) -> Result<(), BackendError>;

    /// A linear layer with bias and activation.
    ///
    /// # Errors
    /// When the device fails.
    fn linear(&self, slab: &mut Slab<Self>, op: &Linear<'_, Self>) -> Result<(), BackendError>;

    /// Self-attention within each sequence.
    ///
    /// # Errors
    /// When the device fails.
    fn attention(
        &self,
        slab: &mut Slab<Self>,
        op: &Attention<'_, Self>,
    ) -> Result<(), BackendError>;

    /// Residual sum and layer normalisation.
    ///
    /// # Errors
    /// When the device fails.
    fn add_norm(&self, slab: &mut Slab<Self>, op: &AddNorm<'_, Self>) -> Result<(), BackendError>;

    /// Token rows to sequence rows.
    ///
    /// # Errors
    /// When the device fails.
    fn pool(&self, slab: &mut Slab<Self>, op: &Pool) -> Result<(), BackendError>;

    /// A linear layer, residual sum and layer normalisation: one kernel where rows are short enough
    /// for it, otherwise the two operations.
    ///
    /// # Errors
    /// When the device fails.
    fn linear_add_norm(
        &self,
        slab: &mut Slab<Self>,
        op: &LinearAddNorm<'_, Self>,
    ) -> Result<(), BackendError> {
        op.in_two(self, slab)
    }

    /// Normalises what was deferred.
    ///
    /// # Errors
    /// When the device fails, or the backend defers nothing.
    fn normalize(
        &self,
        slab: &mut Slab<Self>,
        op: &Normalize<'_, Self>,
    ) -> Result<(), BackendError> {
        let _ = (slab, op);
        let reason = "no normalisation was deferred: please report this".into();
        Err(BackendError { operation: "normalise", reason })
    }

    /// A transformer's feed-forward block: one kernel where there is no memory for what is
    /// [between](FeedForward::between) its layers, otherwise two operations.
    ///
    /// # Errors
    /// When the device fails, or the backend needs memory that is not there.
    fn feed_forward(
        &self,
        slab: &mut Slab<Self>,
        op: &FeedForward<'_, Self>,
    ) -> Result<(), BackendError> {
        op.in_two(self, slab)
    }

    /// Starts copying activations to the host, behind everything before.
    ///
    /// # Errors
    /// When the device fails, or failed in an operation before.
    fn fetch(&self, slab: &mut Slab<Self>, from: Buffer) -> Result<Self::Fetched, BackendError>;

    /// Waits until activations have arrived, and writes them as `f32`. `into` has as many elements
    /// as were fetched. Any thread may wait.
    ///
    /// # Errors
    /// When the device failed in this or an operation before.
    fn collect(&self, fetched: Self::Fetched, into: &mut [f32]) -> Result<(), BackendError>;
}
