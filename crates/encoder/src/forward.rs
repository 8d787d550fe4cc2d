//! The forward pass of a post-norm transformer encoder, written once for every architecture.
//!
//! BERT, RoBERTa, XLM-RoBERTa, DistilBERT and MPNet differ in the names of their tensors, in where
//! positions start and in whether attention has a relative bias: all of that is data, an
//! [`Architecture`]. What remains is this.

use std::slice;

use vecmill_memory::LeaseError;

use crate::BackendError;
use crate::backend::{
    Backend, EmbeddingTensors, LinearTensors, NormTensors, RegionWriter, Slab, StackTensors,
};
use crate::batch::Shape;
use crate::program::{Fusion, Layers, Program, Projection};
use vecmill_model::{
    Activation, Architecture, Bias, Embedding, FeedForward, Linear, Model, ModelError, Norm, Order,
    Poolings, TensorView, Weight,
};

/// A model's weights, as one backend laid them out.
#[derive(Debug)]
pub(crate) struct Network<B: Backend> {
    /// Of the embeddings.
    width: usize,
    pooling: Poolings,
    embeddings: B::Embeddings,
    projection: Option<Projection<B>>,
    relative_bias: Option<B::RelativeBias>,
    layers: Vec<Layer<B>>,
    dense: Vec<Dense<B>>,
}

#[derive(Debug)]
struct Layer<B: Backend> {
    heads: usize,
    activation: Activation,
    qkv: Projection<B>,
    attention_output: Projection<B>,
    attention_norm: B::Norm,
    up: Projection<B>,
    down: Projection<B>,
    output_norm: B::Norm,
}

#[derive(Debug)]
struct Dense<B: Backend> {
    weights: Projection<B>,
    activation: Activation,
}

/// Which linear layers have a row for each sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SequenceRows {
    None,
    OfTheSameLayers,
    OfOwnLayers,
}

/// What becomes of the weights that a model's layers name: they are loaded onto a backend, or, on
/// paper, only counted.
pub(crate) trait Load<B: Backend> {
    fn linear(&mut self, stack: StackTensors<'_>) -> Result<B::Linear, BackendError>;
    fn norm(&mut self, tensors: &NormTensors) -> Result<B::Norm, BackendError>;
    fn embeddings(&mut self, tensors: &EmbeddingTensors) -> Result<B::Embeddings, BackendError>;
    fn relative_bias(
        &mut self,
        table: &TensorView,
        max_distance: usize,
    ) -> Result<B::RelativeBias, BackendError>;
}

/// A backend that loads, and the region that it loads into.
pub(crate) struct Loading<'a, B: Backend> {
    pub(crate) backend: &'a B,
    pub(crate) into: &'a mut RegionWriter<Slab<B>>,
}

impl<B: Backend> Load<B> for Loading<'_, B> {
    fn linear(&mut self, stack: StackTensors<'_>) -> Result<B::Linear, BackendError> {
        self.backend.load_linear(stack, self.into)
    }

    fn norm(&mut self, tensors: &NormTensors) -> Result<B::Norm, BackendError> {
        self.backend.load_norm(tensors, self.into)
    }

    fn embeddings(&mut self, tensors: &EmbeddingTensors) -> Result<B::Embeddings, BackendError> {
        self.backend.load_embeddings(tensors, self.into)
    }

    fn relative_bias(
        &mut self,
        table: &TensorView,
        max_distance: usize,
    ) -> Result<B::RelativeBias, BackendError> {
        self.backend.load_relative_bias(table, max_distance, self.into)
    }
}

