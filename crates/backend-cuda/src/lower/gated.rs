//! Gated linear layers: one kernel where rows are many, else the product of both halves and a gate behind
//! it.
//!
//! The choice behind it: gates and ups lie by turns in the weight ([`gate_group`]), so that the product's
//! own kernel has both when it ends. For few rows the library is faster, and what it makes takes little
//! memory.

use vecmill_encoder::{Node, Op, RowBound};
use vecmill_model::Activation;

use super::{CudaKernel, Draft, Form};
use crate::gemm::HopperGemm;
use crate::weights::gate_group;

/// A gated linear layer: one step or two.
pub(super) fn gated(draft: &mut Draft<'_>, nodes: &[Node]) -> Option<usize> {
    let node = nodes.first()?;
    let Op::GatedLinear { weight: layer, activation, .. } = node.op else { return None };
    let &input = node.inputs.first()?;
    let input = if draft.folds(node) { draft.kept(input) } else { draft.normalised(input) };
    let output = draft.keep_read(node.output);
    if is_one_kernel(draft, node, output) {
        let kernel = CudaKernel::GatedLinear { layer, activation, input: input.form, output };
        draft.push(kernel, vec![input.value], vec![node.output], 0);
        return Some(1);
    }
    let shape = draft.graph.value(node.output);
    let halves = draft.planes(2 * shape.columns, Form::Wide);
    let halves = draft.program.value(shape.rows, halves);
    let product = CudaKernel::Linear {
        layer,
        activation: Activation::Identity,
        input: input.form,
        output: Form::Wide,
    };
    let scratch = draft.product_scratch(shape.rows, 2 * shape.columns);
    draft.push(product, vec![input.value], vec![halves], scratch);
    let gate = CudaKernel::Gate { activation, group: gate_group(shape.columns), output };
    draft.push(gate, vec![halves], vec![node.output], 0);
    Some(1)
}

/// With any number of rows, it takes most memory if it is not.
fn is_one_kernel(draft: &Draft<'_>, node: &Node, output: Form) -> bool {
    let RowBound::Bucket(bucket) = draft.rows else { return false };
    let rows = draft.graph.value(node.output).rows.of(bucket);
    let (inputs, outputs) = draft.layer_size(node);
    let narrow = draft.lowering.is_narrow(draft.graph, node);
    let one_plane = output == Form::Wide || output == Form::Narrow && narrow;
    let fits = HopperGemm::fits(inputs, 2 * outputs) && HopperGemm::fits(inputs, outputs);
    draft.lowering.hopper && one_plane && fits && HopperGemm::gating_pays(rows)
}
