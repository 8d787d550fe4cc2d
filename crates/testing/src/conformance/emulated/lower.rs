//! The emulated device's programs.

use vecmill_encoder::{
    AttentionBias, Graph, Lower, Node, Op, Program, RowBound, Step, ValueId, WeightId,
};
use vecmill_encoder::{Precision, WeightPlan};
use vecmill_model::{Activation, DType, Heads, Poolings, Rotary, Window, e4m3};

use super::DEFERRED_COLUMNS;

const FLOAT: usize = size_of::<f32>();

/// One that computes in a format.
#[derive(Debug, Clone, Copy)]
pub(super) struct Emulation(pub(super) DType);

/// What a step computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kernel {
    Embed {
        tables: WeightId,
        norm: Option<WeightId>,
    },
    Norm {
        norm: WeightId,
    },
    NormSlices {
        norm: WeightId,
        width: usize,
    },
    Add {
        norm: Option<WeightId>,
    },
    Linear {
        layer: WeightId,
        activation: Activation,
        /// Whether the first half of the outputs is a gate for the second.
        gated: bool,
        /// What normalises the input, if that is deferred.
        input_norm: Option<WeightId>,
        narrow: bool,
    },
    /// A linear layer and the residual's sum, of which the norm is deferred.
    LinearDefer {
        layer: WeightId,
        norm: WeightId,
        residual_norm: Option<WeightId>,
        narrow: bool,
    },
    /// Normalises what was deferred.
    Normalize {
        norm: WeightId,
    },
    Rotate {
        heads: Heads,
        rotary: Rotary,
    },
    Attention {
        heads: Heads,
        window: Window,
        bias: Option<AttentionBias>,
    },
    Pool(Poolings),
}

/// The weights of a node, and how many numbers are stored of each; zeros, if it has none.
pub(super) fn stored(graph: &Graph, node: &Node) -> Vec<(Option<WeightId>, usize)> {
    let all = |weight: WeightId| (Some(weight), graph.weight(weight).elements());
    match node.op {
        Op::Embed { words, positions, types } => {
            let kinds = types.map_or((None, graph.weight(words).columns), all);
            [Some(all(words)), Some(kinds), positions.map(all)].into_iter().flatten().collect()
        }
        Op::Norm { gain, bias, .. } | Op::NormSlices { gain, bias, .. } => {
            vec![all(gain), bias.map_or((None, graph.weight(gain).elements()), all)]
        }
        Op::Linear { weight, bias, .. } | Op::GatedLinear { weight, bias, .. } => {
            vec![all(weight), bias.map_or((None, graph.weight(weight).rows), all)]
        }
        Op::Attention { .. } => node.op.weight().into_iter().map(all).collect(),
        Op::Add | Op::Rotate { .. } | Op::Pool(_) => vec![],
    }
}

impl Emulation {
    pub(super) fn is_narrow(self, graph: &Graph, node: &Node) -> bool {
        let (Op::Linear { weight, .. } | Op::GatedLinear { weight, .. }) = node.op else {
            return false;
        };
        let shape = graph.weight(weight);
        let suits = e4m3::suits(shape.columns, shape.rows);
        self.0 == DType::F8E4M3 && suits && !graph.is_delicate(node)
    }

    /// The linear layer and the norm around a sum whose norm is deferred.
    fn deferring<'g>(self, graph: &'g Graph, nodes: &'g [Node]) -> Option<[&'g Node; 3]> {
        let [layer, add, norm, ..] = nodes else { return None };
        let links = add.inputs.first() == Some(&layer.output) && norm.inputs == [add.output];
        let ops = matches!(layer.op, Op::Linear { activation: Activation::Identity, .. })
            && matches!((add.op, norm.op), (Op::Add, Op::Norm { .. }));
        let alone = graph.is_read_once(layer.output) && graph.is_read_once(add.output);
        let fits = graph.value(norm.output).columns == DEFERRED_COLUMNS;
        (self.0 != DType::F8E4M3 && links && ops && alone && fits).then_some([layer, add, norm])
    }
}

/// A program that is being made.
struct Draft<'g> {
    lower: Emulation,
    graph: &'g Graph,
    program: Program<Kernel>,
    /// By value: what normalises it, if that is deferred.
    deferred: Vec<Option<WeightId>>,
    /// By value: the one that has it normalised.
    normalised: Vec<Option<ValueId>>,
}

