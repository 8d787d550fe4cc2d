//! How a kind of device computes, as far as that follows from facts about it alone.
//!
//! - [`Lower`] names every size and every choice that memory depends on, once: what runs on the
//!   device, what is planned on paper and what is loaded all ask it.
//! - [`Weight`] is what is asked about where weights are stored, [`LinearShape`] what a linear
//!   layer's choices go by.
//!
//! The choice behind it: nothing here needs the device, so that what fits it is known before
//! anything is read, by the very code that serves.

use std::fmt::Debug;

use super::operations::{
    Buffer, Copies, EmbeddingTensors, LinearTensors, NormTensors, StackTensors,
};
use super::weights::WeightPlan;
use vecmill_model::{TensorView, e4m3};

/// The sizes of a linear layer, of one or of several that are stacked as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearShape {
    /// Columns of the input.
    pub inputs: usize,
    /// Columns of the output.
    pub outputs: usize,
    /// Whether it is never narrow: see [`StackTensors::wide`].
    pub wide: bool,
}

/// Something that is loaded. What it is stored as depends on names, shapes and formats of its
/// tensors, never on their numbers.
#[derive(Debug, Clone, Copy)]
pub enum Weight<'a> {
    /// As [`Backend::load_linear`](super::Backend::load_linear) takes it.
    Linear(StackTensors<'a>),
    /// As [`Backend::load_norm`](super::Backend::load_norm) takes it.
    Norm(&'a NormTensors),
    /// As [`Backend::load_embeddings`](super::Backend::load_embeddings) takes it.
    Embeddings(&'a EmbeddingTensors),
    /// As [`Backend::load_relative_bias`](super::Backend::load_relative_bias) takes it.
    RelativeBias {
        /// `[buckets, heads]`
        table: &'a TensorView,
        /// From this distance on, all are in one bucket.
        max_distance: usize,
    },
}

/// How one kind of device computes. Pure: two that are equal say the same of all sizes.
pub trait Lower: Debug + Clone + Send + Sync + 'static {
    /// Plans where `weight` is stored: every form in which it is loaded, in the order in which it
    /// is written.
    fn store(&self, weight: Weight<'_>, plan: &mut WeightPlan);

    /// Bytes of one element of a [`Buffer`]'s wide copy.
    fn element_bytes(&self) -> usize;

    /// Bytes of one element of its narrow copy, where there are such.
    fn narrow_bytes(&self) -> usize {
        self.element_bytes()
    }

    /// Whether a linear layer reads its input's narrow copy.
    fn is_narrow(&self, layer: LinearShape) -> bool {
        let _ = layer;
        false
    }

    /// Scratch bytes for a [`Linear`](super::Linear) of `rows` × `inputs` → `rows` × `outputs`.
    /// More rows need no less: a plan holds for all smaller batches of its bucket.
    fn linear_workspace(&self, rows: usize, inputs: usize, outputs: usize) -> usize {
        let _ = (rows, inputs, outputs);
        0
    }

    /// Scratch bytes for an [`Attention`](super::Attention) over `tokens` in sequences of at most
    /// `longest`; no less for more of either.
    fn attention_workspace(&self, tokens: usize, longest: usize, head_size: usize) -> usize {
        let _ = (tokens, longest, head_size);
        0
    }

    /// Whether a [`FeedForward`](super::FeedForward) of `rows`, or a few less, is one kernel that
    /// keeps what is between the layers out of memory.
    fn fuses_feed_forward(&self, rows: usize, up: LinearShape, down: LinearShape) -> bool {
        let _ = (rows, up, down);
        false
    }

    /// Whether [`LinearAddNorm`](super::LinearAddNorm) and [`FeedForward`](super::FeedForward) of
    /// `rows`, or a few less, leave their output of `columns` [deferred](Copies::Deferred): so it is
    /// written and read once less. If it may be with some number of rows, it is with [`usize::MAX`].
    fn defers_norm(&self, rows: usize, columns: usize) -> bool {
        let _ = (rows, columns);
        false
    }

    /// Bytes for each row of a deferred matrix, beside the row.
    fn deferred_bytes(&self) -> usize {
        0
    }

    /// The same for any two counts of rows whose operations, if all else is the same, take the same
    /// ways: kernels, algorithms. `rows` are a batch's, `planned` those of the bucket that its plan is
    /// for. Practice takes each way once, so that no request has to wait for one to be made ready.
    fn way(&self, rows: usize, planned: usize) -> u64 {
        let _ = (rows, planned);
        0
    }

    /// Batches of which attention takes ways that depend on more than one length: the longest
    /// sequence's tokens, and those of all others.
    fn attention_mixes(&self) -> &'static [(usize, usize)] {
        &[]
    }

    /// The byte behind all copies of a matrix.
    fn end_of(&self, buffer: Buffer) -> usize {
        match buffer.copies {
            Copies::Wide => buffer.offset + buffer.elements() * self.element_bytes(),
            Copies::Narrow | Copies::Both => {
                let narrow = buffer.narrow_offset(self.element_bytes());
                narrow + buffer.elements() * self.narrow_bytes()
            }
            Copies::Deferred => {
                let beside = buffer.narrow_offset(self.element_bytes());
                beside + buffer.rows * self.deferred_bytes()
            }
        }
    }
}

impl LinearShape {
    /// Whether it [suits](e4m3::suits) FP8.
    pub fn suits_e4m3(self) -> bool {
        e4m3::suits(self.inputs, self.outputs)
    }
}

impl StackTensors<'_> {
    /// The layers' sizes, as one.
    pub fn shape(&self) -> LinearShape {
        let outputs = |part: &LinearTensors| part.weight.shape().first().copied().unwrap_or(0);
        let inputs = self.parts.first().and_then(|part| part.weight.shape().last());
        LinearShape {
            inputs: inputs.copied().unwrap_or(0),
            outputs: self.parts.iter().map(outputs).sum(),
            wide: self.wide,
        }
    }
}
