//! MPNet (Song et al., arXiv:2004.09297): BERT without token types, with a bias of attention by
//! distance that all layers share.

use std::sync::Arc;

use super::super::keys::{Rule, row};
use super::super::{
    Architecture, Attention, Bias, Buckets, Config, Heads, Layer, ModelError, Order, Window,
};
use super::{Family, Keys, Positions, Tensors, bert, roberta};

/// From this distance on, relative positions share a bucket; no configuration changes it.
const REACH: usize = 128;

pub(super) const FAMILY: Family = Family {
    name: "MPNet",
    model_types: &["mpnet"],
    prefixes: &["mpnet."],
    keys: Keys {
        token_types: None,
        relative_buckets: Some("relative_attention_num_buckets"),
        ..bert::KEYS
    },
    positions: Positions::After(1),
    rules: &[
        bert::ABSOLUTE,
        row(&["pad_token_id"], Rule::Unread("its positions start at 2, whatever this says")),
        row(&["type_vocab_size"], Rule::Unread("it has no token types")),
    ],
    classifier: Some(&roberta::CLASSIFIER),
    read,
    ..bert::FAMILY
};

fn read(config: &Config, tensors: &Tensors<'_>) -> Result<Architecture, ModelError> {
    let (hidden, heads) = (config.hidden, config.heads);
    let count = config.relative_buckets.unwrap_or(0);
    let table = tensors.table("encoder.relative_attention_bias", count, heads)?;
    let buckets = Arc::new(Buckets { table, reach: REACH });
    let layer = |index| {
        let at = tensors.under(&format!("encoder.layer.{index}"));
        let qkv = ["attention.attn.q", "attention.attn.k", "attention.attn.v"];
        Ok(Layer {
            order: Order::Post {
                attention: at.norm("attention.LayerNorm", hidden)?,
                output: at.norm("output.LayerNorm", hidden)?,
            },
            attention: Attention {
                qkv: at.stack(&qkv, hidden)?,
                output: at.linear("attention.attn.o", hidden, hidden)?,
                heads: Heads::new(heads, config.head_size),
                rotary: None,
                window: Window::FULL,
                bias: Some(Bias::Buckets(Arc::clone(&buckets))),
            },
            feed_forward: bert::feed_forward(config, &at, "intermediate.dense", "output.dense")?,
        })
    };
    Ok(Architecture {
        embedding: bert::embedding(config, tensors)?,
        layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
        norm: None,
    })
}
