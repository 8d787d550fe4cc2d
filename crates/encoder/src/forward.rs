//! The forward pass of a post-norm transformer encoder, written once for every architecture, as a
//! graph.
//!
//! BERT, RoBERTa, XLM-RoBERTa, DistilBERT and MPNet differ in the names of their tensors, in where
//! positions start and in whether attention has a relative bias: all of that is data in
//! [`vecmill_model`]. What remains is this, and a [task](crate::tasks)'s tail.

use crate::graph::{Graph, GraphBuilder, RelativeBias, ValueId};
use crate::tasks::TASKS;
use crate::weight::{Linear, Norm, Weight};
use vecmill_model::{Activation, Config, Model, ModelError, Pooling, TensorView};

/// The graph of `model`, and its weights by their numbers; `pooling` overrides the model's own.
///
/// # Errors
/// When a tensor is missing or wrong.
pub(crate) fn graph(
    model: &Model,
    pooling: Option<Pooling>,
) -> Result<(Graph, Vec<Weight>), ModelError> {
    let found = TASKS.iter().find_map(|task| Some((task, (task.find)(model, pooling)?)));
    let config = &model.config;
    let names = config.names();
    let tensors = Tensors { model };
    let mut graph = GraphBuilder::new(config.layers);
    let mut rows = embed(&mut graph, &tensors)?;
    let bias = relative_bias(&mut graph, &tensors)?;
    for index in 0..config.layers {
        let (hidden, intermediate) = (config.hidden, config.intermediate);
        let name = |part| names.in_layer(index, part);
        let qkv = [names.query, names.key, names.value].map(name);
        let qkv = tensors.linear(&qkv, hidden, hidden)?;
        let output = tensors.linear(&[name(names.attention_output)], hidden, hidden)?;
        let attention_norm = tensors.norm(&name(names.attention_norm))?;
        let up = tensors.linear(&[name(names.up)], intermediate, hidden)?;
        let down = tensors.linear(&[name(names.down)], hidden, intermediate)?;
        let output_norm = tensors.norm(&name(names.output_norm))?;

        graph.layer(Some(index));
        let qkv = graph.linear(rows, &qkv, Activation::Identity);
        let mut context = graph.attention(qkv, config.heads, bias);
        let pick = found.as_ref().and_then(|(_, head)| head.pick());
        if let Some(pick) = pick.filter(|_| index + 1 == config.layers) {
            // Behind the last attention no row depends on others: those that are read suffice.
            context = graph.pool(context, pick);
            rows = graph.pool(rows, pick);
        }
        let output = graph.linear(context, &output, Activation::Identity);
        let attended = graph.add(output, rows);
        let attended = graph.norm(attended, &attention_norm);
        let between = graph.linear(attended, &up, config.activation);
        let output = graph.linear(between, &down, Activation::Identity);
        rows = graph.add(output, attended);
        rows = graph.norm(rows, &output_norm);
    }
    graph.layer(None);
    if let Some((task, head)) = found {
        rows = (task.tail)(&mut graph, &head, rows);
    }
    Ok(graph.finish(vec![rows]))
}

fn embed(graph: &mut GraphBuilder, tensors: &Tensors<'_>) -> Result<ValueId, ModelError> {
    let (config, weights) = (&tensors.model.config, &tensors.model.weights);
    let names = config.names();
    let table = |name, rows| weights.tensor(name, &[rows, config.hidden]).map(Weight::Tensor);
    let types = names.type_embeddings.filter(|_| config.token_types > 0);
    let types = types.map(|name| table(name, config.token_types)).transpose()?;
    let words = table(names.word_embeddings, config.vocabulary)?;
    let positions = table(names.position_embeddings, config.positions)?;
    let norm = tensors.norm(names.embedding_norm)?;
    let sum = graph.embed(&words, &positions, types.as_ref());
    Ok(graph.norm(sum, &norm))
}

/// All layers have the same.
fn relative_bias(
    graph: &mut GraphBuilder,
    tensors: &Tensors<'_>,
) -> Result<Option<RelativeBias>, ModelError> {
    let config = &tensors.model.config;
    let (Some(buckets), Some(name)) = (config.relative_buckets, config.names().relative_bias)
    else {
        return Ok(None);
    };
    let table = tensors.model.weights.tensor(name, &[buckets, config.heads])?;
    let table = graph.weight(&Weight::Tensor(table));
    Ok(Some(RelativeBias { table, reach: Config::RELATIVE_MAX_DISTANCE }))
}

/// A model's tensors, found by name and checked.
struct Tensors<'a> {
    model: &'a Model,
}

impl Tensors<'_> {
    fn norm(&self, prefix: &str) -> Result<Norm, ModelError> {
        let Config { hidden, epsilon, .. } = self.model.config;
        let (gain, bias) = self.model.weights.norm(prefix, hidden)?;
        Ok(Norm { gain: Weight::Tensor(gain), bias: Weight::Tensor(bias), epsilon })
    }

    /// Layers that share their input, stacked as one.
    fn linear(
        &self,
        prefixes: &[String],
        outputs: usize,
        inputs: usize,
    ) -> Result<Linear, ModelError> {
        let pairs =
            prefixes.iter().map(|prefix| self.model.weights.linear(prefix, outputs, inputs));
        let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
        let (weights, biases): (Vec<TensorView>, Vec<TensorView>) = pairs.into_iter().unzip();
        Ok(Linear { weight: Weight::Stack(weights), bias: Some(Weight::Stack(biases)) })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::graph::{Op, Rows};

    fn of(name: &str) -> Graph {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(name);
        graph(&Model::open(&folder).unwrap(), None).unwrap().0
    }

    #[test]
    fn all_layers_share_the_relative_bias() {
        let graph = of("mpnet-mean");
        let biases = |node: &&crate::graph::Node| matches!(node.op, Op::Attention { .. });
        assert_eq!(graph.nodes().iter().filter(biases).count(), 2);
        assert_eq!(graph.loads().filter(|(_, node)| biases(node)).count(), 1);
        assert_eq!(graph.loads().count(), 2 + 1 + 2 * 6);
    }

    #[test]
    fn behind_the_last_attention_a_picked_row_goes_on_alone() {
        for (name, behind) in [("bert-mean", Rows::Tokens), ("bert-cls", Rows::Sequences)] {
            let graph = of(name);
            let last = graph.nodes().iter().rfind(|node| matches!(node.op, Op::Norm { .. }));
            assert_eq!(graph.value(last.unwrap().output).rows, behind, "{name}");
            assert_eq!(graph.value(graph.outputs()[0]).rows, Rows::Sequences, "{name}");
        }
    }
}
