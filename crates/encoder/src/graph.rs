//! What a model computes: operations as data, without a device, a number format or a batch's size.
//!
//! - [`Graph`] is a list of [`Node`]s in the order of their running, over values and weights that
//!   are told by number; [`Op`] is what a node computes, one operation at a time.
//! - [`GraphBuilder`] makes one: the forward pass for a model, the conformance suite for a case.
//!
//! The choice behind it: nothing is fused here. Which operations are one kernel, and in which formats
//! what lies between them is kept, is for each kind of device to say
//! ([`Lower`](crate::Lower)), and data can be asked what a call can't: who reads this, what
//! comes next.

use vecmill_model::{
    Activation, Heads, Linear, Norm, Poolings, Rotary, SliceNorm, Weight, WeightShape, Window,
};

/// Names a value: a matrix that one operation computes and others read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(crate) usize);

/// Names a weight of the model, whichever graph reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub(crate) usize);

impl ValueId {
    /// Values of a graph are numbered from 0, in the order of their computation.
    pub fn index(self) -> usize {
        self.0
    }
}

impl WeightId {
    /// Weights are numbered from 0.
    pub fn index(self) -> usize {
        self.0
    }
}

/// What a matrix has rows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rows {
    /// One for each token.
    Tokens,
    /// One for each sequence.
    Sequences,
}

/// The sizes of a value that don't depend on the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueShape {
    /// What it has rows of.
    pub rows: Rows,
    /// Numbers in a row.
    pub columns: usize,
}

/// One operation. What it reads comes in the order that is said here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// `words[id] + positions[position] + types[type]` of each token of the batch, of those that there are.
    /// Reads no value.
    Embed {
        /// `[vocabulary, hidden]`
        words: WeightId,
        /// `[positions, hidden]`
        positions: Option<WeightId>,
        /// `[token types, hidden]`
        types: Option<WeightId>,
    },
    /// Layer normalisation (Ba et al., arXiv:1607.06450) of each row.
    Norm {
        /// `[columns]`
        gain: WeightId,
        /// `[columns]`
        bias: Option<WeightId>,
        /// Added to the variance.
        epsilon: f32,
    },
    /// The same of the first slices of each row, each by itself; what is behind them stays as it is.
    NormSlices {
        /// `[columns of all slices]`
        gain: WeightId,
        /// `[columns of all slices]`
        bias: Option<WeightId>,
        /// Added to the variance.
        epsilon: f32,
        /// Columns of a slice.
        width: usize,
    },
    /// The sum of two matrices: what was computed, and the residual.
    Add,
    /// `activation(input · weightᵀ + bias)`
    Linear {
        /// `[outputs, inputs]`
        weight: WeightId,
        /// `[outputs]`
        bias: Option<WeightId>,
        /// Applied to each element.
        activation: Activation,
    },
    /// `activation(g) · u` element by element, where `g` and `u` are the halves of
    /// `input · weightᵀ + bias`, the gate first.
    GatedLinear {
        /// `[2 · outputs, inputs]`
        weight: WeightId,
        /// `[2 · outputs]`
        bias: Option<WeightId>,
        /// Applied to each element of the gate.
        activation: Activation,
    },
    /// Turns queries and keys by their positions in their sequences, counted from 0. Reads queries, keys
    /// and values beside each other, heads within each.
    Rotate {
        /// How the input's columns are divided.
        heads: Heads,
        /// By which angles.
        rotary: Rotary,
    },
    /// Multi-head attention of every sequence with itself: `softmax(Q·Kᵀ / √size + bias) · V` for each
    /// head of queries, over the keys that it sees. Reads queries, keys and values beside each other,
    /// heads within each; head `h` of queries meets head `h · keys / queries` of keys.
    Attention {
        /// How the input's columns are divided.
        heads: Heads,
        /// Which keys a query sees.
        window: Window,
        /// Added to the scores by distance.
        bias: Option<AttentionBias>,
    },
    /// One row for each sequence out of one for each token; several poolings' beside each other. A
    /// [pick](Poolings::picks_a_row) is one of them.
    Pool(Poolings),
}

/// What is added to scores of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttentionBias {
    /// Learned, by buckets of distances.
    Buckets(RelativeBias),
    /// −[slope](crate::alibi_slope) · distance, to both sides.
    Alibi,
}

impl AttentionBias {
    /// Its buckets, where it has some.
    pub fn buckets(self) -> Option<RelativeBias> {
        match self {
            Self::Buckets(buckets) => Some(buckets),
            Self::Alibi => None,
        }
    }
}

/// Relative position biases: distances fall into logarithmic buckets (T5, arXiv:1910.10683, section
/// 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RelativeBias {
    /// `[buckets, heads]`
    pub table: WeightId,
    /// From this distance on, all are in one bucket.
    pub reach: usize,
}