impl Draft<'_> {
    fn norm_of(&self, value: ValueId) -> Option<WeightId> {
        self.deferred[value.index()]
    }

    fn push(&mut self, kernel: Kernel, node: &Node, reads: Vec<ValueId>, output: ValueId) {
        let columns = self.graph.value(output).columns;
        let narrow = self.graph.readers(output).any(|node| self.lower.is_narrow(self.graph, node));
        let beside = match kernel {
            Kernel::LinearDefer { .. } => Some(2 * FLOAT),
            _ => narrow.then_some(columns * FLOAT),
        };
        let planes = [Some(columns * FLOAT), beside].into_iter().flatten().collect();
        self.program.keep(output, planes);
        let reads_batch = node.op.reads_batch();
        self.program.push(Step { kernel, reads, writes: vec![output], scratch: 0, reads_batch });
    }

    /// The value, normalised first if that was deferred.
    fn whole(&mut self, value: ValueId) -> ValueId {
        let Some(norm) = self.norm_of(value) else { return value };
        if let Some(normalised) = self.normalised[value.index()] {
            return normalised;
        }
        let shape = self.graph.value(value);
        let output = self.program.value(shape.rows, vec![shape.columns * FLOAT]);
        self.program.push(Step {
            kernel: Kernel::Normalize { norm },
            reads: vec![value],
            writes: vec![output],
            scratch: 0,
            reads_batch: false,
        });
        self.normalised[value.index()] = Some(output);
        output
    }

    /// What one operation is alone, or with the norm behind it.
    fn single(&mut self, node: &Node, norm: Option<(WeightId, ValueId)>) {
        let output = norm.map_or(node.output, |(_, output)| output);
        let norm = norm.map(|(norm, _)| norm);
        let kernel = match node.op {
            Op::Embed { words, .. } => Kernel::Embed { tables: words, norm },
            Op::Norm { gain, .. } => Kernel::Norm { norm: gain },
            Op::NormSlices { gain, width, .. } => Kernel::NormSlices { norm: gain, width },
            Op::Add => Kernel::Add { norm },
            Op::Linear { weight, activation, .. } | Op::GatedLinear { weight, activation, .. } => {
                let gated = matches!(node.op, Op::GatedLinear { .. });
                let reads_deferred = node.layer.is_some();
                let input_norm = self.norm_of(node.inputs[0]).filter(|_| reads_deferred);
                let narrow = self.lower.is_narrow(self.graph, node);
                let layer = weight;
                let kernel = Kernel::Linear { layer, activation, gated, input_norm, narrow };
                if reads_deferred {
                    return self.push(kernel, node, node.inputs.clone(), output);
                }
                kernel
            }
            Op::Rotate { heads, rotary } => Kernel::Rotate { heads, rotary },
            Op::Attention { heads, window, bias } => Kernel::Attention { heads, window, bias },
            Op::Pool(poolings) => Kernel::Pool(poolings),
        };
        let reads = node.inputs.iter().map(|&input| self.whole(input)).collect();
        self.push(kernel, node, reads, output);
    }
}

impl Lower for Emulation {
    type Kernel = Kernel;

    fn lower(&self, graph: &Graph, rows: RowBound) -> Program<Kernel> {
        let (lower, program) = (*self, Program::new(graph, rows));
        let none = graph.values();
        let (deferred, normalised) = (vec![None; none], vec![None; none]);
        let mut draft = Draft { lower, graph, program, deferred, normalised };
        let mut nodes = graph.nodes();
        while let Some(node) = nodes.first() {
            if let Some([layer, add, norm]) = self.deferring(graph, nodes)
                && let (Op::Linear { weight, .. }, Op::Norm { gain, .. }) = (layer.op, norm.op)
            {
                let (input, residual) = (draft.whole(layer.inputs[0]), add.inputs[1]);
                let residual_norm = draft.norm_of(residual);
                let narrow = false;
                let kernel =
                    Kernel::LinearDefer { layer: weight, norm: gain, residual_norm, narrow };
                draft.push(kernel, layer, vec![input, residual], norm.output);
                draft.deferred[norm.output.index()] = Some(gain);
                nodes = &nodes[3..];
                continue;
            }
            let fuses = matches!(node.op, Op::Embed { .. } | Op::Add);
            let next = nodes.get(1).filter(|next| fuses && next.inputs == [node.output]);
            match next.map(|next| (next.op, next.output)) {
                Some((Op::Norm { gain, .. }, output)) if graph.is_read_once(node.output) => {
                    draft.single(node, Some((gain, output)));
                    nodes = &nodes[2..];
                }
                _ => {
                    draft.single(node, None);
                    nodes = &nodes[1..];
                }
            }
        }
        for &output in graph.outputs() {
            let whole = draft.whole(output);
            draft.program.replace_output(output, whole);
        }
        draft.program
    }

    fn store(&self, graph: &Graph, node: &Node, plan: &mut WeightPlan) {
        stored(graph, node).into_iter().for_each(|(_, count)| plan.place(count * FLOAT));
    }

    fn precision(&self, graph: &Graph, node: &Node, _rows: RowBound) -> Precision {
        let of = Precision::of(self.0);
        let narrow = of.narrow.filter(|_| self.is_narrow(graph, node));
        let first = node.output.index().saturating_sub(2);
        let deferred = self.deferring(graph, &graph.nodes()[first..]);
        let deferred = deferred.is_some_and(|[.., norm]| norm.output == node.output);
        Precision { narrow, deferred, ..of }
    }
}
