//! Layers that normalise what they read, where rows are many: the layer in front adds the residual and
//! makes moments of each row, the sum is kept as it is, and the layer behind normalises as it reads.
//!
//! The choice behind it: the sum is the next residual, so it can't be kept times the norm's gain as other
//! [deferred](super::deferred) rows are. Those who read the norm have its gain and bias in their weights
//! instead, with few rows as well, and the norm itself has a gain of ones.

use vecmill_encoder::{Node, Op, RowBound};
use vecmill_model::Activation;

use super::{CudaKernel, Draft, Form};

/// Linear, add, norm, where others read the sum too: one step.
pub(super) fn linear_sum(draft: &mut Draft<'_>, nodes: &[Node]) -> Option<usize> {
    let [linear, add, norm, ..] = nodes else { return None };
    let (
        Op::Linear { weight: layer, activation: Activation::Identity, .. },
        Op::Add,
        Op::Norm { gain, .. },
    ) = (linear.op, add.op, norm.op)
    else {
        return None;
    };
    let (&[input], &[computed, residual]) = (linear.inputs.as_slice(), add.inputs.as_slice())
    else {
        return None;
    };
    let linked = computed == linear.output && norm.inputs == [add.output];
    let folded = linked && draft.lowering.is_folded(draft.graph, norm);
    let alone = draft.graph.is_read_once(linear.output);
    let bounded = matches!(draft.rows, RowBound::Bucket(_));
    if !(folded && alone && bounded && draft.defers(linear, norm)) {
        return None;
    }
    let (input, residual) = (draft.normalised(input), draft.normalised(residual));
    let output = draft.keep(add.output, Form::Deferred { norm: gain });
    let kernel = CudaKernel::LinearNorm {
        layer,
        norm: gain,
        input: input.form,
        residual: residual.form,
        output,
    };
    let scratch = draft.linear_scratch(linear);
    draft.push(kernel, vec![input.value, residual.value], vec![add.output], scratch);
    draft.name_both(add.output, norm.output, output);
    Some(3)
}
