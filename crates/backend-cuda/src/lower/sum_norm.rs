//! Layers that normalise what they read keep the sum, as their residual: one kernel makes both, and reads
//! the sum no second time. What is normalised is the sum as it was rounded, so bits are those of two steps.

use vecmill_encoder::{Node, Op};

use super::{CudaKernel, Draft, Form};

/// Add, norm, where others read the sum too: one kernel.
pub(super) fn sum_norm(draft: &mut Draft<'_>, nodes: &[Node]) -> Option<usize> {
    let [add, norm, ..] = nodes else { return None };
    let (Op::Add, Op::Norm { gain, .. }) = (add.op, norm.op) else { return None };
    if norm.inputs != [add.output] {
        return None;
    }
    let reads: Vec<_> = add.inputs.iter().map(|&input| draft.normalised(input).value).collect();
    draft.keep(add.output, Form::Wide);
    let output = draft.keep_read(norm.output);
    let kernel = CudaKernel::AddNorm { norm: gain, output, keeps_sum: true };
    draft.push(kernel, reads, vec![norm.output, add.output], 0);
    Some(2)
}

#[cfg(test)]
mod tests {
    use vecmill_encoder::{GraphBuilder, Lower, RowBound, Shape};
    use vecmill_model::{DType, Norm, TensorView, Weight};

    use super::super::CudaLowering;
    use super::*;

    #[test]
    fn a_sum_that_is_read_again_is_made_beside_its_norm() {
        let weight = |shape: &[usize]| {
            let count = shape.iter().product();
            Weight::Tensor(TensorView::from_f32("w", shape, vec![0.0; count]).unwrap())
        };
        let norm = Norm { gain: weight(&[64]), bias: None, epsilon: 1e-5 };
        let mut graph = GraphBuilder::new(1);
        let rows = graph.embed(&weight(&[4, 64]), None, None);
        let rows = graph.norm(rows, &norm);
        let kept = graph.add(rows, rows);
        let normalised = graph.norm(kept, &norm);
        let sum = graph.add(normalised, kept);
        let (graph, _) = graph.finish(vec![sum]);
        let shape = Shape { tokens: 9, sequences: 1, longest: 9 };
        let program = CudaLowering::most(DType::F16).lower(&graph, RowBound::Bucket(shape));
        let [_, both, last] = program.steps() else { panic!("{:?}", program.steps()) };
        assert!(matches!(both.kernel, CudaKernel::AddNorm { keeps_sum: true, .. }));
        assert_eq!(
            (&both.writes[..], &last.reads[..]),
            (&[normalised, kept][..], &[normalised, kept][..])
        );
    }
}
