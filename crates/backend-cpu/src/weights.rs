//! What is stored of a model's weights, and as what they are found again.

use pulp::Arch;
use vecmill_encoder::{AttentionBias, Graph, Node, Op, RelativeBias as Bias, WeightId};
use vecmill_encoder::{BackendError, RegionWriter, WeightPlan};
use vecmill_memory::HostBlock;
use vecmill_model::Weight;

use crate::attention::RelativeBias;
use crate::matmul::{Panels, Size, packed_columns};
use crate::rows::{Norm, TYPES, Tables};

const FLOAT: usize = size_of::<f32>();

/// The weights of one operation.
#[derive(Debug)]
pub struct CpuWeight(Stored);

#[derive(Debug)]
enum Stored {
    Tables(Tables),
    Norm(Norm),
    Linear(Panels),
    RelativeBias(RelativeBias),
}

/// Plans what [`CpuWeight::load`] stores.
pub(crate) fn store(arch: Arch, graph: &Graph, node: &Node, plan: &mut WeightPlan) {
    let shape = |id: WeightId| graph.weight(id);
    match node.op {
        Op::Embed { words, positions, .. } => {
            for table in [Some(words), positions].into_iter().flatten().map(shape) {
                let bytes = table.elements() * FLOAT;
                // Read where the model's file is mapped, if it lies there as it is needed.
                if table.lies_as_f32 { plan.mapped(bytes) } else { plan.place(bytes) }
            }
            plan.place(TYPES * shape(words).columns * FLOAT);
        }
        Op::Norm { gain, .. } | Op::NormSlices { gain, .. } => {
            (0..2).for_each(|_| plan.place(shape(gain).elements() * FLOAT));
        }
        Op::Linear { weight, .. } | Op::GatedLinear { weight, .. } => {
            let gated = matches!(node.op, Op::GatedLinear { .. });
            let columns = packed_columns(arch, shape(weight).rows, gated);
            plan.place(columns * shape(weight).columns * FLOAT);
            plan.place(columns * FLOAT);
        }
        Op::Attention { bias, .. } => {
            if let Some(Bias { table, reach }) = bias.and_then(AttentionBias::buckets) {
                plan.place(shape(table).columns * (2 * reach + 1) * FLOAT);
            }
        }
        Op::Add | Op::Rotate { .. } | Op::Pool(_) => {}
    }
}

impl CpuWeight {
    pub(crate) fn load(
        arch: Arch,
        (graph, node): (&Graph, &Node),
        weights: &[Weight],
        into: &mut RegionWriter<HostBlock>,
    ) -> Result<Self, BackendError> {
        let of = |id: WeightId| &weights[id.index()];
        let stored = match node.op {
            Op::Embed { words, positions, types } => {
                Stored::Tables(Tables::new(of(words), positions.map(of), types.map(of), into)?)
            }
            Op::Norm { gain, bias, epsilon } | Op::NormSlices { gain, bias, epsilon, .. } => {
                Stored::Norm(Norm::new(of(gain), bias.map(of), epsilon, into)?)
            }
            Op::Linear { weight, bias, .. } | Op::GatedLinear { weight, bias, .. } => {
                let gated = matches!(node.op, Op::GatedLinear { .. });
                let shape = graph.weight(weight);
                let numbers = of(weight).to_f32();
                let rows = numbers.chunks_exact(shape.columns.max(1));
                let bias = bias.map(|bias| of(bias).to_f32());
                let bias = bias.iter().flat_map(|bias| bias.iter().copied());
                let size = Size { inputs: shape.columns, outputs: shape.rows, gated };
                Stored::Linear(Panels::pack(arch, size, rows, bias, into)?)
            }
            Op::Attention { bias: Some(AttentionBias::Buckets(Bias { table, reach })), .. } => {
                let heads = graph.weight(table).columns;
                Stored::RelativeBias(RelativeBias::new(&of(table).to_f32(), heads, reach, into)?)
            }
            Op::Attention { .. } | Op::Add | Op::Rotate { .. } | Op::Pool(_) => {
                return Err(other("load", "weights of an operation that has some"));
            }
        };
        Ok(Self(stored))
    }

    pub(crate) fn tables(&self) -> Result<&Tables, BackendError> {
        match &self.0 {
            Stored::Tables(tables) => Ok(tables),
            _ => Err(other("embed", "tables")),
        }
    }

    pub(crate) fn norm(&self) -> Result<&Norm, BackendError> {
        match &self.0 {
            Stored::Norm(norm) => Ok(norm),
            _ => Err(other("normalise", "gain and bias")),
        }
    }

    pub(crate) fn linear(&self) -> Result<&Panels, BackendError> {
        match &self.0 {
            Stored::Linear(panels) => Ok(panels),
            _ => Err(other("linear", "packed weights")),
        }
    }

    pub(crate) fn relative_bias(&self) -> Result<&RelativeBias, BackendError> {
        match &self.0 {
            Stored::RelativeBias(bias) => Ok(bias),
            _ => Err(other("attention", "relative biases")),
        }
    }
}

fn other(operation: &'static str, expected: &str) -> BackendError {
    BackendError { operation, reason: format!("expected {expected}: please report this") }
}
