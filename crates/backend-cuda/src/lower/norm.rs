//! Rows that are normalised as they are written: embedded tokens, and a sum with its residual.

use vecmill_encoder::{Node, Op};

use super::{CudaKernel, Draft};

/// Embed, norm: one kernel.
pub(super) fn embed_norm(draft: &mut Draft<'_>, nodes: &[Node]) -> Option<usize> {
    let ([Op::Embed { words, .. }, Op::Norm { gain, .. }], [_, norm]) = draft.chain(nodes)? else {
        return None;
    };
    let output = draft.keep_read(norm.output);
    let kernel = CudaKernel::EmbedNorm { tables: words, norm: gain, output };
    draft.push_batch(kernel, vec![], norm.output);
    Some(2)
}

/// Add, norm: one kernel.
pub(super) fn add_norm(draft: &mut Draft<'_>, nodes: &[Node]) -> Option<usize> {
    let ([Op::Add, Op::Norm { gain, .. }], [add, norm]) = draft.chain(nodes)? else {
        return None;
    };
    let reads: Vec<_> = add.inputs.iter().map(|&input| draft.normalised(input).value).collect();
    let output = draft.keep_read(norm.output);
    let kernel = CudaKernel::AddNorm { norm: gain, output, keeps_sum: false };
    draft.push(kernel, reads, vec![norm.output], 0);
    Some(2)
}
