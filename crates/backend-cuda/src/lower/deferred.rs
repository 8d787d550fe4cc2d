//! Norms that are left to those who read the rows: the layer in front writes its sums times gain, and
//! moments of each row beside them.
//!
//! Behind a product, which is linear, only two numbers of each row are missing, and two constants of
//! each output, which are folded when the layer is loaded. Whoever else reads such rows has them
//! normalised by a step of its own.

use vecmill_encoder::{Graph, Node, Op, RowBound, ValueId};

use super::{CudaKernel, CudaLowering, Draft, Form, Operand};
use crate::gemm::HopperGemm;
use crate::weights::InputNorm;

impl CudaLowering {
    /// Whether norms of so many columns are ever deferred.
    fn may_defer(&self, columns: usize) -> bool {
        // Of narrow planes deferred rows know nothing.
        self.hopper && !self.fp8 && HopperGemm::fits_deferred(columns)
    }

    /// The norm of a layer's input, if with some number of rows it is left to the layer.
    pub(super) fn input_norm(&self, graph: &Graph, node: &Node) -> Option<InputNorm> {
        let (Op::Linear { weight, .. } | Op::GatedLinear { weight, .. }, &[input]) =
            (&node.op, node.inputs.as_slice())
        else {
            return None;
        };
        node.layer?;
        let shape = graph.weight(*weight);
        let norm = graph.producer(input);
        let Op::Norm { gain, bias, epsilon } = norm.op else { return None };
        let &sum = norm.inputs.first()?;
        if !graph.is_read_once(sum) {
            return None; // it is kept, and normalised as it is added
        }
        let sum = graph.producer(sum);
        let computed = graph.producer(*sum.inputs.first()?);
        let behind_a_layer = sum.op == Op::Add && matches!(computed.op, Op::Linear { .. });
        let fits = self.may_defer(shape.columns) && HopperGemm::fits(shape.columns, shape.rows);
        (behind_a_layer && fits).then_some(InputNorm { gain, bias, epsilon })
    }
}

impl Draft<'_> {
    /// Whether a layer's `norm`, behind its residual, is left to those who read the rows.
    pub(super) fn defers(&self, layer: &Node, norm: &Node) -> bool {
        let rows = match self.rows {
            RowBound::Bucket(bucket) => self.graph.value(norm.output).rows.of(bucket),
            RowBound::UpTo(_) => usize::MAX,
        };
        let (inputs, columns) = self.layer_size(layer);
        let fits = self.lowering.may_defer(columns) && HopperGemm::fits(inputs, columns);
        fits && HopperGemm::deferring_pays(rows)
    }

    /// Whether a layer can normalise its input as it reads it.
    pub(super) fn folds(&self, layer: &Node) -> bool {
        self.lowering.input_norm(self.graph, layer).is_some()
    }

    /// A value whose rows are normalised: by a step that comes now, if that is still to be done.
    pub(super) fn normalised(&mut self, value: ValueId) -> Operand {
        let kept = self.kept(value);
        let Form::Deferred { norm } = kept.form else { return kept };
        let known = self.normalised[value.index()];
        let wide = known.unwrap_or_else(|| {
            let shape = self.graph.value(value);
            let wide = self.program.value(shape.rows, self.planes(shape.columns, Form::Wide));
            self.push(CudaKernel::Normalize { norm }, vec![kept.value], vec![wide], 0);
            self.normalised[value.index()] = Some(wide);
            wide
        });
        Operand { value: wide, form: Form::Wide }
    }
}
