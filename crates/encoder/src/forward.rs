//! The forward pass of a transformer encoder, written once for every architecture, as a graph.
//!
//! In what models differ is data, an [`Architecture`] with its weights. What remains is this, and a
//! [task](crate::tasks)'s tail.

use std::sync::Arc;

use vecmill_model::{
    Activation, Architecture, Bias, Embedding, FeedForward, Layer, Model, ModelError, Order,
    Pooling, Weight,
};

use crate::graph::{Graph, GraphBuilder, RelativeBias, ValueId};
use crate::tasks::TASKS;

/// The graph of `model`, and its weights by their numbers; `pooling` overrides the model's own.
///
/// # Errors
/// When a tensor is missing or wrong.
pub(crate) fn graph(
    model: &Model,
    pooling: Option<Pooling>,
) -> Result<(Graph, Vec<Weight>), ModelError> {
    let found = TASKS.iter().find_map(|task| Some((task, (task.find)(model, pooling)?)));
    let Architecture { embedding, layers } = model.architecture()?;
    let mut graph = GraphBuilder::new(layers.len());
    let mut rows = embed(&mut graph, &embedding);
    let biases = biases(&mut graph, &layers);
    for (index, (layer, bias)) in layers.iter().zip(biases).enumerate() {
        let Layer { order, attention, feed_forward } = layer;
        let Order::Post { attention: attention_norm, output: output_norm } = order;
        let FeedForward::Plain { up, down, activation } = feed_forward;

        graph.layer(Some(index));
        let qkv = graph.linear(rows, &attention.qkv, Activation::Identity);
        let mut context = graph.attention(qkv, attention.heads, bias);
        let pick = found.as_ref().and_then(|(_, head)| head.pick());
        if let Some(pick) = pick.filter(|_| index + 1 == layers.len()) {
            // Behind the last attention no row depends on others: those that are read suffice.
            context = graph.pool(context, pick);
            rows = graph.pool(rows, pick);
        }
        let output = graph.linear(context, &attention.output, Activation::Identity);
        let attended = graph.add(output, rows);
        let attended = graph.norm(attended, attention_norm);
        let between = graph.linear(attended, up, *activation);
        let output = graph.linear(between, down, Activation::Identity);
        rows = graph.add(output, attended);
        rows = graph.norm(rows, output_norm);
    }
    graph.layer(None);
    if let Some((task, head)) = found {
        rows = (task.tail)(&mut graph, &head, rows);
    }
    Ok(graph.finish(vec![rows]))
}

fn embed(graph: &mut GraphBuilder, embedding: &Embedding) -> ValueId {
    let Embedding { words, positions, types, norm, projection } = embedding;
    let sum = graph.embed(words, positions, types.as_ref());
    let rows = graph.norm(sum, norm);
    match projection {
        Some(projection) => graph.linear(rows, projection, Activation::Identity),
        None => rows,
    }
}

/// Each layer's bias of attention; layers that share one read the same weight.
fn biases(graph: &mut GraphBuilder, layers: &[Layer]) -> Vec<Option<RelativeBias>> {
    let mut known: Option<(&Arc<Bias>, RelativeBias)> = None;
    let mut all = Vec::with_capacity(layers.len());
    for layer in layers {
        let bias = layer.attention.bias.as_ref().map(|bias| match known {
            Some((same, number)) if Arc::ptr_eq(same, bias) => number,
            _ => {
                let number = RelativeBias { table: graph.weight(&bias.table), reach: bias.reach };
                known = Some((bias, number));
                number
            }
        });
        all.push(bias);
    }
    all
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
