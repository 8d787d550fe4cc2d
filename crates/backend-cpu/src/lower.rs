//! How the CPU computes a graph: a kernel for each operation, but embedding and adding normalise what they
//! write, in place.

use pulp::Arch;
use vecmill_encoder::{AttentionBias, Graph, Lower, Node, Op, Program, RowBound, Step, WeightId};
use vecmill_encoder::{Precision, WeightPlan};
use vecmill_model::{Activation, DType, Heads, Poolings, Rotary, Window};

use crate::{attention, weights};

const FLOAT: usize = size_of::<f32>();

/// How the CPU computes: in `f32`, on so many threads.
#[derive(Debug, Clone, Copy)]
pub struct CpuLowering {
    pub(crate) arch: Arch,
    pub(crate) threads: usize,
}

/// What a step computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CpuKernel {
    /// Looks tokens up, and normalises their rows.
    Embed {
        /// Word, position and type tables.
        tables: WeightId,
        /// Gain and bias, if rows are normalised.
        norm: Option<WeightId>,
    },
    /// Normalises rows.
    Norm {
        /// Gain and bias.
        norm: WeightId,
        /// Of a row.
        columns: usize,
    },
    /// Normalises the first slices of each row.
    NormSlices {
        /// Gain and bias.
        norm: WeightId,
        /// Of a row.
        columns: usize,
        /// Of a slice.
        width: usize,
    },
    /// Adds two matrices.
    Add {
        /// Of a row.
        columns: usize,
    },
    /// Adds two matrices, and normalises the sum's rows.
    AddNorm {
        /// Gain and bias.
        norm: WeightId,
        /// Of a row.
        columns: usize,
    },
    /// Multiplies by packed weights.
    Linear {
        /// Weights and bias.
        layer: WeightId,
        /// Applied to each element.
        activation: Activation,
    },
    /// Multiplies by packed weights, and each column of the gate with its partner.
    GatedLinear {
        /// Weights and bias.
        layer: WeightId,
        /// Applied to each element of the gate.
        activation: Activation,
    },
    /// Turns queries and keys by their positions.
    Rotate {
        /// How a row is divided.
        heads: Heads,
        /// By which angles.
        rotary: Rotary,
    },
    /// Attention within each sequence.
    Attention {
        /// How a row is divided.
        heads: Heads,
        /// Which keys a query sees.
        window: Window,
        /// Added to scores.
        bias: Option<AttentionBias>,
    },
    /// Makes one row of a sequence's.
    Pool {
        /// How.
        poolings: Poolings,
        /// Of a token's row.
        columns: usize,
    },
}

impl CpuLowering {
    /// Of a backend with so many `threads`, at least one.
    pub fn new(threads: usize) -> Self {
        Self { arch: Arch::new(), threads: threads.max(1) }
    }

    fn kernel(graph: &Graph, node: &Node) -> CpuKernel {
        let columns = graph.value(node.output).columns;
        match node.op {
            Op::Embed { words, .. } => CpuKernel::Embed { tables: words, norm: None },
            Op::Norm { gain, .. } => CpuKernel::Norm { norm: gain, columns },
            Op::NormSlices { gain, width, .. } => {
                CpuKernel::NormSlices { norm: gain, columns, width }
            }
            Op::Add => CpuKernel::Add { columns },
            Op::Linear { weight, activation, .. } => {
                CpuKernel::Linear { layer: weight, activation }
            }
            Op::GatedLinear { weight, activation, .. } => {
                CpuKernel::GatedLinear { layer: weight, activation }
            }
            Op::Rotate { heads, rotary } => CpuKernel::Rotate { heads, rotary },
            Op::Attention { heads, window, bias } => CpuKernel::Attention { heads, window, bias },
            Op::Pool(poolings) => {
                CpuKernel::Pool { poolings, columns: columns / poolings.count().max(1) }
            }
        }
    }

    fn scratch(&self, kernel: CpuKernel, longest: usize) -> usize {
        match kernel {
            CpuKernel::Attention { heads, .. } => {
                attention::workspace(self.arch, self.threads, longest, heads.size)
            }
            _ => 0,
        }
    }
}

/// The kernel that computes `first` and the norm of what it writes, where there is one.
fn normalising(first: CpuKernel, norm: WeightId) -> Option<CpuKernel> {
    match first {
        CpuKernel::Embed { tables, norm: None } => {
            Some(CpuKernel::Embed { tables, norm: Some(norm) })
        }
        CpuKernel::Add { columns } => Some(CpuKernel::AddNorm { norm, columns }),
        _ => None,
    }
}

impl Lower for CpuLowering {
    type Kernel = CpuKernel;

    fn lower(&self, graph: &Graph, rows: RowBound) -> Program<CpuKernel> {
        let mut program = Program::new(graph, rows);
        let mut nodes = graph.nodes();
        while let Some((node, mut rest)) = nodes.split_first() {
            let (mut kernel, mut output) = (Self::kernel(graph, node), node.output);
            if let Some((next, behind)) = rest.split_first()
                && let Op::Norm { gain, .. } = next.op
                && next.inputs == [output]
                && graph.is_read_once(output)
                && let Some(both) = normalising(kernel, gain)
            {
                (kernel, output, rest) = (both, next.output, behind);
            }
            let in_place = matches!(
                kernel,
                CpuKernel::Add { .. }
                    | CpuKernel::AddNorm { .. }
                    | CpuKernel::NormSlices { .. }
                    | CpuKernel::Rotate { .. }
            );
            match node.inputs.first() {
                Some(&input) if in_place && graph.is_read_once(input) => {
                    program.share(output, input);
                }
                _ => program.keep(output, vec![graph.value(output).columns * FLOAT]),
            }
            program.push(Step {
                kernel,
                reads: node.inputs.clone(),
                writes: vec![output],
                scratch: self.scratch(kernel, rows.shape().longest),
                reads_batch: node.op.reads_batch(),
            });
            nodes = rest;
        }
        program
    }

    fn store(&self, graph: &Graph, node: &Node, plan: &mut WeightPlan) {
        weights::store(self.arch, graph, node, plan);
    }

    fn precision(&self, _graph: &Graph, _node: &Node, _rows: RowBound) -> Precision {
        Precision::of(DType::F32)
    }
}
