//! The forward pass of a post-norm transformer encoder, written once for every architecture.
//!
//! BERT, RoBERTa, XLM-RoBERTa, DistilBERT and MPNet differ in the names of their tensors, in where
//! positions start and in whether attention has a relative bias: all of that is data in
//! [`crate::model`]. What remains is this.

use std::slice;

use vecmill_memory::LeaseError;

use crate::BackendError;
use crate::backend::{
    Backend, EmbeddingTensors, LinearTensors, NormTensors, RegionWriter, Slab, StackTensors,
};
use crate::batch::Shape;
use crate::program::{Fusion, Layers, Program, Projection};
use vecmill_model::{Activation, Model, ModelError, Poolings, TensorView};

/// From this distance on, MPNet's relative positions share a bucket; no configuration changes it.
const RELATIVE_REACH: usize = 128;

/// A model's weights, as one backend laid them out.
#[derive(Debug)]
pub(crate) struct Network<B: Backend> {
    hidden: usize,
    heads: usize,
    activation: Activation,
    pooling: Poolings,
    embeddings: B::Embeddings,
    relative_bias: Option<B::RelativeBias>,
    layers: Vec<Layer<B>>,
    dense: Vec<Dense<B>>,
}

#[derive(Debug)]
struct Layer<B: Backend> {
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
        let mut hidden = pass.embed(&self.embeddings, self.hidden);
        for (index, layer) in self.layers.iter().enumerate() {
            let qkv = pass.linear(hidden, &layer.qkv, Activation::Identity);
            let mut context = pass.attention(qkv, self.heads, self.relative_bias.as_ref());
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
            let Layer { up, down, .. } = layer;
            let layers = Layers { up, activation: self.activation, down };
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
        let config = &model.config;
        let names = config.names();
        let weights = &model.weights;
        let norm = |prefix: &str| -> Result<NormTensors, ModelError> {
            let (gain, bias) = weights.norm(prefix, config.hidden)?;
            Ok(NormTensors { gain, bias, epsilon: config.epsilon })
        };
        let tensors = |parts: &[String], outputs, inputs| {
            let parts = parts.iter().map(|prefix| {
                let (weight, bias) = weights.linear(prefix, outputs, inputs)?;
                Ok(LinearTensors { weight, bias: Some(bias) })
            });
            parts.collect::<Result<Vec<_>, ModelError>>()
        };

        progress(0, config.layers);
        let embeddings = load_embeddings(load, model)?;
        let mut layers = Vec::with_capacity(config.layers);
        // What normalises the rows that a layer begins with.
        let mut before = None;
        for index in 0..config.layers {
            let (hidden, intermediate) = (config.hidden, config.intermediate);
            let name = |part| names.in_layer(index, part);
            let wide = is_wide(index, config.layers);
            let linear = |load: &mut L,
                          parts: &[String],
                          outputs,
                          inputs,
                          input_norm: Option<&NormTensors>| {
                let parts = &tensors(parts, outputs, inputs)?;
                projection(load, StackTensors { parts, wide, input_norm })
            };
            let qkv = [names.query, names.key, names.value].map(name);
            let (attended, output) =
                (norm(&name(names.attention_norm))?, norm(&name(names.output_norm))?);
            let attention_output = [name(names.attention_output)];
            let (up, down) = ([name(names.up)], [name(names.down)]);
            layers.push(Layer {
                qkv: linear(load, &qkv, hidden, hidden, before.as_ref())?,
                attention_output: linear(load, &attention_output, hidden, hidden, None)?,
                attention_norm: load.norm(&attended)?,
                up: linear(load, &up, intermediate, hidden, Some(&attended))?,
                down: linear(load, &down, hidden, intermediate, None)?,
                output_norm: load.norm(&output)?,
            });
            before = Some(output);
            progress(index + 1, config.layers);
        }
        Ok(Self {
            hidden: config.hidden,
            heads: config.heads,
            activation: config.activation,
            pooling,
            embeddings,
            relative_bias: load_relative_bias(load, model)?,
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

fn load_embeddings<B: Backend>(
    load: &mut impl Load<B>,
    model: &Model,
) -> Result<B::Embeddings, LoadError> {
    let (config, weights, names) = (&model.config, &model.weights, model.config.names());
    let (gain, bias) = weights.norm(names.embedding_norm, config.hidden)?;
    let types = names
        .type_embeddings
        .filter(|_| config.token_types > 0)
        .map(|name| weights.tensor(name, &[config.token_types, config.hidden]))
        .transpose()?;
    let tensors = EmbeddingTensors {
        words: weights.tensor(names.word_embeddings, &[config.vocabulary, config.hidden])?,
        positions: weights.tensor(names.position_embeddings, &[config.positions, config.hidden])?,
        types,
        norm: NormTensors { gain, bias, epsilon: config.epsilon },
    };
    Ok(load.embeddings(&tensors)?)
}

fn load_relative_bias<B: Backend>(
    load: &mut impl Load<B>,
    model: &Model,
) -> Result<Option<B::RelativeBias>, LoadError> {
    let config = &model.config;
    let (Some(buckets), Some(name)) = (config.relative_buckets, config.names().relative_bias)
    else {
        return Ok(None);
    };
    let table = model.weights.tensor(name, &[buckets, config.heads])?;
    Ok(Some(load.relative_bias(&table, RELATIVE_REACH)?))
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