impl Op {
    /// Whether it reads what is known of the batch: ids and positions, or where sequences start.
    pub fn reads_batch(&self) -> bool {
        match self {
            Self::Embed { .. } | Self::Rotate { .. } | Self::Attention { .. } | Self::Pool(_) => {
                true
            }
            Self::NormSlices { .. } => false,
            Self::Norm { .. } | Self::Add | Self::Linear { .. } | Self::GatedLinear { .. } => false,
        }
    }

    /// The weight that stands for all that the operation reads of weights, where it reads any:
    /// operations with the same one have all the same.
    pub fn weight(&self) -> Option<WeightId> {
        match *self {
            Self::Embed { words, .. } => Some(words),
            Self::Norm { gain, .. } | Self::NormSlices { gain, .. } => Some(gain),
            Self::Linear { weight, .. } | Self::GatedLinear { weight, .. } => Some(weight),
            Self::Attention { bias, .. } => Some(bias?.buckets()?.table),
            Self::Add | Self::Rotate { .. } | Self::Pool(_) => None,
        }
    }
}

/// An operation at its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// The values that it reads.
    pub inputs: Vec<ValueId>,
    /// The value that it computes.
    pub output: ValueId,
    /// The model's layer that it belongs to, counted from 0.
    pub layer: Option<usize>,
}

/// Operations in the order of their running.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    nodes: Vec<Node>,
    values: Vec<ValueShape>,
    /// How often each value is read.
    reads: Vec<usize>,
    weights: Vec<WeightShape>,
    outputs: Vec<ValueId>,
    layers: usize,
}

impl Graph {
    /// All operations. Whatever one reads, one before it has computed.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// How many values there are: their numbers count from 0.
    pub fn values(&self) -> usize {
        self.values.len()
    }

    /// A value's sizes.
    pub fn value(&self, value: ValueId) -> ValueShape {
        self.values[value.0]
    }

    /// How many weights there are: their numbers count from 0.
    pub fn weights(&self) -> usize {
        self.weights.len()
    }

    /// A weight's sizes.
    pub fn weight(&self, weight: WeightId) -> WeightShape {
        self.weights[weight.0]
    }

    /// Whether it has more than one type of tokens.
    pub fn reads_types(&self) -> bool {
        let several = |node: &Node| match node.op {
            Op::Embed { types: Some(types), .. } => self.weight(types).rows > 1,
            _ => false,
        };
        self.nodes.iter().any(several)
    }

    /// What is wanted: these values are brought to the host.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// How many layers the model has.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// The operation that computes `value`.
    pub fn producer(&self, value: ValueId) -> &Node {
        &self.nodes[value.0] // each computes one
    }

    /// The operations that read `value`, in order.
    pub fn readers(&self, value: ValueId) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |node| node.inputs.contains(&value))
    }

    /// Whether nothing but one operation reads `value`, once, so that a kernel that computes both need
    /// not keep it.
    pub fn is_read_once(&self, value: ValueId) -> bool {
        self.reads[value.0] == 1 && !self.outputs.contains(&value)
    }

    /// The nodes that read weights which no node before them reads: what each of them reads is loaded
    /// as one.
    pub fn loads(&self) -> impl Iterator<Item = (WeightId, &Node)> {
        let mut seen = vec![false; self.weights.len()];
        self.nodes.iter().filter_map(move |node| {
            let weight = node.op.weight()?;
            (!std::mem::replace(&mut seen[weight.0], true)).then_some((weight, node))
        })
    }

    /// Whether a node's precision counts more than its speed: nothing averages errors of the last
    /// layer and of what is behind it, and all layers pass on those of the first two. `docs/kernels.md`
    /// has the figures, for all-MiniLM-L6-v2 cosines of at least 0.993 instead of 0.975.
    pub fn is_delicate(&self, node: &Node) -> bool {
        let at_an_end = |layer| layer < (self.layers / 3).min(2) || layer + 1 == self.layers;
        node.layer.is_none_or(at_an_end)
    }
}

/// Makes a [`Graph`] and collects the weights that it names.
#[derive(Debug)]
pub struct GraphBuilder {
    graph: Graph,
    weights: Vec<Weight>,
    layer: Option<usize>,
}

impl GraphBuilder {
    /// Of a model of so many layers.
    pub fn new(layers: usize) -> Self {
        let graph = Graph {
            nodes: Vec::new(),
            values: Vec::new(),
            reads: Vec::new(),
            weights: Vec::new(),
            outputs: Vec::new(),
            layers,
        };
        Self { graph, weights: Vec::new(), layer: None }
    }

    /// What comes from now on belongs to this layer.
    pub fn layer(&mut self, layer: Option<usize>) {
        self.layer = layer;
    }

    /// A weight's number. Each call makes a new one.
    pub fn weight(&mut self, weight: &Weight) -> WeightId {
        self.graph.weights.push(weight.shape());
        self.weights.push(weight.clone());
        WeightId(self.weights.len() - 1)
    }

