//! The operations, one struct each with its operands, and the tensors that they are loaded from.
//!
//! Offsets come from a plan, so buffers that are alive together never overlap.

use vecmill_memory::ALIGNMENT;

use super::{Backend, BackendError, Slab};
use vecmill_model::{Activation, Poolings, TensorView};

/// A row-major matrix of activations in the slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Distance in bytes from the start of the slab, a multiple of 64.
    pub offset: usize,
    /// Rows, for example one per token.
    pub rows: usize,
    /// Elements per row.
    pub columns: usize,
    /// What is kept of it.
    pub copies: Copies,
}

impl Buffer {
    /// Rows times columns.
    pub fn elements(self) -> usize {
        self.rows * self.columns
    }

    /// Where the narrow copy begins: behind the wide one, if there are both. Of deferred rows, where
    /// begins what is beside them.
    pub fn narrow_offset(self, element_bytes: usize) -> usize {
        match self.copies {
            Copies::Both | Copies::Deferred => {
                self.offset + (self.elements() * element_bytes).next_multiple_of(ALIGNMENT)
            }
            Copies::Wide | Copies::Narrow => self.offset,
        }
    }
}

/// The formats in which a matrix is kept, by who reads it: as "wide" activations, and as "narrow"
/// operands of linear layers that [compute with those](super::Lower::is_narrow). What each operation
/// writes is said at its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    /// In the backend's activation format.
    Wide,
    /// In the format of narrow operands.
    Narrow,
    /// In both: the wide copy first.
    Both,
    /// As rows that are yet to be normalised, by each reader as it reads them, and beside them what
    /// the backend wants to know of them for it. Only where the backend
    /// [defers](super::Lower::defers_norm) the normalisation.
    Deferred,
}

impl Copies {
    /// What suits the readers of both. Deferred rows are kept as such alone.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Deferred, _) | (_, Self::Deferred) => Self::Deferred,
            _ if self == other => self,
            _ => Self::Both,
        }
    }
}

/// A list of 32-bit indices in the slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Indices {
    /// Distance in bytes from the start of the slab, a multiple of 64.
    pub offset: usize,
    /// How many indices.
    pub length: usize,
}

/// Scratch memory of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workspace {
    /// Distance in bytes from the start of the slab, a multiple of 64.
    pub offset: usize,
    /// Its size, as [`Lower::linear_workspace`](super::Lower::linear_workspace) or
    /// [`Lower::attention_workspace`](super::Lower::attention_workspace) asked.
    pub bytes: usize,
}

/// The sequences of a packed batch, as a device needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequences {
    /// One index per sequence and one more: sequence `i` is rows `starts[i]..starts[i + 1]`.
    pub starts: Indices,
    /// The length of the longest sequence.
    pub longest: usize,
}

/// The embedding tables of a model, before they are loaded.
#[derive(Debug, Clone)]
pub struct EmbeddingTensors {
    /// `[vocabulary, hidden]`
    pub words: TensorView,
    /// `[positions, hidden]`
    pub positions: TensorView,
    /// `[token types, hidden]`; row 0 is added to every token. Some architectures have none.
    pub types: Option<TensorView>,
    /// Normalises the sum.
    pub norm: NormTensors,
}

/// The parameters of a layer normalisation, before they are loaded.
#[derive(Debug, Clone)]
pub struct NormTensors {
    /// `[hidden]`
    pub gain: TensorView,
    /// `[hidden]`
    pub bias: TensorView,
    /// Added to the variance.
    pub epsilon: f32,
}

/// A linear layer's parameters, before they are loaded.
#[derive(Debug, Clone)]
pub struct LinearTensors {
    /// `[outputs, inputs]`
    pub weight: TensorView,
    /// `[outputs]`
    pub bias: Option<TensorView>,
}

/// Linear layers that share their input, stacked as one: outputs beside each other. Before they are
/// loaded.
#[derive(Debug, Clone, Copy)]
pub struct StackTensors<'a> {
    /// The layers.
    pub parts: &'a [LinearTensors],
    /// Whether they are never narrow, because their precision counts more than their speed.
    pub wide: bool,
    /// What normalises their input, if that may be [deferred](Copies::Deferred).
    pub input_norm: Option<&'a NormTensors>,
}

impl<'a> StackTensors<'a> {
    /// Layers of which nothing else is known.
    pub fn new(parts: &'a [LinearTensors]) -> Self {
        Self { parts, wide: false, input_norm: None }
    }
}

/// `output = norm(words[ids] + positions[positions] + types[0])`
#[derive(Debug)]
pub struct Embed<'a, B: Backend> {
    /// Token ids, all below the vocabulary's size.
    pub ids: Indices,
    /// Position ids, all below the number of positions.
    pub positions: Indices,
    /// The tables.
    pub tables: &'a B::Embeddings,
    /// `[tokens, hidden]`; wide or both.
    pub output: Buffer,
}

/// `output = activation(input · weightᵀ + bias)`
#[derive(Debug)]
pub struct Linear<'a, B: Backend> {
    /// `[rows, inputs]`; deferred only if the layer was loaded with what
    /// [normalises](StackTensors::input_norm) it.
    pub input: Buffer,
    /// Weight and bias.
    pub weights: &'a B::Linear,
    /// Applied to each element.
    pub activation: Activation,
    /// `[rows, outputs]`; wide, or narrow if the layer is.
    pub output: Buffer,
    /// As [`Lower::linear_workspace`](super::Lower::linear_workspace) asked.
    pub workspace: Workspace,
}

