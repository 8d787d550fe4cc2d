//! How a GPU computes a graph: known without the GPU.
//!
//! - [`CudaLowering`] has the facts that everything follows from; [`CudaKernel`] is what a step computes,
//!   [`Form`] what is kept of a matrix.
//! - `RULES` make steps of operations, a file for each kind: `feed_forward`, `linear_norm`, `norm`, `sum_norm`,
//!   `gated`, `rotated`, and `single` for what is a step by itself.
//! - `narrow` says who reads and writes FP8, `deferred` which norms are left to those who read the rows.
//!
//! The choice behind it: all that memory depends on is decided here, by rules that see the graph, so
//! that what is planned is what runs. What only takes time, such as which of two kernels is faster,
//! is measured on the device and decided there (`gemm/choose`).

mod deferred;
mod feed_forward;
mod gated;
mod linear_norm;
mod narrow;
mod norm;
mod rotated;
mod single;
mod sum_norm;

use vecmill_encoder::{AttentionBias, Graph, Lower, Node, Op, Program, RowBound, Step};
use vecmill_encoder::{Precision, Rows, ValueId, WeightId, WeightPlan};
use vecmill_model::{Activation, DType, Heads, Poolings, Rotary, Window};

use crate::gemm::{Format, HopperGemm, RowRange, row_class, workspace_bytes, workspace_limit};
use crate::kernels::{MIXES, ROW_MOMENTS_BYTES};
use crate::probe::GpuInfo;
use crate::weights::{LayerForm, Storing};

/// What cuBLASLt wants its workspace aligned to (its documentation of `cublasLtMatmul`).
pub(crate) const WORKSPACE_ALIGNMENT: usize = 256;

/// Of the largest part of compute capability 9.0.
const HOPPER_MULTIPROCESSORS: usize = 132;

/// Tried in order at the next operations: the first that knows what to do with them makes a step, and
/// says of how many.
const RULES: &[Rule] = &[
    feed_forward::feed_forward,
    linear_norm::linear_norm,
    norm::embed_norm,
    norm::add_norm,
    sum_norm::sum_norm,
    gated::gated,
    rotated::rotated,
    single::single,
];

type Rule = fn(&mut Draft<'_>, &[Node]) -> Option<usize>;

/// How a GPU computes: in a format, with the kernels that it has for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaLowering {
    /// Of activations, and of all layers that are not narrow.
    pub(crate) format: Format,
    /// Whether there are narrow planes of activations, and layers that read them.
    pub(crate) fp8: bool,
    /// Whether our own kernels for compute capability 9.0 run.
    pub(crate) hopper: bool,
    pub(crate) multiprocessors: usize,
    /// The most scratch memory of a product.
    workspace_limit: usize,
}

/// What is kept of a matrix: its planes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Rows in the format of activations.
    Wide,
    /// Rows in e4m3.
    Narrow,
    /// Both, the wide plane first.
    Both,
    /// Sums times gain that are yet to be normalised, and a plane of each row's moments.
    Deferred {
        /// What normalises them.
        norm: WeightId,
    },
}

