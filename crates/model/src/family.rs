//! Architecture families: everything in which they differ, as data.

/// A family of encoders that the forward pass computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// BERT.
    Bert,
    /// RoBERTa.
    Roberta,
    /// XLM-RoBERTa.
    XlmRoberta,
    /// DistilBERT.
    DistilBert,
    /// MPNet.
    MpNet,
}

impl Family {
    /// All families.
    pub const ALL: [Self; 5] =
        [Self::Bert, Self::Roberta, Self::XlmRoberta, Self::DistilBert, Self::MpNet];

    /// Its `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Roberta => "roberta",
            Self::XlmRoberta => "xlm-roberta",
            Self::DistilBert => "distilbert",
            Self::MpNet => "mpnet",
        }
    }

    /// What its tensors are called.
    pub fn names(self) -> &'static Names {
        match self {
            Self::Bert | Self::Roberta | Self::XlmRoberta => &BERT_NAMES,
            Self::DistilBert => &DISTILBERT_NAMES,
            Self::MpNet => &MPNET_NAMES,
        }
    }

    /// What the keys of its `config.json` are called.
    pub(super) fn keys(self) -> &'static Keys {
        match self {
            Self::DistilBert => &DISTILBERT_KEYS,
            _ => &BERT_KEYS,
        }
    }

    /// Where its positions start.
    pub(super) fn positions(self) -> Positions {
        match self {
            Self::Roberta | Self::XlmRoberta => Positions::AfterPadding(1),
            Self::MpNet => Positions::After(1),
            Self::Bert | Self::DistilBert => Positions::FromZero,
        }
    }

    /// Whether `config.json` says what layer norms add to the variance. DistilBERT's is fixed.
    pub(super) fn states_epsilon(self) -> bool {
        self != Self::DistilBert
    }
}

/// Where a family's positions start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Positions {
    /// At 0.
    FromZero,
    /// Behind this id, whatever `config.json` says.
    After(usize),
    /// Behind the padding token's id; this one where `config.json` is silent.
    AfterPadding(usize),
}

/// What a family's tensors are called.
///
/// Names that end in `.weight` or are called embeddings are whole; all others stand in front of
/// `.weight` and `.bias`. Names of a layer's parts go through [`Names::in_layer`]. A prefix that
/// the whole file shares, such as `bert.`, is left out: [`Weights`](super::Weights) adds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// Word embeddings, `[vocabulary, hidden]`.
    pub word_embeddings: &'static str,
    /// Position embeddings, `[positions, hidden]`.
    pub position_embeddings: &'static str,
    /// Token type embeddings, `[token_types, hidden]`; `None` in families without.
    pub type_embeddings: Option<&'static str>,
    /// The layer norm after the embeddings.
    pub embedding_norm: &'static str,
    /// The attention bias by distance, `[relative_buckets, heads]`; `None` in families without.
    pub relative_bias: Option<&'static str>,
    /// What stands in front of a layer's number.
    layers: &'static str,
    /// A layer's query projection, `[hidden, hidden]`.
    pub query: &'static str,
    /// A layer's key projection, `[hidden, hidden]`.
    pub key: &'static str,
    /// A layer's value projection, `[hidden, hidden]`.
    pub value: &'static str,
    /// A layer's attention output projection, `[hidden, hidden]`.
    pub attention_output: &'static str,
    /// A layer's norm after attention.
    pub attention_norm: &'static str,
    /// A layer's feed-forward projection up, `[intermediate, hidden]`.
    pub up: &'static str,
    /// A layer's feed-forward projection down, `[hidden, intermediate]`.
    pub down: &'static str,
    /// A layer's norm after the feed-forward part.
    pub output_norm: &'static str,
}

impl Names {
    /// The name of a layer's `part`, layers counted from 0.
    pub fn in_layer(&self, layer: usize, part: &str) -> String {
        format!("{}.{layer}.{part}", self.layers)
    }
}

const BERT_NAMES: Names = Names {
    word_embeddings: "embeddings.word_embeddings.weight",
    position_embeddings: "embeddings.position_embeddings.weight",
    type_embeddings: Some("embeddings.token_type_embeddings.weight"),
    embedding_norm: "embeddings.LayerNorm",
    relative_bias: None,
    layers: "encoder.layer",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    output_norm: "output.LayerNorm",
};

const DISTILBERT_NAMES: Names = Names {
    type_embeddings: None,
    layers: "transformer.layer",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    output_norm: "output_layer_norm",
    ..BERT_NAMES
};

const MPNET_NAMES: Names = Names {
    type_embeddings: None,
    relative_bias: Some("encoder.relative_attention_bias.weight"),
    query: "attention.attn.q",
    key: "attention.attn.k",
    value: "attention.attn.v",
    attention_output: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    ..BERT_NAMES
};

/// What the keys of a family's `config.json` are called.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) hidden: &'static str,
    pub(super) layers: &'static str,
    pub(super) heads: &'static str,
    pub(super) intermediate: &'static str,
    pub(super) activation: &'static str,
}

const BERT_KEYS: Keys = Keys {
    hidden: "hidden_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    intermediate: "intermediate_size",
    activation: "hidden_act",
};

const DISTILBERT_KEYS: Keys = Keys {
    hidden: "dim",
    layers: "n_layers",
    heads: "n_heads",
    intermediate: "hidden_dim",
    activation: "activation",
};