/// Multi-head attention of every sequence with itself:
/// `output = softmax(Q·Kᵀ / √head_size + bias) · V` for each head.
#[derive(Debug)]
pub struct Attention<'a, B: Backend> {
    /// `[tokens, 3 · hidden]`: queries, keys and values beside each other, heads within each.
    pub qkv: Buffer,
    /// Which rows belong together.
    pub sequences: Sequences,
    /// Heads; `hidden` divides by it.
    pub heads: usize,
    /// Added to the scores by distance.
    pub bias: Option<&'a B::RelativeBias>,
    /// `[tokens, hidden]`; wide or narrow.
    pub output: Buffer,
    /// As [`Lower::attention_workspace`](super::Lower::attention_workspace) asked.
    pub workspace: Workspace,
}

/// `output = norm(input + residual)`
#[derive(Debug)]
pub struct AddNorm<'a, B: Backend> {
    /// `[tokens, hidden]`
    pub input: Buffer,
    /// `[tokens, hidden]`
    pub residual: Buffer,
    /// Gain, bias and epsilon.
    pub norm: &'a B::Norm,
    /// `[tokens, hidden]`; wide or both. Its wide copy may be `input` itself.
    pub output: Buffer,
}

/// `output = norm(input · weightᵀ + bias + residual)`
#[derive(Debug)]
pub struct LinearAddNorm<'a, B: Backend> {
    /// `[rows, inputs]`
    pub input: Buffer,
    /// Weight and bias.
    pub weights: &'a B::Linear,
    /// `[rows, hidden]`
    pub residual: Buffer,
    /// What normalises the residual, if that is deferred; the output then is, too.
    pub residual_norm: Option<&'a B::Norm>,
    /// Gain, bias and epsilon.
    pub norm: &'a B::Norm,
    /// `[rows, hidden]`, apart from all others, wide, both or deferred; a backend that does not fuse
    /// projects into it.
    pub output: Buffer,
    /// As [`Lower::linear_workspace`](super::Lower::linear_workspace) asked.
    pub workspace: Workspace,
}

impl<B: Backend> LinearAddNorm<'_, B> {
    /// Runs it as two operations, where nothing is deferred.
    ///
    /// # Errors
    /// When one of them fails.
    pub fn in_two(&self, backend: &B, slab: &mut Slab<B>) -> Result<(), BackendError> {
        let &Self { input, weights, residual, norm, output, workspace, .. } = self;
        let (activation, sum) = (Activation::Identity, Buffer { copies: Copies::Wide, ..output });
        backend.linear(slab, &Linear { input, weights, activation, output: sum, workspace })?;
        backend.add_norm(slab, &AddNorm { input: sum, residual, norm, output })
    }
}

/// `output = norm(down(activation(up(input))) + input)`, where layers are linear.
#[derive(Debug)]
pub struct FeedForward<'a, B: Backend> {
    /// `[rows, hidden]`
    pub input: Buffer,
    /// What normalises the input, if that is deferred; the output then is, too.
    pub input_norm: Option<&'a B::Norm>,
    /// Weight and bias of the first layer.
    pub up: &'a B::Linear,
    /// Applied to each element of what is between the layers.
    pub activation: Activation,
    /// Weight and bias of the second layer.
    pub down: &'a B::Linear,
    /// Gain, bias and epsilon.
    pub norm: &'a B::Norm,
    /// `[rows, hidden]`, apart from all others, wide or both; deferred, if there is memory for what is
    /// between the layers.
    pub output: Buffer,
    /// Memory for what is between the layers, if the backend does not
    /// [fuse](super::Lower::fuses_feed_forward) them.
    pub between: Option<Between>,
}

impl<B: Backend> FeedForward<'_, B> {
    /// Runs it as two operations.
    ///
    /// # Errors
    /// When one of them fails, or there is no memory for what is between them.
    pub fn in_two(&self, backend: &B, slab: &mut Slab<B>) -> Result<(), BackendError> {
        let &Self { input, input_norm, up, activation, down, norm, output, between } = self;
        let Some(Between { matrix, workspace }) = between else {
            let reason = "it got no memory for what is between its layers: please report this";
            return Err(BackendError { operation: "feed forward", reason: reason.into() });
        };
        let first = Linear { input, weights: up, activation, output: matrix, workspace };
        backend.linear(slab, &first)?;
        let second = LinearAddNorm {
            input: matrix,
            weights: down,
            residual: input,
            residual_norm: input_norm,
            norm,
            output,
            workspace,
        };
        backend.linear_add_norm(slab, &second)
    }
}

/// Memory of a [`FeedForward`] in two operations.
#[derive(Debug, Clone, Copy)]
pub struct Between {
    /// `[rows, intermediate]`; wide, or narrow if the second layer is.
    pub matrix: Buffer,
    /// As [`Lower::linear_workspace`](super::Lower::linear_workspace) asked for either layer.
    pub workspace: Workspace,
}

/// `output = norm(input)`, where that was deferred.
#[derive(Debug)]
pub struct Normalize<'a, B: Backend> {
    /// `[rows, hidden]`, deferred.
    pub input: Buffer,
    /// Gain, bias and epsilon.
    pub norm: &'a B::Norm,
    /// `[rows, hidden]`, elsewhere; wide.
    pub output: Buffer,
}

/// One row per sequence out of one row per token.
#[derive(Debug, Clone, Copy)]
pub struct Pool {
    /// `[tokens, hidden]`
    pub input: Buffer,
    /// Which rows belong together.
    pub sequences: Sequences,
    /// How they become one.
    pub pooling: Poolings,
    /// `[sequences, poolings · hidden]`, the results of several beside each other; wide.
    pub output: Buffer,
}
