//! DistilBERT (Sanh et al., arXiv:1910.01108): BERT without token types, under other names.

use super::super::head::{Layout, Name};
use super::super::keys::{Rule, row};
use super::super::{
    Activation, Architecture, Attention, Config, Heads, Layer, ModelError, Order, Window,
};
use super::{Family, Keys, Tensors, bert};

pub(super) const FAMILY: Family = Family {
    name: "DistilBERT",
    model_types: &["distilbert"],
    prefixes: &["distilbert."],
    keys: Keys {
        hidden: &["dim"],
        layers: &["n_layers"],
        heads: &["n_heads"],
        intermediate: &["hidden_dim"],
        activation: (&["activation"], "gelu"),
        epsilon: None,
        token_types: None,
        ..bert::KEYS
    },
    rules: &[
        row(&["hidden_size"], Rule::SameAs("dim")),
        row(&["num_hidden_layers"], Rule::SameAs("n_layers")),
        row(&["num_attention_heads"], Rule::SameAs("n_heads")),
        bert::PADDING,
        bert::ABSOLUTE,
        row(&["layer_norm_eps"], Rule::Unread("it is 1e-12, whatever this says")),
        row(&["type_vocab_size"], Rule::Unread("it has no token types")),
        row(
            &["sinusoidal_pos_embds"],
            Rule::Unread("position embeddings are in the weights either way"),
        ),
    ],
    classifier: Some(&CLASSIFIER),
    read,
    ..bert::FAMILY
};

const CLASSIFIER: Layout = Layout {
    dense: Name::Head("pre_classifier"),
    activation: Activation::Relu,
    out: Name::Head("classifier"),
};

fn read(config: &Config, tensors: &Tensors<'_>) -> Result<Architecture, ModelError> {
    let hidden = config.hidden;
    let layer = |index| {
        let at = tensors.under(&format!("transformer.layer.{index}"));
        Ok(Layer {
            order: Order::Post {
                attention: at.norm("sa_layer_norm", hidden)?,
                output: at.norm("output_layer_norm", hidden)?,
            },
            attention: Attention {
                qkv: at
                    .stack(&["attention.q_lin", "attention.k_lin", "attention.v_lin"], hidden)?,
                output: at.linear("attention.out_lin", hidden, hidden)?,
                heads: Heads::new(config.heads, config.head_size),
                rotary: None,
                window: Window::FULL,
                bias: None,
            },
            feed_forward: bert::feed_forward(config, &at, "ffn.lin1", "ffn.lin2")?,
        })
    };
    Ok(Architecture {
        embedding: bert::embedding(config, tensors)?,
        layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
        norm: None,
    })
}
