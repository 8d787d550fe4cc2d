//! Linear layers in FP8, and the planes that they read: whoever computes their input writes it in e4m3, for
//! them alone or beside its rows in the format of activations.
//!
//! The choice behind it: no pass over memory converts anything. Which layers are narrow follows from
//! the graph, so that each weight is stored in one form.

use vecmill_encoder::{Graph, Node, Op, ValueId};
use vecmill_model::e4m3;

use super::{CudaLowering, Draft, Form};

impl CudaLowering {
    /// Whether a linear layer multiplies operands in FP8: where that suits its sizes, costs no
    /// precision that counts, and its input can be had so.
    pub(super) fn is_narrow(&self, graph: &Graph, node: &Node) -> bool {
        let (Op::Linear { weight, .. } | Op::GatedLinear { weight, .. }, &[input]) =
            (&node.op, node.inputs.as_slice())
        else {
            return false;
        };
        let shape = graph.weight(*weight);
        self.fp8
            && !graph.is_delicate(node)
            && e4m3::suits(shape.columns, shape.rows)
            && self.writes_narrow(graph, input)
    }

    /// Whether there is a kernel that computes this value in FP8.
    fn writes_narrow(&self, graph: &Graph, value: ValueId) -> bool {
        let producer = graph.producer(value);
        match producer.op {
            Op::Norm { .. } | Op::Attention { .. } | Op::GatedLinear { .. } => true,
            Op::Linear { .. } => self.is_narrow(graph, producer),
            Op::Embed { .. } | Op::Add | Op::Rotate { .. } | Op::Pool(_) => false,
        }
    }

    /// What those who read a value want of it, if nothing is deferred.
    fn form_read(&self, graph: &Graph, value: ValueId) -> Form {
        // Norms write wide rows in any case.
        let mut wide = matches!(graph.producer(value).op, Op::Norm { .. });
        wide |= graph.outputs().contains(&value);
        let mut narrow = false;
        for reader in graph.readers(value) {
            let reads_narrow = self.is_narrow(graph, reader);
            (wide, narrow) = (wide || !reads_narrow, narrow || reads_narrow);
        }
        match (wide, narrow) {
            (true, true) => Form::Both,
            (false, true) => Form::Narrow,
            (_, false) => Form::Wide,
        }
    }
}

impl Draft<'_> {
    /// Keeps a value as those want it who read it.
    pub(super) fn keep_read(&mut self, value: ValueId) -> Form {
        let form = self.lowering.form_read(self.graph, value);
        self.keep(value, form)
    }

    /// The same for a value whose kernel writes one plane at a time: what each of its steps writes.
    pub(super) fn keep_apart(&mut self, value: ValueId) -> Vec<Form> {
        match self.keep_read(value) {
            Form::Both => vec![Form::Wide, Form::Narrow],
            form => vec![form],
        }
    }
}
