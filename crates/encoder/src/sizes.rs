//! A kind of device for tests of what is planned: a step for each operation, and all weights are stored as
//! they are, in one format.

use crate::backend::Lower;
use crate::batch::Shape;
use crate::graph::{Graph, Node, Op};
use crate::plain::plain;
use crate::precision::Precision;
use crate::program::{Program, RowBound};
use crate::weights::WeightPlan;
use vecmill_model::DType;

/// What takes memory, where it does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) format: DType,
    pub(crate) linear_scratch: usize,
    /// By the longest sequence and the columns of a head.
    pub(crate) attention_scratch: fn(usize, usize) -> usize,
    pub(crate) way: fn(usize, usize) -> u64,
    pub(crate) attention_mixes: &'static [(usize, usize)],
}

impl Sizes {
    pub(crate) fn of(format: DType) -> Self {
        Self {
            format,
            linear_scratch: 0,
            attention_scratch: |_, _| 0,
            way: |_, _| 0,
            attention_mixes: &[],
        }
    }
}

impl Lower for Sizes {
    type Kernel = Op;

    fn lower(&self, graph: &Graph, rows: RowBound) -> Program<Op> {
        plain(graph, rows, self.format.bytes(), |node: &Node, shape: Shape| match node.op {
            Op::Linear { .. } => self.linear_scratch,
            Op::Attention { heads, .. } => (self.attention_scratch)(shape.longest, heads.size),
            _ => 0,
        })
    }

    fn store(&self, graph: &Graph, node: &Node, plan: &mut WeightPlan) {
        let weights = match node.op {
            Op::Embed { words, positions, types } => [Some(words), positions, types],
            Op::Norm { gain, bias, .. } | Op::NormSlices { gain, bias, .. } => {
                [Some(gain), bias, None]
            }
            Op::Linear { weight, bias, .. } | Op::GatedLinear { weight, bias, .. } => {
                [Some(weight), bias, None]
            }
            Op::Attention { .. } => [node.op.weight(), None, None],
            Op::Add | Op::Rotate { .. } | Op::Pool(_) => [None; 3],
        };
        let bytes = |weight| graph.weight(weight).elements() * self.format.bytes();
        weights.into_iter().flatten().for_each(|weight| plan.place(bytes(weight)));
    }

    fn precision(&self, _graph: &Graph, _node: &Node, _rows: RowBound) -> Precision {
        Precision::of(self.format)
    }

    fn way(&self, rows: usize, planned: usize) -> u64 {
        (self.way)(rows, planned)
    }

    fn attention_mixes(&self) -> &'static [(usize, usize)] {
        self.attention_mixes
    }
}