/// What a step computes. It reads and writes matrices in forms that are named here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CudaKernel {
    /// Looks tokens up, and normalises their rows.
    EmbedNorm {
        /// Word, position and type tables.
        tables: WeightId,
        /// Gain and bias.
        norm: WeightId,
        /// Wide or both.
        output: Form,
    },
    /// Normalises rows.
    Norm {
        /// Gain and bias.
        norm: WeightId,
        /// Wide or both.
        output: Form,
    },
    /// Adds two matrices, and normalises the sum's rows. Writes those, and the sum if it is kept.
    AddNorm {
        /// Gain and bias.
        norm: WeightId,
        /// Wide or both.
        output: Form,
        /// Whether the sum is kept as well, wide.
        keeps_sum: bool,
    },
    /// Adds two matrices.
    Add,
    /// A linear layer.
    Linear {
        /// Its weight and bias.
        layer: WeightId,
        /// Applied to each element.
        activation: Activation,
        /// Deferred only if the layer was stored with its input's norm.
        input: Form,
        /// Wide, or narrow if the layer is.
        output: Form,
    },
    /// A linear layer whose outputs are gated.
    GatedLinear {
        /// Its weight and bias.
        layer: WeightId,
        /// Applied to each gate.
        activation: Activation,
        /// Deferred only if the layer was stored with its input's norm.
        input: Form,
        /// Wide, or narrow if the layer is.
        output: Form,
    },
    /// `activation(gate) · up` of what a gated layer's product made.
    Gate {
        /// Applied to each gate.
        activation: Activation,
        /// Columns of gates, then the ups that belong to them, by turns.
        group: usize,
        /// Wide, narrow or both.
        output: Form,
    },
    /// A linear layer with its residual, normalised. Reads the layer's input and the residual.
    LinearNorm {
        /// Its weight and bias.
        layer: WeightId,
        /// Gain and bias.
        norm: WeightId,
        /// Never deferred.
        input: Form,
        /// Deferred only if the output is.
        residual: Form,
        /// Wide, both or deferred.
        output: Form,
    },
    /// Two linear layers with the input as residual, normalised. Writes the output, and what is between
    /// the layers.
    FeedForward {
        /// The first layer.
        up: WeightId,
        /// Applied to each element between the layers.
        activation: Activation,
        /// The second layer.
        down: WeightId,
        /// Gain and bias.
        norm: WeightId,
        /// Deferred only if the output is.
        input: Form,
        /// Of what is between, unless the block is one kernel.
        between: Option<Form>,
        /// Wide, both or deferred.
        output: Form,
    },
    /// Normalises deferred rows.
    Normalize {
        /// Gain and bias.
        norm: WeightId,
    },
    /// A linear layer whose outputs are queries, keys and values, of which the first two are turned.
    RotatedLinear {
        /// Its weight and bias.
        layer: WeightId,
        /// Deferred only if the layer was stored with its input's norm.
        input: Form,
        /// How columns are divided.
        heads: Heads,
        /// By which angles.
        rotary: Rotary,
    },
    /// Turns queries and keys by their positions, in place if it writes what it reads.
    Rotate {
        /// How columns are divided.
        heads: Heads,
        /// By which angles.
        rotary: Rotary,
    },
    /// Attention within each sequence.
    Attention {
        /// How many heads there are.
        heads: usize,
        /// Which keys a query sees.
        window: Window,
        /// Added to scores by distance.
        bias: Option<AttentionBias>,
        /// Wide or narrow.
        output: Form,
    },
    /// Makes one row of a sequence's.
    Pool(Poolings),
    /// An operation that there is no kernel for.
    Missing(&'static str),
}

impl Form {
    fn is_deferred(self) -> bool {
        matches!(self, Self::Deferred { .. })
    }
}

impl CudaLowering {
    /// A GPU that need not be there: of those that compute in `format`, one that takes the most.
    pub fn most(format: DType) -> Self {
        let capability = (9, 0);
        let hopper = format != DType::F32;
        Self::new(format, capability, HOPPER_MULTIPROCESSORS, hopper)
    }

    /// What a GPU's driver takes beside weights and batches, roughly: context, libraries, kernels and
    /// graphs, as on an H200. What it really takes is measured where there is a GPU.
    pub const DRIVER_BYTES: usize = 540 << 20;

    /// The GPU of `info`; `hopper` says whether our own kernels for compute capability 9.0 run there.
    pub(crate) fn of(info: &GpuInfo, format: DType, hopper: bool) -> Self {
        Self::new(format, info.compute_capability, info.multiprocessors as usize, hopper)
    }

    fn new(format: DType, capability: (u32, u32), multiprocessors: usize, hopper: bool) -> Self {
        let (fp8, workspace_limit) = (format == DType::F8E4M3, workspace_limit(capability));
        Self { format: format.into(), fp8, hopper, multiprocessors, workspace_limit }
    }

    /// How the weights of `node` are stored.
    pub(crate) fn storing<'g>(&self, graph: &'g Graph, node: &'g Node) -> Storing<'g> {
        let layer = if self.is_narrow(graph, node) {
            LayerForm::Narrow
        } else {
            LayerForm::Wide { input_norm: self.input_norm(graph, node) }
        };
        Storing { graph, node, format: self.format, layer }
    }

    /// Scratch bytes for a product of so many rows.
    fn linear_workspace(&self, rows: usize, outputs: usize) -> usize {
        // What may be cut off at the start to align it.
        workspace_bytes(rows, outputs, self.workspace_limit) + WORKSPACE_ALIGNMENT
    }

    fn draft<'a>(&'a self, graph: &'a Graph, rows: RowBound) -> Draft<'a> {
        let mut draft = Draft {
            lowering: self,
            graph,
            rows,
            program: Program::new(graph, rows),
            forms: vec![Form::Wide; graph.values()],
            normalised: vec![None; graph.values()],
        };
        let mut nodes = graph.nodes();
        while !nodes.is_empty() {
            let taken = RULES.iter().find_map(|rule| rule(&mut draft, nodes)).unwrap_or(1);
            nodes = nodes.get(taken..).unwrap_or_default();
        }
        for &output in graph.outputs() {
            let wide = draft.normalised(output).value;
            draft.program.replace_output(output, wide);
        }
        draft
    }
}

