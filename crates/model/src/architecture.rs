//! What a transformer computes, as data: every layer with its own weights and sizes.
//!
//! - [`Architecture`] is a whole body: an [`Embedding`], and a [`Layer`] for each layer.
//! - [`Linear`] and [`Norm`] are what these are made of; their [`Weight`]s say how tensors are read.
//!
//! The choice behind it: a family of models is a row that yields this
//! ([`families`](crate::families)), so that the forward pass is written once and asks no family's
//! name. Layers may differ from each other, and nothing is said twice: a width is that of a weight.
//! An enum with one variant is a place where the next one goes; whoever computes it is told by the
//! compiler.

use std::sync::Arc;

use crate::{Activation, Weight};

/// The body of an encoder.
#[derive(Debug, Clone)]
pub struct Architecture {
    /// From ids to rows.
    pub embedding: Embedding,
    /// In the order of their running; at least one.
    pub layers: Vec<Layer>,
}

/// The row of a token: the sum of the tables' rows, normalised.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// `[vocabulary, width]`
    pub words: Weight,
    /// `[positions, width]`; a sequence's first token has the row that [`Config`](crate::Config) says.
    pub positions: Weight,
    /// `[token types, width]`; every token is of type 0.
    pub types: Option<Weight>,
    /// Of the sum.
    pub norm: Norm,
    /// From `width` to the layers' own, where that is another.
    pub projection: Option<Linear>,
}

/// One block: attention, then a feed-forward part.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Where it normalises.
    pub order: Order,
    /// How tokens see each other.
    pub attention: Attention,
    /// What becomes of each token's row alone.
    pub feed_forward: FeedForward,
}

/// Where a layer's norms are, and which.
#[derive(Debug, Clone)]
pub enum Order {
    /// Behind each half, over its result and what went into it.
    Post {
        /// Behind attention.
        attention: Norm,
        /// Behind the feed-forward part.
        output: Norm,
    },
}

/// Attention of every token to all of its sequence.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Queries, keys and values beside each other, heads within each: `[3 · hidden, hidden]`.
    pub qkv: Linear,
    /// `[hidden, hidden]`
    pub output: Linear,
    /// How many heads; a third of `qkv`'s outputs divides by it.
    pub heads: usize,
    /// Added to scores by distance. Layers that share a table share it here.
    pub bias: Option<Arc<Bias>>,
}

/// Biases of attention by distance, which falls into logarithmic buckets (T5, arXiv:1910.10683,
/// section 2.1).
#[derive(Debug, Clone)]
pub struct Bias {
    /// `[buckets, heads]`
    pub table: Weight,
    /// From this distance on, all are in one bucket.
    pub reach: usize,
}

/// The feed-forward part of a layer.
#[derive(Debug, Clone)]
pub enum FeedForward {
    /// `down(activation(up(x)))`
    Plain {
        /// `[intermediate, hidden]`
        up: Linear,
        /// `[hidden, intermediate]`
        down: Linear,
        /// Applied to each element between them.
        activation: Activation,
    },
}

/// A linear layer.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[outputs, inputs]`
    pub weight: Weight,
    /// `[outputs]`
    pub bias: Option<Weight>,
}

/// A layer normalisation (Ba et al., arXiv:1607.06450).
#[derive(Debug, Clone)]
pub struct Norm {
    /// `[columns]`
    pub gain: Weight,
    /// `[columns]`
    pub bias: Weight,
    /// Added to the variance.
    pub epsilon: f32,
}
