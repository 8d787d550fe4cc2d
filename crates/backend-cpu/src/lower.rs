//! What the CPU's operations take of memory, known without its threads.

use pulp::Arch;
use vecmill_encoder::{EmbeddingTensors, LinearShape, Lower, NormTensors, Weight, WeightPlan};
use vecmill_model::TensorView;

use crate::{attention, matmul};

const FLOAT: usize = size_of::<f32>();

/// How the CPU computes: in `f32`, on so many threads.
#[derive(Debug, Clone, Copy)]
pub struct CpuLowering {
    pub(crate) arch: Arch,
    threads: usize,
}

impl CpuLowering {
    /// Of a backend with so many `threads`, at least one.
    pub fn new(threads: usize) -> Self {
        Self { arch: Arch::new(), threads: threads.max(1) }
    }

    /// A table is read where the model's file is mapped, if it lies there as it is needed.
    fn table(tensor: &TensorView, plan: &mut WeightPlan) {
        let bytes = tensor.elements() * FLOAT;
        if tensor.lies_as_f32() { plan.mapped(bytes) } else { plan.place(bytes) }
    }

    fn norm(tensors: &NormTensors, plan: &mut WeightPlan) {
        plan.place(tensors.gain.elements() * FLOAT);
        plan.place(tensors.bias.elements() * FLOAT);
    }
}

impl Lower for CpuLowering {
    fn store(&self, weight: Weight<'_>, plan: &mut WeightPlan) {
        match weight {
            Weight::Linear(stack) => {
                let LinearShape { inputs, outputs, .. } = stack.shape();
                let columns = matmul::packed_columns(self.arch, outputs);
                plan.place(columns * inputs * FLOAT);
                plan.place(columns * FLOAT);
            }
            Weight::Norm(tensors) => Self::norm(tensors, plan),
            Weight::Embeddings(EmbeddingTensors { words, positions, norm, .. }) => {
                Self::table(words, plan);
                Self::table(positions, plan);
                plan.place(norm.gain.elements() * FLOAT);
                Self::norm(norm, plan);
            }
            Weight::RelativeBias { table, max_distance } => {
                let heads = table.shape().last().copied().unwrap_or(0);
                plan.place(heads * (2 * max_distance + 1) * FLOAT);
            }
        }
    }

    fn element_bytes(&self) -> usize {
        FLOAT
    }

    fn attention_workspace(&self, _tokens: usize, longest: usize, head_size: usize) -> usize {
        attention::workspace(self.arch, self.threads, longest, head_size)
    }
}
