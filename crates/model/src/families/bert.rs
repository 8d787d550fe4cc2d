//! BERT (Devlin et al., arXiv:1810.04805).

use super::super::head::{Layout, Name};
use super::super::keys::{Plain, Row, Rule, row};
use super::super::{
    Activation, Architecture, Attention, Config, Embedding, FeedForward, Heads, Layer, ModelError,
    Order, Pooling, Window,
};
use super::{Family, Keys, Positions, Tensors};

pub(super) const FAMILY: Family = Family {
    name: "BERT",
    model_types: &["bert"],
    prefixes: &["bert."],
    words: "embeddings.word_embeddings.weight",
    code: &[],
    pooling: Pooling::Mean,
    keys: KEYS,
    positions: Positions::FromZero,
    rules: &[PADDING, ABSOLUTE],
    classifier: Some(&CLASSIFIER),
    settle: |_, _| Ok(()),
    read,
};

pub(super) const KEYS: Keys = Keys {
    hidden: &["hidden_size"],
    layers: &["num_hidden_layers"],
    heads: &["num_attention_heads"],
    intermediate: &["intermediate_size"],
    positions: &["max_position_embeddings"],
    activation: (&["hidden_act"], "gelu"),
    epsilon: Some((&["layer_norm_eps"], 1e-12)),
    token_types: Some((&["type_vocab_size"], 2)),
    embedding: None,
    relative_buckets: None,
};

const CLASSIFIER: Layout = Layout {
    dense: Name::Body("pooler.dense"),
    activation: Activation::Tanh,
    out: Name::Head("classifier"),
};

/// Of families whose positions start at 0.
pub(super) const PADDING: Row =
    row(&["pad_token_id"], Rule::Unread("nothing is padded, and positions start at 0"));

/// Of families with position embeddings.
pub(super) const ABSOLUTE: Row = row(
    &["position_embedding_type"],
    Rule::Only(&[Plain::Text("absolute")], "other positions are not computed"),
);

pub(super) fn read(config: &Config, tensors: &Tensors<'_>) -> Result<Architecture, ModelError> {
    let layer = |index| layer(config, &tensors.under(&format!("encoder.layer.{index}")));
    Ok(Architecture {
        embedding: embedding(config, tensors)?,
        layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
        norm: None,
    })
}

/// Words, positions and, in families with types, these.
pub(super) fn embedding(config: &Config, tensors: &Tensors<'_>) -> Result<Embedding, ModelError> {
    let (at, width) = (tensors.under("embeddings"), config.embedding);
    let types = (config.token_types > 0)
        .then(|| at.table("token_type_embeddings", config.token_types, width));
    Ok(Embedding {
        words: at.table("word_embeddings", config.vocabulary, width)?,
        positions: Some(at.table("position_embeddings", config.positions, width)?),
        types: types.transpose()?,
        norm: at.norm("LayerNorm", width)?,
        projection: None,
    })
}

fn layer(config: &Config, at: &Tensors<'_>) -> Result<Layer, ModelError> {
    let hidden = config.hidden;
    let qkv = ["attention.self.query", "attention.self.key", "attention.self.value"];
    Ok(Layer {
        order: Order::Post {
            attention: at.norm("attention.output.LayerNorm", hidden)?,
            output: at.norm("output.LayerNorm", hidden)?,
        },
        attention: Attention {
            qkv: at.stack(&qkv, hidden)?,
            output: at.linear("attention.output.dense", hidden, hidden)?,
            heads: Heads::new(config.heads, config.head_size),
            rotary: None,
            window: Window::FULL,
            bias: None,
        },
        feed_forward: feed_forward(config, at, "intermediate.dense", "output.dense")?,
    })
}

pub(super) fn feed_forward(
    config: &Config,
    at: &Tensors<'_>,
    up: &str,
    down: &str,
) -> Result<FeedForward, ModelError> {
    Ok(FeedForward::Plain {
        up: at.linear(up, config.intermediate, config.hidden)?,
        down: at.linear(down, config.hidden, config.intermediate)?,
        activation: config.activation,
    })
}
