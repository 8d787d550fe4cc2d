//! The forward pass of a transformer encoder, written once for every architecture, as a graph.
//!
//! In what models differ is data, an [`Architecture`] with its weights. What remains is this, and a
//! [task](crate::tasks)'s tail.

use std::sync::Arc;

use vecmill_model::{
    Activation, Architecture, Bias, Buckets, Embedding, FeedForward, Layer, Model, ModelError,
    Order, Pooling, Poolings, Weight,
};

use crate::graph::{AttentionBias, Graph, GraphBuilder, RelativeBias, ValueId};
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
    let Architecture { embedding, layers, norm } = model.architecture()?;
    let mut graph = GraphBuilder::new(layers.len());
    let mut rows = embed(&mut graph, &embedding);
    let biases = biases(&mut graph, &layers);
    let pick = found.as_ref().and_then(|(_, head)| head.pick());
    for (index, (layer, bias)) in layers.iter().zip(biases).enumerate() {
        // Behind the last attention no row depends on others: those that are read suffice.
        let pick = pick.filter(|_| index + 1 == layers.len());
        graph.layer(Some(index));
        rows = self::layer(&mut graph, layer, bias, rows, pick);
    }
    graph.layer(None);
    if let Some(norm) = &norm {
        rows = graph.norm(rows, norm);
    }
    if let Some((task, head)) = found {
        rows = (task.tail)(&mut graph, &head, rows);
    }
    Ok(graph.finish(vec![rows]))
}

fn embed(graph: &mut GraphBuilder, embedding: &Embedding) -> ValueId {
    let Embedding { words, positions, types, norm, projection } = embedding;
    let sum = graph.embed(words, positions.as_ref(), types.as_ref());
    let rows = norm.as_ref().map_or(sum, |norm| graph.norm(sum, norm));
    match projection {
        Some(projection) => graph.linear(rows, projection, Activation::Identity),
        None => rows,
    }
}

/// One layer, computed for picked rows alone from its attention on, where there is a `pick`.
fn layer(
    graph: &mut GraphBuilder,
    layer: &Layer,
    bias: Option<AttentionBias>,
    mut rows: ValueId,
    pick: Option<Poolings>,
) -> ValueId {
    let Layer { order, attention, feed_forward } = layer;
    let before = match order {
        Order::Pre { attention: Some(norm), .. } => graph.norm(rows, norm),
        _ => rows,
    };
    let mut qkv = graph.linear(before, &attention.qkv, Activation::Identity);
    if let Some(norm) = &attention.norm {
        qkv = graph.norm_slices(qkv, norm);
    }
    if let Some(rotary) = attention.rotary {
        qkv = graph.rotate(qkv, attention.heads, rotary);
    }
    let mut context = graph.attention(qkv, attention.heads, attention.window, bias);
    if let Some(pick) = pick {
        context = graph.pool(context, pick);
        rows = graph.pool(rows, pick);
    }
    let output = graph.linear(context, &attention.output, Activation::Identity);
    let attended = graph.add(output, rows);
    match order {
        Order::Post { attention, again, output } => {
            let mut attended = graph.norm(attended, attention);
            if let Some(again) = again {
                let sum = graph.add(attended, rows);
                attended = graph.norm(sum, again);
            }
            let computed = self::feed_forward(graph, feed_forward, attended);
            let sum = graph.add(computed, attended);
            graph.norm(sum, output)
        }
        Order::Pre { feed_forward: norm, .. } => {
            let normalised = graph.norm(attended, norm);
            let computed = self::feed_forward(graph, feed_forward, normalised);
            graph.add(computed, attended)
        }
    }
}

fn feed_forward(graph: &mut GraphBuilder, part: &FeedForward, rows: ValueId) -> ValueId {
    let (between, down) = match part {
        FeedForward::Plain { up, down, activation } => (graph.linear(rows, up, *activation), down),
        FeedForward::Gated { gate_up, down, activation } => {
            (graph.gated_linear(rows, gate_up, *activation), down)
        }
    };
    graph.linear(between, down, Activation::Identity)
}

/// Each layer's bias of attention; layers that share one read the same weight.
fn biases(graph: &mut GraphBuilder, layers: &[Layer]) -> Vec<Option<AttentionBias>> {
    let mut known: Option<(&Arc<Buckets>, RelativeBias)> = None;
    let mut all = Vec::with_capacity(layers.len());
    for layer in layers {
        all.push(layer.attention.bias.as_ref().map(|bias| match (bias, known) {
            (Bias::Alibi, _) => AttentionBias::Alibi,
            (Bias::Buckets(buckets), Some((same, number))) if Arc::ptr_eq(same, buckets) => {
                AttentionBias::Buckets(number)
            }
            (Bias::Buckets(buckets), _) => {
                let table = graph.weight(&buckets.table);
                let number = RelativeBias { table, reach: buckets.reach };
                known = Some((buckets, number));
                AttentionBias::Buckets(number)
            }
        }));
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