    /// [`Op::Embed`].
    pub fn embed(
        &mut self,
        words: &Weight,
        positions: Option<&Weight>,
        types: Option<&Weight>,
    ) -> ValueId {
        let columns = words.shape().columns;
        let words = self.weight(words);
        let positions = positions.map(|positions| self.weight(positions));
        let types = types.map(|types| self.weight(types));
        let shape = ValueShape { rows: Rows::Tokens, columns };
        self.node(Op::Embed { words, positions, types }, vec![], shape)
    }

    /// [`Op::Norm`].
    pub fn norm(&mut self, input: ValueId, norm: &Norm) -> ValueId {
        let gain = self.weight(&norm.gain);
        let bias = norm.bias.as_ref().map(|bias| self.weight(bias));
        let op = Op::Norm { gain, bias, epsilon: norm.epsilon };
        self.node(op, vec![input], self.graph.value(input))
    }

    /// [`Op::NormSlices`].
    pub fn norm_slices(
        &mut self,
        input: ValueId,
        SliceNorm { norm, width }: &SliceNorm,
    ) -> ValueId {
        let gain = self.weight(&norm.gain);
        let bias = norm.bias.as_ref().map(|bias| self.weight(bias));
        let op = Op::NormSlices { gain, bias, epsilon: norm.epsilon, width: *width };
        self.node(op, vec![input], self.graph.value(input))
    }

    /// [`Op::Add`].
    pub fn add(&mut self, computed: ValueId, residual: ValueId) -> ValueId {
        self.node(Op::Add, vec![computed, residual], self.graph.value(computed))
    }

    /// [`Op::Linear`].
    pub fn linear(&mut self, input: ValueId, layer: &Linear, activation: Activation) -> ValueId {
        let (weight, bias, columns) = self.layer_weights(layer);
        let shape = ValueShape { columns, ..self.graph.value(input) };
        self.node(Op::Linear { weight, bias, activation }, vec![input], shape)
    }

    /// [`Op::GatedLinear`].
    pub fn gated_linear(
        &mut self,
        input: ValueId,
        gate_up: &Linear,
        activation: Activation,
    ) -> ValueId {
        let (weight, bias, columns) = self.layer_weights(gate_up);
        let shape = ValueShape { columns: columns / 2, ..self.graph.value(input) };
        self.node(Op::GatedLinear { weight, bias, activation }, vec![input], shape)
    }

    fn layer_weights(&mut self, layer: &Linear) -> (WeightId, Option<WeightId>, usize) {
        let weight = self.weight(&layer.weight);
        let bias = layer.bias.as_ref().map(|bias| self.weight(bias));
        (weight, bias, layer.weight.shape().rows)
    }

    /// [`Op::Rotate`].
    pub fn rotate(&mut self, qkv: ValueId, heads: Heads, rotary: Rotary) -> ValueId {
        self.node(Op::Rotate { heads, rotary }, vec![qkv], self.graph.value(qkv))
    }

    /// [`Op::Attention`].
    pub fn attention(
        &mut self,
        qkv: ValueId,
        heads: Heads,
        window: Window,
        bias: Option<AttentionBias>,
    ) -> ValueId {
        let shape = ValueShape { columns: heads.outputs(), ..self.graph.value(qkv) };
        self.node(Op::Attention { heads, window, bias }, vec![qkv], shape)
    }

    /// [`Op::Pool`].
    pub fn pool(&mut self, input: ValueId, poolings: Poolings) -> ValueId {
        let columns = poolings.count() * self.graph.value(input).columns;
        let shape = ValueShape { rows: Rows::Sequences, columns };
        self.node(Op::Pool(poolings), vec![input], shape)
    }

    /// The graph that computes `outputs`, and its weights, by their numbers.
    pub fn finish(mut self, outputs: Vec<ValueId>) -> (Graph, Vec<Weight>) {
        self.graph.outputs = outputs;
        (self.graph, self.weights)
    }

    fn node(&mut self, op: Op, inputs: Vec<ValueId>, shape: ValueShape) -> ValueId {
        self.graph.values.push(shape);
        self.graph.reads.push(0);
        inputs.iter().for_each(|input| self.graph.reads[input.0] += 1);
        let output = ValueId(self.graph.values.len() - 1);
        self.graph.nodes.push(Node { op, inputs, output, layer: self.layer });
        output
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_at_both_ends_are_delicate_and_most_are_not_in_deep_models() {
        let delicate = |layers| {
            let (graph, _) = GraphBuilder::new(layers).finish(vec![]);
            let node = |layer| Node { op: Op::Add, inputs: vec![], output: ValueId(0), layer };
            assert!(graph.is_delicate(&node(None)));
            let layers = (0..layers).filter(|&layer| graph.is_delicate(&node(Some(layer))));
            layers.collect::<Vec<_>>()
        };
        assert_eq!(delicate(24), [0, 1, 23]);
        assert_eq!(delicate(6), [0, 1, 5]);
        assert_eq!((delicate(3), delicate(2), delicate(1)), (vec![0, 2], vec![1], vec![0]));
    }
}