impl<B: Backend> Network<B> {
    /// Records the forward pass for batches of `shape`, with [`Fusion`]s as `fusion` says.
    pub(crate) fn program<'m>(
        &'m self,
        backend: &'m B,
        shape: Shape,
        fusion: Fusion,
    ) -> Program<'m, B> {
        let mut pass = Program::new(backend, shape, fusion);
        let picks = self.pooling.picks_a_row();
        let mut hidden = pass.embed(&self.embeddings, self.width);
        if let Some(projection) = &self.projection {
            hidden = pass.linear(hidden, projection, Activation::Identity);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let qkv = pass.linear(hidden, &layer.qkv, Activation::Identity);
            let mut context = pass.attention(qkv, layer.heads, self.relative_bias.as_ref());
            if picks && index + 1 == self.layers.len() {
                // Behind the last attention no row depends on others: those that are read suffice.
                // Pooled rows are wide, as this layer is (`is_wide`).
                context = pass.pool(context, self.pooling);
                let rows = pass.normalized(hidden);
                hidden = pass.pool(rows, self.pooling);
            }
            let attended = pass.linear_add_norm(
                context,
                &layer.attention_output,
                hidden,
                &layer.attention_norm,
            );
            let &Layer { ref up, ref down, activation, .. } = layer;
            let layers = Layers { up, activation, down };
            hidden = pass.feed_forward(attended, layers, &layer.output_norm);
        }
        let mut sentence = pass.normalized(hidden);
        if !picks {
            sentence = pass.pool(sentence, self.pooling);
        }
        for dense in &self.dense {
            sentence = pass.linear(sentence, &dense.weights, dense.activation);
        }
        pass.finish(sentence)
    }

    /// Whether linear layers have a row for each sequence, beside those that have one for each token:
    /// of the same sizes, or, with dense layers, of others.
    pub(crate) fn sequence_rows(&self) -> SequenceRows {
        if !self.dense.is_empty() {
            SequenceRows::OfOwnLayers
        } else if self.pooling.picks_a_row() {
            SequenceRows::OfTheSameLayers
        } else {
            SequenceRows::None
        }
    }

    /// Goes through all weights of `model`, in the order in which they lie, calling `progress` with
    /// layers done and in all.
    pub(crate) fn load<L: Load<B>>(
        load: &mut L,
        model: &Model,
        pooling: Poolings,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self, LoadError> {
        let Architecture { embedding, layers: all } = model.architecture()?;
        let shared = all.first().and_then(|layer| layer.attention.bias.clone());
        progress(0, all.len());
        let embeddings = load_embeddings(load, &embedding)?;
        let projection = embedding.projection.as_ref();
        let projection =
            projection.map(|linear| projection_of(load, linear, true, None)).transpose()?;
        let mut layers = Vec::with_capacity(all.len());
        // What normalises the rows that a layer begins with.
        let mut before = None;
        for (index, layer) in all.iter().enumerate() {
            let wide = is_wide(index, all.len());
            let Order::Post { attention: attended, output } = &layer.order;
            let FeedForward::Plain { up, down, activation } = &layer.feed_forward;
            let (attended, output) = (norm_tensors(attended), norm_tensors(output));
            let linear = |load: &mut L, linear: &Linear, input_norm: Option<&NormTensors>| {
                projection_of(load, linear, wide, input_norm)
            };
            layers.push(Layer {
                heads: layer.attention.heads,
                activation: *activation,
                qkv: linear(load, &layer.attention.qkv, before.as_ref())?,
                attention_output: linear(load, &layer.attention.output, None)?,
                attention_norm: load.norm(&attended)?,
                up: linear(load, up, Some(&attended))?,
                down: linear(load, down, None)?,
                output_norm: load.norm(&output)?,
            });
            before = Some(output);
            progress(index + 1, all.len());
        }
        let relative_bias = shared.map(|bias| {
            let Bias { table, reach } = &*bias;
            load.relative_bias(&tensor(table), *reach)
        });
        Ok(Self {
            width: embedding.words.shape().columns,
            pooling,
            embeddings,
            projection,
            relative_bias: relative_bias.transpose()?,
            layers,
            dense: load_dense(load, model)?,
        })
    }
}

/// Whether a layer is never narrow.
fn is_wide(index: usize, layers: usize) -> bool {
    // Nothing averages errors of the last, and all layers pass on those of the first: docs/kernels.md
    // has the figures, for all-MiniLM-L6-v2 cosines of at least 0.993 instead of 0.975.
    index < (layers / 3).min(2) || index + 1 == layers
}

fn projection<B: Backend>(
    load: &mut impl Load<B>,
    stack: StackTensors<'_>,
) -> Result<Projection<B>, LoadError> {
    Ok(Projection { shape: stack.shape(), weights: load.linear(stack)? })
}

/// A weight that is one tensor.
fn tensor(weight: &Weight) -> TensorView {
    match weight {
        Weight::Tensor(tensor) => tensor.clone(),
        Weight::Stack(parts) => parts[0].clone(),
    }
}

fn norm_tensors(norm: &Norm) -> NormTensors {
    NormTensors { gain: tensor(&norm.gain), bias: tensor(&norm.bias), epsilon: norm.epsilon }
}

fn projection_of<B: Backend>(
    load: &mut impl Load<B>,
    linear: &Linear,
    wide: bool,
    input_norm: Option<&NormTensors>,
) -> Result<Projection<B>, LoadError> {
    let mut biases = linear.bias.iter().flat_map(Weight::tensors).cloned();
    let part = |weight: &TensorView| LinearTensors { weight: weight.clone(), bias: biases.next() };
    let parts: Vec<_> = linear.weight.tensors().iter().map(part).collect();
    projection(load, StackTensors { parts: &parts, wide, input_norm })
}

fn load_embeddings<B: Backend>(
    load: &mut impl Load<B>,
    embedding: &Embedding,
) -> Result<B::Embeddings, LoadError> {
    let tensors = EmbeddingTensors {
        words: tensor(&embedding.words),
        positions: tensor(&embedding.positions),
        types: embedding.types.as_ref().map(tensor),
        norm: norm_tensors(&embedding.norm),
    };
    Ok(load.embeddings(&tensors)?)
}

fn load_dense<B: Backend>(
    load: &mut impl Load<B>,
    model: &Model,
) -> Result<Vec<Dense<B>>, LoadError> {
    let dense = |dense: &vecmill_model::Dense| {
        let part = LinearTensors { weight: dense.weight.clone(), bias: dense.bias.clone() };
        let stack = StackTensors { wide: true, ..StackTensors::new(slice::from_ref(&part)) };
        Ok(Dense { weights: projection(load, stack)?, activation: dense.activation })
    };
    model.pipeline.dense.iter().map(dense).collect()
}

/// Why a model could not be loaded onto a backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The model's files are wrong.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// There is no memory for the weights.
    #[error(transparent)]
    Memory(#[from] LeaseError),
}

#[cfg(test)]
mod tests {
    use super::is_wide;

    #[test]
    fn layers_at_both_ends_are_wide_and_most_are_narrow_in_deep_models() {
        let wide = |layers| (0..layers).filter(|&index| is_wide(index, layers)).collect::<Vec<_>>();
        assert_eq!(wide(24), [0, 1, 23]);
        assert_eq!(wide(6), [0, 1, 5]);
        assert_eq!((wide(3), wide(2), wide(1)), (vec![0, 2], vec![1], vec![0]));
    }
}
