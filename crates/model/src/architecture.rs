//! What a transformer computes, as data: every layer with its own weights and sizes.
//!
//! - [`Architecture`] is a whole body: an [`Embedding`], and a [`Layer`] for each layer.
//! - [`Linear`] and [`Norm`] are what these are made of; their [`Weight`]s say how tensors are read.
//! - [`Heads`], [`Window`] and [`Rotary`](crate::Rotary) say how attention reads its rows.
//!
//! The choice behind it: a family of models is a row that yields this
//! ([`families`](crate::families)), so that the forward pass is written once and asks no family's
//! name. Layers may differ from each other, and nothing is said twice: a width is that of a weight.
//! An enum with one variant is a place where the next one goes; whoever computes it is told by the
//! compiler.

use std::ops::Range;
use std::sync::Arc;

use crate::{Activation, Rotary, Weight};

/// The body of an encoder.
#[derive(Debug, Clone)]
pub struct Architecture {
    /// From ids to rows.
    pub embedding: Embedding,
    /// In the order of their running; none, where a text is the mean of its tokens' rows.
    pub layers: Vec<Layer>,
    /// Of the last layer's rows, where layers normalise what they read.
    pub norm: Option<Norm>,
}

/// The row of a token: the sum of the tables' rows, normalised where that is asked for.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// `[vocabulary, width]`
    pub words: Weight,
    /// `[positions, width]`; a sequence's first token has the row that [`Config`](crate::Config) says.
    /// None, where attention alone knows of positions.
    pub positions: Option<Weight>,
    /// `[token types, width]`; every token is of type 0.
    pub types: Option<Weight>,
    /// Of the sum; none, where it is all that is computed of a token.
    pub norm: Option<Norm>,
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
        /// Behind that once more, over it and what went into attention.
        again: Option<Norm>,
        /// Behind the feed-forward part.
        output: Norm,
    },
    /// Before each half, over what goes into it; the residual is not normalised.
    Pre {
        /// Before attention; none, where what comes is normalised already.
        attention: Option<Norm>,
        /// Before the feed-forward part.
        feed_forward: Norm,
    },
}

/// Attention of tokens to those of their sequence.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Queries, keys and values beside each other, heads within each.
    pub qkv: Linear,
    /// `[hidden, queries · size]`
    pub output: Linear,
    /// How `qkv`'s outputs are divided.
    pub heads: Heads,
    /// Of queries and keys, before anything else is done to them.
    pub norm: Option<SliceNorm>,
    /// Turns queries and keys by their positions.
    pub rotary: Option<Rotary>,
    /// Which tokens one sees.
    pub window: Window,
    /// Added to scores by distance.
    pub bias: Option<Bias>,
}

/// The heads of a row of queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Heads {
    /// Of queries.
    pub queries: usize,
    /// Of keys, and as many of values: as many as of queries, or a divisor of that, where queries share
    /// them.
    pub keys: usize,
    /// Columns of each.
    pub size: usize,
}

impl Heads {
    /// Heads that have keys and values of their own.
    pub fn new(count: usize, size: usize) -> Self {
        Self { queries: count, keys: count, size }
    }

    /// Columns of a row of queries, keys and values.
    pub fn columns(self) -> usize {
        (self.queries + 2 * self.keys) * self.size
    }

    /// Columns of what attention computes.
    pub fn outputs(self) -> usize {
        self.queries * self.size
    }
}

/// A layer normalisation of each slice of a row by itself.
#[derive(Debug, Clone)]
pub struct SliceNorm {
    /// As long as all slices together; a row may have more columns, which stay as they are.
    pub norm: Norm,
    /// Columns of a slice.
    pub width: usize,
}

/// Which keys a query sees: those from `left` places before it to `right` places behind it.
///
/// ```
/// use vecmill_model::Window;
///
/// assert_eq!(Window::around(2).seen(5..6, 9), 3..8);
/// assert_eq!(Window::around(2).seen(0..9, 9), 0..9);
/// assert_eq!(Window::FULL.seen(5..6, 9), 0..9);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// `None` sees all before.
    pub left: Option<usize>,
    /// `None` sees all behind.
    pub right: Option<usize>,
}

impl Window {
    /// All of the sequence.
    pub const FULL: Self = Self { left: None, right: None };

    /// Those no more than `distance` away.
    pub fn around(distance: usize) -> Self {
        Self { left: Some(distance), right: Some(distance) }
    }

    /// The keys that some of `queries` see, of a sequence of `length`.
    pub fn seen(self, queries: Range<usize>, length: usize) -> Range<usize> {
        let start = self.left.map_or(0, |left| queries.start.saturating_sub(left));
        let end = self.right.map_or(length, |right| queries.end.saturating_add(right).min(length));
        start..end
    }
}

/// Biases of attention by distance.
#[derive(Debug, Clone)]
pub enum Bias {
    /// Learned, by buckets of distances. Layers that share a table share it here.
    Buckets(Arc<Buckets>),
    /// −slope · distance, the slope by head (ALiBi: Press et al., arXiv:2108.12409), to both sides.
    Alibi,
}

/// Biases by distance, which falls into logarithmic buckets (T5, arXiv:1910.10683, section 2.1).
#[derive(Debug, Clone)]
pub struct Buckets {
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
    /// `down(activation(gate(x)) · up(x))`, element by element (Shazeer, arXiv:2002.05202).
    Gated {
        /// Gate and up, in this order, as one: `[2 · intermediate, hidden]`.
        gate_up: Linear,
        /// `[hidden, intermediate]`
        down: Linear,
        /// Applied to each element of the gate.
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
    pub bias: Option<Weight>,
    /// Added to the variance.
    pub epsilon: f32,
}
