//! What a GPU's operations take of memory, known without the GPU.

use vecmill_encoder::{
    EmbeddingTensors, LinearShape, Lower, NormTensors, StackTensors, Weight, WeightPlan,
};
use vecmill_model::{DType, TensorView};

use crate::gemm::{Bucket, Format, HopperGemm, workspace_bytes, workspace_limit};
use crate::kernels::{MIXES, ROW_MOMENTS_BYTES};
use crate::probe::DeviceInfo;

/// What cuBLASLt wants its workspace aligned to (its documentation of `cublasLtMatmul`).
pub(crate) const WORKSPACE_ALIGNMENT: usize = 256;

/// Of the largest part of compute capability 9.0.
const HOPPER_MULTIPROCESSORS: usize = 132;

/// How a GPU computes: in a format, with the kernels that it has for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaLowering {
    /// Of activations, and of all layers that are not narrow.
    pub(crate) format: Format,
    /// Whether there are narrow copies of activations, and layers that read them.
    pub(crate) fp8: bool,
    /// Whether our own kernels for compute capability 9.0 run.
    hopper: bool,
    multiprocessors: usize,
    /// The most scratch memory of a product.
    workspace_limit: usize,
}

impl CudaLowering {
    /// A GPU that need not be there: of those that compute in `format`, one that takes the most.
    pub fn most(format: DType) -> Self {
        let capability = (9, 0);
        let hopper = format != DType::F32;
        Self::new(format, capability, HOPPER_MULTIPROCESSORS, hopper)
    }

    /// What a GPU's driver takes beside weights and batches, roughly: context, libraries, kernels and
    /// graphs, as on an H200. What it really takes is measured where there is a GPU.
    pub const DRIVER_BYTES: usize = 540 << 20;

    /// The GPU of `info`; `hopper` says whether our own kernels for compute capability 9.0 run there.
    pub(crate) fn of(info: &DeviceInfo, format: DType, hopper: bool) -> Self {
        Self::new(format, info.compute_capability, info.multiprocessors as usize, hopper)
    }

    fn new(format: DType, capability: (u32, u32), multiprocessors: usize, hopper: bool) -> Self {
        let (fp8, workspace_limit) = (format == DType::F8E4M3, workspace_limit(capability));
        Self { format: format.into(), fp8, hopper, multiprocessors, workspace_limit }
    }

    /// Whether normalisations of so many columns are ever deferred.
    pub(crate) fn may_defer(&self, columns: usize) -> bool {
        // Of narrow copies deferred rows know nothing.
        self.hopper && !self.fp8 && HopperGemm::fits_deferred(columns)
    }

    fn linear(&self, stack: StackTensors<'_>, plan: &mut WeightPlan) {
        let shape = stack.shape();
        let LinearShape { inputs, outputs, .. } = shape;
        let pairs = 2 * outputs * size_of::<f32>();
        if self.is_narrow(shape) {
            plan.place(outputs * inputs * DType::F8E4M3.bytes());
            plan.place(pairs);
            return;
        }
        plan.place(outputs * inputs * self.format.bytes());
        plan.place(outputs * self.format.bytes());
        plan.place(outputs * size_of::<f32>());
        if stack.input_norm.is_some() && self.may_defer(inputs) {
            plan.place(pairs);
        }
    }

    fn tensor(&self, tensor: &TensorView, plan: &mut WeightPlan) {
        plan.place(tensor.elements() * self.format.bytes());
    }

    fn norm(tensors: &NormTensors, plan: &mut WeightPlan) {
        plan.place(tensors.gain.elements() * size_of::<f32>());
        plan.place(tensors.bias.elements() * size_of::<f32>());
    }
}

impl Lower for CudaLowering {
    fn store(&self, weight: Weight<'_>, plan: &mut WeightPlan) {
        match weight {
            Weight::Linear(stack) => self.linear(stack, plan),
            Weight::Norm(tensors) => Self::norm(tensors, plan),
            Weight::Embeddings(EmbeddingTensors { words, positions, types, norm }) => {
                let tables = [Some(words), Some(positions), types.as_ref()];
                tables.into_iter().flatten().for_each(|table| self.tensor(table, plan));
                Self::norm(norm, plan);
            }
            Weight::RelativeBias { table, max_distance } => {
                let heads = table.shape().last().copied().unwrap_or(0);
                plan.place(heads * (2 * max_distance + 1) * size_of::<f32>());
            }
        }
    }

    fn element_bytes(&self) -> usize {
        self.format.bytes()
    }

