//! JinaBERT, the body of jina v2 (Günther et al., arXiv:2310.19923): BERT whose attention is biased by distance
//! (ALiBi), with a gated feed-forward part. The variant for code normalises queries and keys as well, and
//! its gate comes second.

use super::super::json::JsonFile;
use super::super::keys::{Plain, Rule, row};
use super::super::{
    Activation, Architecture, Attention, Bias, Config, FeedForward, Heads, Layer, Linear,
    ModelError, Order, SliceNorm, Weight, Window,
};
use super::{Family, Norm, Tensors, bert};

pub(super) const FAMILY: Family = Family {
    name: "JinaBERT",
    told_by: Some("alibi"),
    code: &["JinaBertModel"],
    rules: &[
        bert::PADDING,
        row(
            &["position_embedding_type"],
            Rule::Only(&[Plain::Text("alibi")], "other positions are not computed"),
        ),
        row(
            &["feed_forward_type"],
            Rule::Only(&[Plain::Text("geglu")], "other feed-forward parts are not computed"),
        ),
        row(&["emb_pooler", "model_max_length"], Rule::Unread("modules.json says it")),
    ],
    classifier: None,
    settle,
    read,
    ..bert::FAMILY
};

/// A GEGLU, whatever `hidden_act` says: it must not say another.
fn settle(file: &JsonFile, config: &mut Config) -> Result<(), ModelError> {
    match config.activation {
        Activation::Gelu => Ok(()),
        _ => Err(file.wrong("hidden_act", "gelu, as in feed-forward parts that are a 'geglu'")),
    }
}

fn read(config: &Config, tensors: &Tensors<'_>) -> Result<Architecture, ModelError> {
    let layer = |index| layer(config, &tensors.under(&format!("encoder.layer.{index}")));
    Ok(Architecture {
        embedding: bert::embedding_of(config, tensors, None)?,
        layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
        norm: None,
    })
}

fn layer(config: &Config, at: &Tensors<'_>) -> Result<Layer, ModelError> {
    let (hidden, intermediate) = (config.hidden, config.intermediate);
    let qkv = ["attention.self.query", "attention.self.key", "attention.self.value"];
    let for_code = at.has("mlp.up_gated_layer.weight");
    let (again, output) = match for_code {
        true => (Some(at.norm("layer_norm_1", hidden)?), at.norm("layer_norm_2", hidden)?),
        false => (None, at.norm("mlp.layernorm", hidden)?),
    };
    let (gate_up, down) = match for_code {
        true => (
            at.layer("mlp.up_gated_layer", 2 * intermediate, hidden, false)?,
            at.linear("mlp.down_layer", hidden, intermediate)?,
        ),
        false => (
            at.layer("mlp.gated_layers", 2 * intermediate, hidden, false)?,
            at.linear("mlp.wo", hidden, intermediate)?,
        ),
    };
    let gate_up = match for_code {
        true => Linear { weight: gate_up.weight.with_halves_swapped(), bias: None },
        false => gate_up,
    };
    Ok(Layer {
        order: Order::Post {
            attention: at.norm("attention.output.LayerNorm", hidden)?,
            again,
            output,
        },
        attention: Attention {
            qkv: at.stack(&qkv, hidden)?,
            output: at.linear("attention.output.dense", hidden, hidden)?,
            heads: Heads::new(config.heads, config.head_size),
            norm: for_code.then(|| queries_and_keys(hidden, at)).transpose()?,
            rotary: None,
            window: Window::FULL,
            bias: Some(Bias::Alibi),
        },
        feed_forward: FeedForward::Gated { gate_up, down, activation: config.activation },
    })
}

/// The norms of all queries of a row, and of all its keys.
fn queries_and_keys(hidden: usize, at: &Tensors<'_>) -> Result<SliceNorm, ModelError> {
    let parts = ["attention.self.layer_norm_q", "attention.self.layer_norm_k"];
    let [q, k] = parts.map(|name| at.norm(name, hidden));
    let (q, k) = (q?, k?);
    let stack = |q: &Weight, k: &Weight| {
        Weight::Stack(q.tensors().iter().chain(k.tensors()).cloned().collect())
    };
    let bias = q.bias.as_ref().zip(k.bias.as_ref()).map(|(q, k)| stack(q, k));
    let norm = Norm { gain: stack(&q.gain, &k.gain), bias, epsilon: q.epsilon };
    Ok(SliceNorm { norm, width: hidden })
}
