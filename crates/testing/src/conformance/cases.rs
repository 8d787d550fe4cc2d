//! Small graphs with random weights, and the batches that they are run with.

use vecmill_encoder::{AttentionBias, Graph, GraphBuilder, RelativeBias, ValueId};
use vecmill_encoder::{Batch, Shape};
use vecmill_model::{Activation, Heads, Linear, Norm, Poolings, Rotary};
use vecmill_model::{TensorView, Weight, Window, e4m3};

use super::Failure;

const EPSILON: f32 = 1e-5;

/// Layers of the model that a case's operations are of, and the one they belong to: in the middle, where
/// precision does not count more than speed.
const LAYERS: usize = 12;
const LAYER: usize = 6;

/// Rows behind the last sequence, all NaN.
const STRAY_ROWS: usize = 9;

/// A graph with what it is run with.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) graph: Graph,
    pub(super) weights: Vec<Weight>,
    pub(super) batch: Batch,
    /// The batch's, with stray rows.
    pub(super) shape: Shape,
}

/// Numbers that every number format in use holds exactly: FP8's from -2 to 2.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn step(&mut self) -> u64 {
        // A linear congruential generator with Knuth's constants.
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 57
    }

    fn number(&mut self) -> f32 {
        let step = i16::try_from(self.step()).unwrap_or(0) - 64;
        e4m3::to_f32(e4m3::from_f32(f32::from(step) / 32.0))
    }

    /// One of some things.
    pub(super) fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.step()).unwrap_or(0) % of.len()]
    }

    fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }

    fn weight(&mut self, shape: &[usize]) -> Result<Weight, Failure> {
        tensor(shape, self.numbers(shape.iter().product())).map(Weight::Tensor)
    }

    /// Of numbers that FP8 holds exactly as well.
    fn small_weight(&mut self, shape: &[usize]) -> Result<Weight, Failure> {
        let numbers = self.numbers(shape.iter().product()).into_iter().map(|x| x * SMALL);
        tensor(shape, numbers.collect()).map(Weight::Tensor)
    }
}

/// Makes weights small enough for products of what they lead to.
const SMALL: f32 = 1.0 / 32.0;

fn tensor(shape: &[usize], values: Vec<f32>) -> Result<TensorView, Failure> {
    TensorView::from_f32("random", shape, values)
        .map_err(|error| Failure::Fixture(error.to_string()))
}

/// Where the second text of a case's sequence begins.
pub(super) fn second_text(length: usize) -> usize {
    length - length / 3
}

/// A graph that is being made.
pub(super) struct Maker {
    random: Random,
    graph: GraphBuilder,
    lengths: Vec<usize>,
    stray: usize,
    columns: Vec<usize>,
    outputs: Vec<ValueId>,
}

impl Maker {
    /// Of a batch of sequences of these lengths.
    pub(super) fn new(lengths: &[usize], random: Random) -> Self {
        let mut graph = GraphBuilder::new(LAYERS);
        graph.layer(Some(LAYER));
        let (columns, outputs) = (Vec::new(), Vec::new());
        Self { random, graph, lengths: lengths.to_vec(), stray: 0, columns, outputs }
    }

    /// Of so many tokens, in short sequences.
    pub(super) fn rows(count: usize) -> Self {
        let mut lengths = vec![9; count / 9];
        lengths.extend((!count.is_multiple_of(9)).then_some(count % 9));
        Self::new(&lengths, Random::new(7))
    }

    /// With rows behind the last sequence.
    pub(super) fn with_stray(self) -> Self {
        Self { stray: STRAY_ROWS, ..self }
    }

    /// From now on operations belong to no layer.
    pub(super) fn behind_all_layers(&mut self) {
        self.graph.layer(None);
    }

    pub(super) fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    fn value(&mut self, value: ValueId, columns: usize) -> ValueId {
        self.columns.resize(value.index() + 1, 0);
        self.columns[value.index()] = columns;
        value
    }

    pub(super) fn columns(&self, value: ValueId) -> usize {
        self.columns[value.index()]
    }

    /// Has what a value is compared.
    pub(super) fn output(&mut self, value: ValueId) -> ValueId {
        if !self.outputs.contains(&value) {
            self.outputs.push(value);
        }
        value
    }

    /// Random rows, which are normalised: an operand.
    pub(super) fn operand(&mut self, columns: usize) -> Result<ValueId, Failure> {
        let value = self.embed(columns, true)?;
        Ok(self.output(value))
    }

    /// Embeds a token for each row, with or without types.
    pub(super) fn embed(&mut self, columns: usize, types: bool) -> Result<ValueId, Failure> {
        self.embed_with(columns, true, types)
    }

    /// The same, with or without positions as well.
    pub(super) fn embed_with(
        &mut self,
        columns: usize,
        positions: bool,
        types: bool,
    ) -> Result<ValueId, Failure> {
        let count = self.tokens() + 1;
        let mut words = self.random.numbers(count * columns);
        if self.stray > 0 {
            words[..columns].fill(f32::NAN); // padding's id is 0, which no sequence has
        }
        let longest = self.lengths.iter().copied().max().unwrap_or(0).max(1);
        let positions = positions.then(|| self.random.weight(&[longest, columns])).transpose()?;
        let types = types.then(|| self.random.weight(&[2, columns])).transpose()?;
        let words = Weight::Tensor(tensor(&[count, columns], words)?);
        let sum = self.graph.embed(&words, positions.as_ref(), types.as_ref());
        self.value(sum, columns);
        self.norm(sum)
    }

    pub(super) fn norm(&mut self, input: ValueId) -> Result<ValueId, Failure> {
        self.norm_with(input, true)
    }

