//! What the CPU's operations take of memory, known without its threads.

use vecmill_encoder::{
    EmbeddingTensors, LinearShape, Lower, NormTensors, TensorView, Weight, WeightPlan,
};

use crate::{CpuLowering, attention, matmul};

const FLOAT: usize = size_of::<f32>();

fn table(tensor: &TensorView, plan: &mut WeightPlan) {
    let bytes = tensor.elements() * FLOAT;
    if tensor.lies_as_f32() { plan.mapped(bytes) } else { plan.place(bytes) }
}

fn norm_of(tensors: &NormTensors, plan: &mut WeightPlan) {
    plan.place(tensors.gain.elements() * FLOAT);
    plan.place(tensors.bias.elements() * FLOAT);
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
            Weight::Norm(tensors) => norm_of(tensors, plan),
            Weight::Embeddings(EmbeddingTensors { words, positions, norm, .. }) => {
                table(words, plan);
                table(positions, plan);
                plan.place(norm.gain.elements() * FLOAT);
                norm_of(norm, plan);
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
