//! A linear layer with its residual, normalised: one step, in one launch or in two as `choose` has it. Where
//! rows are many, the norm is [deferred](super::deferred).

use vecmill_encoder::{Node, Op};
use vecmill_model::Activation;

use super::{CudaKernel, Draft, Form};

/// Linear, add, norm: one step.
pub(super) fn linear_norm(draft: &mut Draft<'_>, nodes: &[Node]) -> Option<usize> {
    let (
        [
            Op::Linear { weight: layer, activation: Activation::Identity, .. },
            Op::Add,
            Op::Norm { gain, .. },
        ],
        [linear, add, norm],
    ) = draft.chain(nodes)?
    else {
        return None;
    };
    let &[_, residual] = add.inputs.as_slice() else { return None };
    let input = draft.normalised(*linear.inputs.first()?);
    let defers = draft.defers(linear, norm);
    let residual = if defers { draft.kept(residual) } else { draft.normalised(residual) };
    let output = if defers {
        draft.keep(norm.output, Form::Deferred { norm: gain })
    } else {
        draft.keep_read(norm.output)
    };
    let kernel = CudaKernel::LinearNorm {
        layer,
        norm: gain,
        input: input.form,
        residual: residual.form,
        output,
    };
    let scratch = draft.linear_scratch(linear);
    draft.push(kernel, vec![input.value, residual.value], vec![norm.output], scratch);
    Some(3)
}
