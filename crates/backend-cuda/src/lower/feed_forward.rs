//! A transformer's feed-forward block: one step. Where its rows are short and fill the device, it is one
//! kernel, and what is between the layers, four times as wide as the rest, takes no memory.

use vecmill_encoder::{Node, Op, RowBound};
use vecmill_model::Activation;

use super::{CudaKernel, Draft, Form};
use crate::gemm::HopperGemm;

/// Linear, linear, add, norm, where what is added is what the first layer reads: one step.
pub(super) fn feed_forward(draft: &mut Draft<'_>, nodes: &[Node]) -> Option<usize> {
    let (
        [
            Op::Linear { weight: up, activation, .. },
            Op::Linear { weight: down, activation: Activation::Identity, .. },
            Op::Add,
            Op::Norm { gain, .. },
        ],
        [first, second, add, norm],
    ) = draft.chain(nodes)?
    else {
        return None;
    };
    let &[input] = first.inputs.as_slice() else { return None };
    if add.inputs.get(1) != Some(&input) {
        return None;
    }
    let defers = draft.defers(second, norm);
    let read_deferred = defers && draft.folds(first);
    let input = if read_deferred { draft.kept(input) } else { draft.normalised(input) };
    let fused = !input.form.is_deferred() && fuses(draft, first);
    let output = if defers && !fused {
        draft.keep(norm.output, Form::Deferred { norm: gain })
    } else {
        draft.keep_read(norm.output)
    };
    let between = (!fused).then(|| draft.keep_read(first.output));
    let (mut writes, mut scratch) = (vec![norm.output], 0);
    if between.is_some() {
        writes.push(first.output);
        scratch = draft.linear_scratch(first).max(draft.linear_scratch(second));
    }
    let input_form = input.form;
    let kernel = CudaKernel::FeedForward {
        up,
        activation,
        down,
        norm: gain,
        input: input_form,
        between,
        output,
    };
    draft.push(kernel, vec![input.value], writes, scratch);
    Some(4)
}

/// Whether a block that begins with this layer is one kernel. With any number of rows, it takes most
/// memory if it is not.
fn fuses(draft: &Draft<'_>, first: &Node) -> bool {
    let RowBound::Bucket(bucket) = draft.rows else { return false };
    let rows = draft.graph.value(first.output).rows.of(bucket);
    let (inputs, outputs) = draft.layer_size(first);
    let lowering = draft.lowering;
    // Of narrow planes, which FP8 also has of wide layers' outputs, the kernel knows nothing.
    let ours = lowering.hopper && !lowering.fp8;
    ours && HopperGemm::fuses(rows, inputs, outputs, lowering.multiprocessors)
}
