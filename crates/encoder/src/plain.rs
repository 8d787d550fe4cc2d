//! The program of a backend that fuses nothing: a step for each operation.

use crate::batch::Shape;
use crate::graph::{Graph, Node, Op};
use crate::program::{Program, RowBound, Step};

/// One step for each of the graph's operations, which is the step's kernel. A step reads and writes
/// the values of its node, and each of them has one plane.
///
/// `element_bytes` are those of a number in the format of activations. `scratch` says how much
/// memory an operation needs meanwhile, for a batch of a shape.
pub fn plain(
    graph: &Graph,
    rows: RowBound,
    element_bytes: usize,
    scratch: impl Fn(&Node, Shape) -> usize,
) -> Program<Op> {
    let mut program = Program::new(graph, rows);
    for node in graph.nodes() {
        program.keep(node.output, vec![graph.value(node.output).columns * element_bytes]);
        program.push(Step {
            kernel: node.op,
            reads: node.inputs.clone(),
            writes: vec![node.output],
            scratch: scratch(node, rows.shape()),
            reads_batch: node.op.reads_batch(),
        });
    }
    program
}
