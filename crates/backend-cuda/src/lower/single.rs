//! Operations that are a step each.

use vecmill_encoder::{Node, Op};

use super::{CudaKernel, Draft, Form};
use crate::kernels::MAX_PAIRS;

/// Whatever comes next: one step. What has no kernel becomes one that fails.
pub(super) fn single(draft: &mut Draft<'_>, nodes: &[Node]) -> Option<usize> {
    let node = nodes.first()?;
    match node.op {
        Op::Linear { weight: layer, activation, .. } => {
            let &input = node.inputs.first()?;
            let folds = draft.folds(node);
            let input = if folds { draft.kept(input) } else { draft.normalised(input) };
            let scratch = draft.linear_scratch(node);
            for output in draft.keep_apart(node.output) {
                let input_form = input.form;
                let kernel = CudaKernel::Linear { layer, activation, input: input_form, output };
                draft.push(kernel, vec![input.value], vec![node.output], scratch);
            }
        }
        Op::Attention { heads, .. } if heads.keys != heads.queries => {
            missing(draft, node, "attention with shared keys");
        }
        Op::Attention { heads, window, bias } => {
            let qkv = draft.normalised(*node.inputs.first()?).value;
            let heads = heads.queries;
            for output in draft.keep_apart(node.output) {
                let kernel = CudaKernel::Attention { heads, window, bias, output };
                draft.push_batch(kernel, vec![qkv], node.output);
            }
        }
        Op::Rotate { rotary, .. } if rotary.dims > 2 * MAX_PAIRS => {
            missing(draft, node, "rotary positions of so many columns");
        }
        Op::Rotate { heads, rotary } => {
            let &input = node.inputs.first()?;
            let qkv = draft.normalised(input).value;
            if draft.graph.is_read_once(input) {
                draft.program.share(node.output, qkv);
            } else {
                draft.keep(node.output, Form::Wide);
            }
            draft.push_batch(CudaKernel::Rotate { heads, rotary }, vec![qkv], node.output);
        }
        Op::Pool(poolings) => {
            let input = draft.normalised(*node.inputs.first()?).value;
            draft.keep(node.output, Form::Wide);
            draft.push_batch(CudaKernel::Pool(poolings), vec![input], node.output);
        }
        Op::Norm { gain, .. } => {
            let input = draft.normalised(*node.inputs.first()?).value;
            let output = draft.keep_read(node.output);
            let kernel = CudaKernel::Norm { norm: gain, output };
            draft.push(kernel, vec![input], vec![node.output], 0);
        }
        Op::Add => {
            let reads = node.inputs.iter().map(|&input| draft.normalised(input).value).collect();
            draft.keep(node.output, Form::Wide);
            draft.push(CudaKernel::Add, reads, vec![node.output], 0);
        }
        Op::Embed { .. } => missing(draft, node, "embedding without a norm"),
        // Its rule takes all of them.
        Op::GatedLinear { .. } => missing(draft, node, "this gated linear layer"),
    }
    Some(1)
}

fn missing(draft: &mut Draft<'_>, node: &Node, what: &'static str) {
    let reads = node.inputs.iter().map(|&input| draft.normalised(input).value).collect();
    draft.keep(node.output, Form::Wide);
    draft.push(CudaKernel::Missing(what), reads, vec![node.output], 0);
}