/// A program that is being made.
struct Draft<'a> {
    lowering: &'a CudaLowering,
    graph: &'a Graph,
    rows: RowBound,
    program: Program<CudaKernel>,
    /// Of each of the graph's values, as it is written.
    forms: Vec<Form>,
    /// Where deferred values are normalised, once they are.
    normalised: Vec<Option<ValueId>>,
}

/// A matrix that a step reads.
#[derive(Clone, Copy)]
struct Operand {
    value: ValueId,
    form: Form,
}

impl Draft<'_> {
    /// The first operations, if each reads what the one before computes, and nobody else does.
    fn chain<'n, const N: usize>(&self, nodes: &'n [Node]) -> Option<([Op; N], &'n [Node; N])> {
        let nodes = nodes.first_chunk::<N>()?;
        let linked = nodes.windows(2).all(|pair| {
            let [one, next] = pair else { return false };
            next.inputs.first() == Some(&one.output) && self.graph.is_read_once(one.output)
        });
        linked.then(|| (nodes.each_ref().map(|node| node.op), nodes))
    }

    /// A value as it was written.
    fn kept(&self, value: ValueId) -> Operand {
        Operand { value, form: self.forms[value.index()] }
    }

    /// Keeps a value in this form.
    fn keep(&mut self, value: ValueId, form: Form) -> Form {
        self.forms[value.index()] = form;
        let planes = self.planes(self.graph.value(value).columns, form);
        self.program.keep(value, planes);
        form
    }

    fn planes(&self, columns: usize, form: Form) -> Vec<usize> {
        let (wide, narrow) = (columns * self.lowering.format.bytes(), columns);
        match form {
            Form::Wide => vec![wide],
            Form::Narrow => vec![narrow],
            Form::Both => vec![wide, narrow],
            Form::Deferred { .. } => vec![wide, ROW_MOMENTS_BYTES],
        }
    }

    /// Columns of a layer's input and of its output.
    fn layer_size(&self, layer: &Node) -> (usize, usize) {
        let columns = |value: ValueId| self.graph.value(value).columns;
        let input = layer.inputs.first().copied().map_or(0, columns);
        (input, columns(layer.output))
    }

    fn linear_scratch(&self, layer: &Node) -> usize {
        let shape = self.graph.value(layer.output);
        self.product_scratch(shape.rows, shape.columns)
    }

    fn product_scratch(&self, rows: Rows, outputs: usize) -> usize {
        self.lowering.linear_workspace(rows.of(self.rows.shape()), outputs)
    }

    fn push(
        &mut self,
        kernel: CudaKernel,
        reads: Vec<ValueId>,
        writes: Vec<ValueId>,
        scratch: usize,
    ) {
        self.program.push(Step { kernel, reads, writes, scratch, reads_batch: false });
    }

    /// A step that reads what is known of the batch.
    fn push_batch(&mut self, kernel: CudaKernel, reads: Vec<ValueId>, output: ValueId) {
        let writes = vec![output];
        self.program.push(Step { kernel, reads, writes, scratch: 0, reads_batch: true });
    }
}

impl Lower for CudaLowering {
    type Kernel = CudaKernel;

    fn lower(&self, graph: &Graph, rows: RowBound) -> Program<CudaKernel> {
        self.draft(graph, rows).program
    }

    fn store(&self, graph: &Graph, node: &Node, plan: &mut WeightPlan) {
        self.storing(graph, node).plan(plan);
    }

    fn precision(&self, graph: &Graph, node: &Node, rows: RowBound) -> Precision {
        let narrow = self.is_narrow(graph, node);
        let of = match self.format {
            Format::F16 if narrow => Precision::of_tensor_cores(DType::F8E4M3),
            Format::F16 => Precision::of_tensor_cores(DType::F16),
            Format::Bf16 => Precision::of_tensor_cores(DType::BF16),
            Format::F32 => Precision::of(DType::F32),
        };
        let is_norm = matches!(node.op, Op::Norm { .. });
        let deferred = is_norm && self.draft(graph, rows).kept(node.output).form.is_deferred();
        Precision { deferred, ..of }
    }

    fn way(&self, rows: usize, planned: usize) -> u64 {
        // Of the library, an algorithm for each range of rows, and whether it or our own kernel was measured
        // to be faster, for each octave; each range is in one.
        let library = RowRange::of(rows).most() as u64;
        if !self.hopper {
            return library;
        }
        let rules = |rows| row_class(rows) as u64;
        let fused = u64::from(HopperGemm::fills(planned, self.multiprocessors));
        ((library * 4 + rules(rows)) * 4 + rules(planned)) * 2 + fused
    }

    fn attention_mixes(&self) -> &'static [(usize, usize)] {
        &MIXES
    }
}

#[cfg(test)]
mod tests;
