//! Queries and keys that are turned as they are computed: the pass over them that turning costs is saved
//! where rows are many.

use vecmill_encoder::{Node, Op, RowBound};
use vecmill_model::Activation;

use super::{CudaKernel, Draft, Form};
use crate::gemm::HopperGemm;

/// Linear, rotate: one kernel.
pub(super) fn rotated(draft: &mut Draft<'_>, nodes: &[Node]) -> Option<usize> {
    let (
        [
            Op::Linear { weight: layer, activation: Activation::Identity, .. },
            Op::Rotate { heads, rotary },
        ],
        [linear, rotate],
    ) = draft.chain(nodes)?
    else {
        return None;
    };
    let RowBound::Bucket(bucket) = draft.rows else { return None };
    let rows = draft.graph.value(linear.output).rows.of(bucket);
    let (inputs, outputs) = draft.layer_size(linear);
    let fits = HopperGemm::fits(inputs, outputs) && HopperGemm::fits_rotated(heads, rotary);
    if !(draft.lowering.hopper && fits && HopperGemm::rotating_pays(rows)) {
        return None;
    }
    let &input = linear.inputs.first()?;
    let input = if draft.folds(linear) { draft.kept(input) } else { draft.normalised(input) };
    draft.keep(rotate.output, Form::Wide);
    let kernel = CudaKernel::RotatedLinear { layer, input: input.form, heads, rotary };
    draft.push_batch(kernel, vec![input.value], rotate.output);
    Some(2)
}
