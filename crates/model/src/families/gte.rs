//! GTE as of 2024 (Zhang et al., arXiv:2407.19669): rotary positions and a gated feed-forward part, whose
//! gate comes second.

use super::super::json::JsonFile;
use super::super::keys::{Plain, Rule, row};
use super::super::{
    Architecture, Attention, Config, Embedding, FeedForward, Heads, Layer, Linear, ModelError,
    Order, Weight,
};
use super::{Family, Keys, Tensors, bert, rope};

const THETA: f64 = 160_000.0;

pub(super) const FAMILY: Family = Family {
    name: "GTE",
    model_types: &["new", "gte"],
    prefixes: &["new."],
    code: &["NewModel"],
    keys: Keys { token_types: Some((&["type_vocab_size"], 1)), ..bert::KEYS },
    rules: &[
        bert::PADDING,
        rope::KEYS,
        row(
            &["position_embedding_type"],
            Rule::Only(&[Plain::Text("rope")], "other positions are not computed"),
        ),
        row(
            &["layer_norm_type"],
            Rule::Only(&[Plain::Text("layer_norm")], "other norms are not computed"),
        ),
        row(
            &["logn_attention_scale"],
            Rule::Only(&[Plain::False, Plain::Null], "such attention is not computed"),
        ),
        row(&["logn_attention_clip1"], Rule::Unread("of a scale that is not used")),
        row(
            &["pack_qkv", "unpad_inputs", "use_memory_efficient_attention"],
            Rule::Unread("how it is computed, not what"),
        ),
    ],
    classifier: None,
    settle,
    read,
    ..bert::FAMILY
};

fn settle(file: &JsonFile, config: &mut Config) -> Result<(), ModelError> {
    let (dims, trained) = (config.head_size, config.positions);
    let rotary = rope::read(file, rope::Default { dims, theta: THETA, trained })?;
    let rotary = rope::checked(file, "num_attention_heads", rotary)?;
    config.sights.iter_mut().for_each(|sight| sight.rotary = Some(rotary));
    Ok(())
}

fn read(config: &Config, tensors: &Tensors<'_>) -> Result<Architecture, ModelError> {
    let (hidden, intermediate) = (config.hidden, config.intermediate);
    let layer = |index: usize| {
        let at = tensors.under(&format!("encoder.layer.{index}"));
        let sight = config.sights[index];
        let up_gate = at.table("mlp.up_gate_proj", 2 * intermediate, hidden)?;
        let halves = |tensor: &crate::TensorView| {
            [tensor.rows(intermediate..2 * intermediate), tensor.rows(0..intermediate)]
        };
        let gate_up = up_gate.tensors().iter().flat_map(halves).collect();
        Ok(Layer {
            order: Order::Post {
                attention: at.norm("attn_ln", hidden)?,
                output: at.norm("mlp_ln", hidden)?,
            },
            attention: Attention {
                qkv: at.linear("attention.qkv_proj", 3 * hidden, hidden)?,
                output: at.linear("attention.o_proj", hidden, hidden)?,
                heads: Heads::new(config.heads, config.head_size),
                rotary: sight.rotary,
                window: sight.window,
                bias: None,
            },
            feed_forward: FeedForward::Gated {
                gate_up: Linear { weight: Weight::Stack(gate_up), bias: None },
                down: at.linear("mlp.down_proj", hidden, intermediate)?,
                activation: config.activation,
            },
        })
    };
    let at = tensors.under("embeddings");
    let types = (config.token_types > 0)
        .then(|| at.table("token_type_embeddings", config.token_types, hidden));
    Ok(Architecture {
        embedding: Embedding {
            words: at.table("word_embeddings", config.vocabulary, hidden)?,
            positions: None,
            types: types.transpose()?,
            norm: at.norm("LayerNorm", hidden)?,
            projection: None,
        },
        layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
        norm: None,
    })
}