    fn narrow_bytes(&self) -> usize {
        if self.fp8 { DType::F8E4M3.bytes() } else { self.element_bytes() }
    }

    fn is_narrow(&self, layer: LinearShape) -> bool {
        self.fp8 && !layer.wide && layer.suits_e4m3()
    }

    fn linear_workspace(&self, rows: usize, _inputs: usize, outputs: usize) -> usize {
        // What may be cut off at the start to align it.
        workspace_bytes(rows, outputs, self.workspace_limit) + WORKSPACE_ALIGNMENT
    }

    fn fuses_feed_forward(&self, rows: usize, up: LinearShape, _down: LinearShape) -> bool {
        // Of narrow copies, which FP8 also has of wide layers' outputs, the kernel knows nothing.
        let ours = self.hopper && !self.fp8;
        ours && HopperGemm::fuses(rows, up.inputs, up.outputs, self.multiprocessors)
    }

    fn defers_norm(&self, rows: usize, columns: usize) -> bool {
        self.may_defer(columns) && HopperGemm::deferring_pays(rows)
    }

    fn deferred_bytes(&self) -> usize {
        ROW_MOMENTS_BYTES
    }

    fn way(&self, rows: usize, planned: usize) -> u64 {
        // Of the library, an algorithm for each bucket, and whether it or our own kernel was measured
        // to be faster, for each octave; each bucket is in one.
        let library = Bucket::of(rows).most() as u64;
        if !self.hopper {
            return library;
        }
        let rules = |rows| HopperGemm::way(rows) as u64;
        let fused = u64::from(HopperGemm::fills(planned, self.multiprocessors));
        ((library * 4 + rules(rows)) * 4 + rules(planned)) * 2 + fused
    }

    fn attention_mixes(&self) -> &'static [(usize, usize)] {
        &MIXES
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use vecmill_model::Activation;

    use super::*;

    /// All that decides on kernels and algorithms of a batch of `rows`, planned as `planned`.
    fn decisions(lowering: &CudaLowering, rows: usize, planned: usize) -> String {
        let shape = |inputs, outputs| LinearShape { inputs, outputs, wide: false };
        let sizes = [(384, 384), (384, 1536), (1536, 384), (768, 768), (1024, 4096), (4096, 1024)];
        let ours = sizes.map(|(inputs, outputs)| {
            let pays = [Activation::Identity, Activation::Gelu]
                .map(|activation| HopperGemm::pays(rows, inputs, outputs, activation));
            (
                pays,
                HopperGemm::norm_pays(rows, outputs),
                HopperGemm::variants(rows, inputs, outputs),
            )
        });
        let fused = lowering.fuses_feed_forward(planned, shape(384, 1536), shape(1536, 384));
        let deferred = [768, 1024].map(|columns| lowering.defers_norm(planned, columns));
        let octave = rows.next_power_of_two();
        let library = format!("{:?} {octave} {fused} {deferred:?}", Bucket::of(rows));
        if lowering.hopper { format!("{library} {ours:?}") } else { library }
    }

    #[test]
    fn rows_of_one_way_are_decided_on_alike() {
        for format in [DType::F16, DType::F8E4M3, DType::F32] {
            let lowering = CudaLowering::most(format);
            let mut known: HashMap<u64, String> = HashMap::new();
            for rows in 1..40_000_usize {
                for planned in [rows, rows.next_multiple_of(512)] {
                    let found = decisions(&lowering, rows, planned);
                    let way = lowering.way(rows, planned);
                    let first = known.entry(way).or_insert_with(|| found.clone());
                    assert_eq!(*first, found, "{format:?} {rows} planned as {planned}");
                }
            }
            assert!(known.len() < 500, "{} ways", known.len());
        }
    }

    #[test]
    fn a_gpu_that_need_not_be_there_takes_no_less_than_any() {
        for format in [DType::F32, DType::F16, DType::BF16, DType::F8E4M3] {
            let most = CudaLowering::most(format);
            for (capability, hopper) in [((7, 5), false), ((8, 9), false), ((12, 0), false)] {
                let other = CudaLowering::new(format, capability, 80, hopper);
                for rows in [1, 512, 16_384] {
                    let workspace = |of: CudaLowering| of.linear_workspace(rows, 384, 1536);
                    assert!(workspace(other) <= workspace(most));
                }
                assert!(!other.defers_norm(usize::MAX, 768));
            }
            assert_eq!(most.defers_norm(usize::MAX, 768), most.hopper && !most.fp8);
        }
    }
}
