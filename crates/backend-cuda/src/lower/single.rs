//! Operations that are a step each.

use vecmill_encoder::{AttentionBias, Node, Op};
use vecmill_model::Window;

use super::{CudaKernel, Draft, Form};

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
        Op::Attention { heads, window, bias } => {
            if window != Window::FULL || heads.keys != heads.queries {
                missing(draft, node, "attention within a window, or with shared keys");
                return Some(1);
            }
            if bias == Some(AttentionBias::Alibi) {
                missing(draft, node, "attention with linear biases");
                return Some(1);
            }
            let qkv = draft.normalised(*node.inputs.first()?).value;
            let bias = bias.and_then(AttentionBias::buckets).map(|bias| bias.table);
            let heads = heads.queries;
            for output in draft.keep_apart(node.output) {
                let kernel = CudaKernel::Attention { heads, bias, output };
                draft.push_batch(kernel, vec![qkv], node.output);
            }
        }
        Op::Pool(poolings) => {
            let input = draft.normalised(*node.inputs.first()?).value;
            draft.keep(node.output, Form::Wide);
            draft.push_batch(CudaKernel::Pool(poolings), vec![input], node.output);
        }
        Op::GatedLinear { .. } => missing(draft, node, "a gated linear layer"),
        Op::NormSlices { .. } => missing(draft, node, "norms of slices"),
        Op::Rotate { .. } => missing(draft, node, "rotary positions"),
        Op::Embed { .. } => missing(draft, node, "embedding without a norm"),
        Op::Norm { .. } => missing(draft, node, "a norm by itself"),
        Op::Add => missing(draft, node, "a sum without a norm"),
    }
    Some(1)
}

fn missing(draft: &mut Draft<'_>, node: &Node, what: &'static str) {
    let reads = node.inputs.iter().map(|&input| draft.normalised(input).value).collect();
    draft.keep(node.output, Form::Wide);
    draft.push(CudaKernel::Missing(what), reads, vec![node.output], 0);
}
