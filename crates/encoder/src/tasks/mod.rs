//! What models are for. A task is a tail of the graph: it makes of a transformer's rows what comes back.
//!
//! The choice behind it: the body is written once ([`forward`](crate::forward)), and whatever a task
//! needs of a model is in one file. A further task is a file here and a line of [`TASKS`].

mod embed;
mod score;

use crate::graph::{GraphBuilder, ValueId};
use vecmill_model::{HeadLayer, Model, Pooling, Poolings};

pub use embed::{Scaling, finish};

/// All of them. A model is for the first one that finds its head in it.
pub(crate) const TASKS: [Task; 2] = [score::TASK, embed::TASK];

/// One of them.
#[derive(Debug)]
pub(crate) struct Task {
    /// What it takes of a model; `None` where the model is for something else. The pooling is its
    /// user's choice in place of the model's own.
    pub(crate) find: fn(&Model, Option<Pooling>) -> Option<Head>,
    /// Adds what it computes of the last layer's rows: one of each token, or of each sequence where
    /// the head [picks](Head::pick) it.
    pub(crate) tail: fn(&mut GraphBuilder, &Head, ValueId) -> ValueId,
}

/// What a task takes of a model.
#[derive(Debug)]
pub(crate) struct Head {
    /// How a sequence's rows become one.
    pub(crate) pooling: Poolings,
    /// What that row goes through.
    pub(crate) layers: Vec<HeadLayer>,
}

impl Head {
    /// The pooling, if all that it reads is one token's row.
    pub(crate) fn pick(&self) -> Option<Poolings> {
        Some(self.pooling).filter(|pooling| pooling.picks_a_row())
    }
}

/// The tail of tasks that make a row of each sequence: pooling, then layers.
fn of_sequences(graph: &mut GraphBuilder, head: &Head, rows: ValueId) -> ValueId {
    let pooled = if head.pick().is_some() { rows } else { graph.pool(rows, head.pooling) };
    head.layers.iter().fold(pooled, |row, layer| match layer {
        HeadLayer::Linear(linear, activation) => graph.linear(row, linear, *activation),
        HeadLayer::Norm(norm) => graph.norm(row, norm),
    })
}