    /// With or without a bias.
    pub(super) fn norm_with(&mut self, input: ValueId, bias: bool) -> Result<ValueId, Failure> {
        let columns = self.columns(input);
        let gain = self.random.weight(&[columns])?;
        let bias = bias.then(|| self.random.weight(&[columns])).transpose()?;
        let norm = Norm { gain, bias, epsilon: EPSILON };
        let value = self.graph.norm(input, &norm);
        Ok(self.value(value, columns))
    }

    pub(super) fn add(&mut self, computed: ValueId, residual: ValueId) -> ValueId {
        let value = self.graph.add(computed, residual);
        self.value(value, self.columns(computed))
    }

    /// A layer of two parts, as when queries and keys are stacked, if the outputs can be halved.
    pub(super) fn linear(
        &mut self,
        input: ValueId,
        outputs: usize,
        activation: Activation,
    ) -> Result<ValueId, Failure> {
        let inputs = self.columns(input);
        let parts = if outputs.is_multiple_of(2) { vec![outputs / 2; 2] } else { vec![outputs] };
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for part in parts {
            weights.push(tensor(&[part, inputs], self.random.numbers(part * inputs))?);
            biases.push(tensor(&[part], self.random.numbers(part))?);
        }
        let bias = Some(Weight::Stack(biases));
        Ok(self.layer(input, &Linear { weight: Weight::Stack(weights), bias }, activation))
    }

    pub(super) fn linear_without_bias(
        &mut self,
        input: ValueId,
        outputs: usize,
    ) -> Result<ValueId, Failure> {
        let weight = self.random.weight(&[outputs, self.columns(input)])?;
        Ok(self.layer(input, &Linear { weight, bias: None }, Activation::Identity))
    }

    /// With small weights: FP8 holds what they make of wide rows.
    pub(super) fn small_linear(
        &mut self,
        input: ValueId,
        outputs: usize,
    ) -> Result<ValueId, Failure> {
        let weight = self.random.small_weight(&[outputs, self.columns(input)])?;
        Ok(self.layer(input, &Linear { weight, bias: None }, Activation::Identity))
    }

    fn layer(&mut self, input: ValueId, layer: &Linear, activation: Activation) -> ValueId {
        let value = self.graph.linear(input, layer, activation);
        self.value(value, layer.weight.shape().rows)
    }

    /// A projection with its residual, normalised.
    pub(super) fn linear_add_norm(
        &mut self,
        input: ValueId,
        residual: ValueId,
    ) -> Result<ValueId, Failure> {
        let projected = self.linear(input, self.columns(residual), Activation::Identity)?;
        let sum = self.add(projected, residual);
        self.norm(sum)
    }

    /// A feed-forward block.
    pub(super) fn feed_forward(
        &mut self,
        input: ValueId,
        intermediate: usize,
        activation: Activation,
    ) -> Result<ValueId, Failure> {
        let between = self.linear(input, intermediate, activation)?;
        self.linear_add_norm(between, input)
    }

    /// A layer whose outputs are gated, with or without a bias.
    pub(super) fn gated_linear(
        &mut self,
        input: ValueId,
        outputs: usize,
        activation: Activation,
        biased: bool,
    ) -> Result<ValueId, Failure> {
        let weight = self.random.small_weight(&[2 * outputs, self.columns(input)])?;
        let bias = biased.then(|| self.random.small_weight(&[2 * outputs])).transpose()?;
        let value = self.graph.gated_linear(input, &Linear { weight, bias }, activation);
        Ok(self.value(value, outputs))
    }

    /// Turns queries and keys of so many heads.
    pub(super) fn rotate(&mut self, qkv: ValueId, heads: usize, rotary: Rotary) -> ValueId {
        let heads = Heads::new(heads, self.columns(qkv) / 3 / heads);
        let value = self.graph.rotate(qkv, heads, rotary);
        self.value(value, self.columns(qkv))
    }

    /// Learned biases by distance, for so many heads.
    pub(super) fn buckets(&mut self, heads: usize) -> Result<AttentionBias, Failure> {
        const BUCKETS: usize = 32;
        const REACH: usize = 128;
        let table = self.random.weight(&[BUCKETS, heads])?;
        let table = self.graph.weight(&table);
        Ok(AttentionBias::Buckets(RelativeBias { table, reach: REACH }))
    }

    pub(super) fn attention(
        &mut self,
        qkv: ValueId,
        heads: usize,
        window: Window,
        bias: Option<AttentionBias>,
    ) -> ValueId {
        let heads = Heads::new(heads, self.columns(qkv) / 3 / heads);
        let value = self.graph.attention(qkv, heads, window, bias);
        self.value(value, heads.outputs())
    }

    pub(super) fn pool(&mut self, input: ValueId, poolings: Poolings) -> ValueId {
        let value = self.graph.pool(input, poolings);
        self.value(value, poolings.count() * self.columns(input))
    }

    /// The case, whose tokens run backwards.
    pub(super) fn case(self, name: impl Into<String>) -> Case {
        let mut ids = (1..=u32::try_from(self.tokens()).unwrap_or(u32::MAX)).rev();
        let mut batch = Batch::new();
        for &length in &self.lengths {
            let ids: Vec<u32> = ids.by_ref().take(length).collect();
            batch.push_pair(&ids, second_text(length));
        }
        let exact = batch.shape();
        let shape = Shape { tokens: exact.tokens + self.stray, ..exact };
        let (graph, weights) = self.graph.finish(self.outputs);
        Case { name: name.into(), graph, weights, batch, shape }
    }
}
