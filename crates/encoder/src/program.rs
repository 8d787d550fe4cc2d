//! A forward pass as a list of steps, and the memory plan that follows from it.
//!
//! The pass is written once as calls on a [`Program`] ([`crate::forward`]); recording it tells when
//! each value is born and last read, and in which formats, so lifetimes and sizes are derived, never
//! maintained by hand. A plan may
//! be that of a larger shape: the steps are the same, and each buffer has at least the room that it
//! needs. Running replays the steps on a backend with every value at its planned offset.

use std::sync::Arc;

use vecmill_memory::{BufferId, Lease, Plan, Planner};

use crate::backend::{
    Attention, Backend, BackendError, Between, Buffer, Copies, Embed, FeedForward, Indices, Linear,
    LinearAddNorm, Pool, Sequences, Slab, Workspace,
};
use crate::batch::{Batch, IndexLayout, Shape};
use crate::model::{Activation, Pooling};

/// A matrix that a step produces, to be read by a later one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Value {
    id: BufferId,
    rows: usize,
    columns: usize,
    /// Its place in [`Program::copies`].
    index: usize,
}

#[derive(Debug)]
struct Scratch {
    id: BufferId,
    bytes: usize,
}

/// Which operations may be one kernel, and so need less memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fusion {
    /// Those that the backend fuses for so many rows: the most of the bucket, all batches of which
    /// then take the same steps.
    Of(usize),
    /// None, as if the backend could not: what fusing saves differs from size to size, and whoever
    /// wants the most that a batch may take can't count on it.
    Never,
}

/// The linear layers of a feed-forward block.
#[derive(Debug)]
pub(crate) struct Layers<'m, B: Backend> {
    pub(crate) up: &'m B::Linear,
    /// Columns between the two.
    pub(crate) intermediate: usize,
    pub(crate) activation: Activation,
    pub(crate) down: &'m B::Linear,
}

#[derive(Debug)]
enum Step<'m, B: Backend> {
    Embed {
        tables: &'m B::Embeddings,
        output: Value,
    },
    Linear {
        input: Value,
        weights: &'m B::Linear,
        activation: Activation,
        output: Value,
        scratch: Scratch,
    },
    Attention {
        qkv: Value,
        heads: usize,
        bias: Option<&'m B::RelativeBias>,
        output: Value,
        scratch: Scratch,
    },
    LinearAddNorm {
        input: Value,
        weights: &'m B::Linear,
        residual: Value,
        norm: &'m B::Norm,
        output: Value,
        scratch: Scratch,
    },
    FeedForward {
        input: Value,
        layers: Layers<'m, B>,
        norm: &'m B::Norm,
        output: Value,
        between: Option<(Value, Scratch)>,
    },
    Pool {
        input: Value,
        pooling: Pooling,
        output: Value,
    },
}

/// The steps of one forward pass for one batch shape.
#[derive(Debug)]
pub(crate) struct Program<'m, B: Backend> {
    backend: &'m B,
    shape: Shape,
    fusion: Fusion,
    planner: Planner,
    steps: Vec<Step<'m, B>>,
    /// What was read of each value so far.
    copies: Vec<Option<Copies>>,
    indices: BufferId,
    result: Value,
}

impl<'m, B: Backend> Program<'m, B> {
    pub(crate) fn new(backend: &'m B, shape: Shape, fusion: Fusion) -> Self {
        let mut planner = Planner::new();
        let indices = planner.buffer(index_bytes(IndexLayout::of(shape).length), 0..=0);
        let nothing = Value { id: indices, rows: 0, columns: 0, index: 0 };
        let (steps, copies) = (Vec::new(), Vec::new());
        Self { backend, shape, fusion, planner, steps, copies, indices, result: nothing }
    }

    pub(crate) fn embed(&mut self, tables: &'m B::Embeddings, hidden: usize) -> Value {
        let output = self.value(self.shape.tokens, hidden);
        self.steps.push(Step::Embed { tables, output });
        output
    }

    pub(crate) fn linear(
        &mut self,
        input: Value,
        weights: &'m B::Linear,
        outputs: usize,
        activation: Activation,
    ) -> Value {
        self.read_by(weights, input);
        let output = self.value(input.rows, outputs);
        let bytes = self.backend.linear_workspace(input.rows, input.columns, outputs);
        let scratch = self.scratch(bytes);
        self.steps.push(Step::Linear { input, weights, activation, output, scratch });
        output
    }

    pub(crate) fn attention(
        &mut self,
        qkv: Value,
        heads: usize,
        bias: Option<&'m B::RelativeBias>,
    ) -> Value {
        self.read(qkv, Copies::Wide);
        self.planner.keep_until(self.indices, self.steps.len());
        let hidden = qkv.columns / 3;
        let output = self.value(qkv.rows, hidden);
        let Shape { tokens, longest, .. } = self.shape;
        let bytes = self.backend.attention_workspace(tokens, longest, hidden / heads);
        let scratch = self.scratch(bytes);
        self.steps.push(Step::Attention { qkv, heads, bias, output, scratch });
        output
    }

    pub(crate) fn linear_add_norm(
        &mut self,
        input: Value,
        weights: &'m B::Linear,
        residual: Value,
        norm: &'m B::Norm,
    ) -> Value {
        self.read_by(weights, input);
        self.read(residual, Copies::Wide);
        let Value { rows, columns, .. } = residual;
        let output = self.value(rows, columns);
        let bytes = self.backend.linear_workspace(rows, input.columns, columns);
        let scratch = self.scratch(bytes);
        self.steps.push(Step::LinearAddNorm { input, weights, residual, norm, output, scratch });
        output
    }

    pub(crate) fn feed_forward(
        &mut self,
        input: Value,
        layers: Layers<'m, B>,
        norm: &'m B::Norm,
    ) -> Value {
        let Layers { up, intermediate, down, .. } = layers;
        let Value { rows, columns, .. } = input;
        self.read_by(up, input);
        self.read(input, Copies::Wide);
        let output = self.value(rows, columns);
        let fused = match self.fusion {
            Fusion::Of(rows) => self.backend.fuses_feed_forward(rows, up, down),
            Fusion::Never => false,
        };
        let between = (!fused).then(|| {
            let wide = self.value(rows, intermediate);
            self.read_by(down, wide);
            let bytes = |inputs, outputs| self.backend.linear_workspace(rows, inputs, outputs);
            let bytes = bytes(columns, intermediate).max(bytes(intermediate, columns));
            (wide, self.scratch(bytes))
        });
        self.steps.push(Step::FeedForward { input, layers, norm, output, between });
        output
    }

    pub(crate) fn pool(&mut self, input: Value, pooling: Pooling) -> Value {
        self.read(input, Copies::Wide);
        self.planner.keep_until(self.indices, self.steps.len());
        let output = self.value(self.shape.sequences, input.columns);
        self.steps.push(Step::Pool { input, pooling, output });
        output
    }

    /// Ends the program: `result` stays alive after the last step.
    pub(crate) fn finish(mut self, result: Value) -> Self {
        self.read(result, Copies::Wide);
        self.result = result;
        self
    }

    /// Plans the program's memory.
    pub(crate) fn plan(&self) -> Plan {
        self.planner.plan()
    }

    /// Whether every value has its room in `plan`, which was made for the same steps.
    pub(crate) fn fits(&self, plan: &Plan) -> bool {
        self.planner.fits(plan)
    }

    /// Puts the program's values where `plan` says, which was made for the same steps. If it has
    /// less room than some value needs, because a backend's scratch memory does not grow with the
    /// batch, the program gets a plan of its own.
    pub(crate) fn placed(self, plan: Arc<Plan>) -> Planned<'m, B> {
        let fits = self.fits(&plan);
        debug_assert!(fits, "the plan of a larger shape has less room: {:?}", self.shape);
        let plan = if fits { plan } else { Arc::new(self.plan()) };
        Planned { program: self, plan }
    }

    /// A value without room: whoever reads it says how much it needs.
    fn value(&mut self, rows: usize, columns: usize) -> Value {
        let step = self.steps.len();
        self.copies.push(None);
        let index = self.copies.len() - 1;
        Value { id: self.planner.buffer(0, step..=step), rows, columns, index }
    }

    fn scratch(&mut self, bytes: usize) -> Scratch {
        let step = self.steps.len();
        Scratch { id: self.planner.buffer(bytes, step..=step), bytes }
    }

    fn read(&mut self, value: Value, copy: Copies) {
        let known = &mut self.copies[value.index];
        let copies = known.map_or(copy, |known| known.and(copy));
        *known = Some(copies);
        self.planner.enlarge(value.id, self.backend.end_of(value.buffer(0, copies)));
        self.planner.keep_until(value.id, self.steps.len());
    }

    fn read_by(&mut self, layer: &B::Linear, input: Value) {
        let narrow = self.backend.is_narrow(layer);
        self.read(input, if narrow { Copies::Narrow } else { Copies::Wide });
    }
}

impl Value {
    fn buffer(self, offset: usize, copies: Copies) -> Buffer {
        Buffer { offset, rows: self.rows, columns: self.columns, copies }
    }
}

fn index_bytes(count: usize) -> usize {
    count * size_of::<u32>()
}

/// A program whose values have their places in a slab.
#[derive(Debug)]
pub(crate) struct Planned<'m, B: Backend> {
    program: Program<'m, B>,
    plan: Arc<Plan>,
}

impl<B: Backend> Planned<'_, B> {
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Runs all steps for `batch`, which is of the program's shape or of one that it pads, and
    /// starts bringing the batch's results to the host. The lease is told how far each step reaches
    /// into it.
    pub(crate) fn start(
        &self,
        batch: &Batch,
        position_offset: u32,
        lease: &mut Lease<'_, B::Source>,
    ) -> Result<B::Fetched, BackendError> {
        let Program { backend, shape, steps, .. } = &self.program;
        let indices = self.indices();
        lease.check_use(indices.offset + index_bytes(indices.length));
        for step in steps {
            lease.check_use(self.end_of(step));
        }
        let slab = lease.block_mut();
        backend.copy_in(slab, &batch.indices(*shape, position_offset), indices)?;
        backend.repeat(slab, *shape, |slab| {
            steps.iter().try_for_each(|step| self.run_step(step, slab))
        })?;
        let rows = Buffer { rows: batch.sequences(), ..self.buffer(self.program.result) };
        backend.fetch(slab, rows)
    }

    /// The furthest byte of what a step writes; what it reads, another step has written.
    fn end_of(&self, step: &Step<'_, B>) -> usize {
        let (output, wide, scratch) = match step {
            Step::Linear { output, scratch, .. }
            | Step::LinearAddNorm { output, scratch, .. }
            | Step::Attention { output, scratch, .. } => (output, None, Some(scratch)),
            Step::FeedForward { output, between: Some((wide, scratch)), .. } => {
                (output, Some(wide), Some(scratch))
            }
            Step::Embed { output, .. }
            | Step::FeedForward { output, between: None, .. }
            | Step::Pool { output, .. } => (output, None, None),
        };
        let end = |value: &Value| self.program.backend.end_of(self.buffer(*value));
        let scratch = scratch.map(|scratch| self.workspace(scratch));
        let scratch = scratch.map_or(0, |scratch| scratch.offset + scratch.bytes);
        end(output).max(wide.map_or(0, end)).max(scratch)
    }

    fn run_step(&self, step: &Step<'_, B>, slab: &mut Slab<B>) -> Result<(), BackendError> {
        let backend = self.program.backend;
        let sequences = self.sequences();
        match *step {
            Step::Embed { tables, output } => {
                let Shape { tokens, .. } = self.program.shape;
                let layout = IndexLayout::of(self.program.shape);
                let (ids, positions) = (self.part(0, tokens), self.part(layout.positions, tokens));
                let op = Embed { ids, positions, tables, output: self.buffer(output) };
                backend.embed(slab, &op)
            }
            Step::Linear { input, weights, activation, output, ref scratch } => {
                let (input, output) = (self.buffer(input), self.buffer(output));
                let workspace = self.workspace(scratch);
                backend.linear(slab, &Linear { input, weights, activation, output, workspace })
            }
            Step::Attention { qkv, heads, bias, output, ref scratch } => {
                let (qkv, output) = (self.buffer(qkv), self.buffer(output));
                let workspace = self.workspace(scratch);
                let op = Attention { qkv, sequences, heads, bias, output, workspace };
                backend.attention(slab, &op)
            }
            Step::LinearAddNorm { input, weights, residual, norm, output, ref scratch } => {
                let (input, residual) = (self.buffer(input), self.buffer(residual));
                let (output, workspace) = (self.buffer(output), self.workspace(scratch));
                let op = LinearAddNorm { input, weights, residual, norm, output, workspace };
                backend.linear_add_norm(slab, &op)
            }
            Step::FeedForward { input, ref layers, norm, output, ref between } => {
                let &Layers { up, activation, down, .. } = layers;
                let (input, output) = (self.buffer(input), self.buffer(output));
                let between = between.as_ref().map(|(wide, scratch)| Between {
                    matrix: self.buffer(*wide),
                    workspace: self.workspace(scratch),
                });
                let op = FeedForward { input, up, activation, down, norm, output, between };
                backend.feed_forward(slab, &op)
            }
            Step::Pool { input, pooling, output } => {
                let (input, output) = (self.buffer(input), self.buffer(output));
                backend.pool(slab, &Pool { input, sequences, pooling, output })
            }
        }
    }

    fn buffer(&self, value: Value) -> Buffer {
        let copies = self.program.copies[value.index].unwrap_or(Copies::Wide);
        value.buffer(self.plan.offset(value.id), copies)
    }

    fn workspace(&self, scratch: &Scratch) -> Workspace {
        Workspace { offset: self.plan.offset(scratch.id), bytes: scratch.bytes }
    }

    /// The list that is copied in.
    fn indices(&self) -> Indices {
        let length = IndexLayout::of(self.program.shape).length;
        Indices { offset: self.plan.offset(self.program.indices), length }
    }

    /// A part of the list.
    fn part(&self, first: usize, length: usize) -> Indices {
        Indices { offset: self.indices().offset + index_bytes(first), length }
    }

    fn sequences(&self) -> Sequences {
        let Shape { sequences, longest, .. } = self.program.shape;
        let layout = IndexLayout::of(self.program.shape);
        Sequences { starts: self.part(layout.starts, sequences + 1), longest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DType;
    use crate::paper::{Footprint, PaperBackend};

    #[test]
    fn a_fused_block_takes_no_memory_between_its_layers() {
        const ROWS: usize = 1024;
        const HIDDEN: usize = 32;
        const WIDE: usize = 4 * HIDDEN;
        let footprint = Footprint { linear_workspace: 4096, ..Footprint::gpu(DType::F16) };
        let backend = PaperBackend::fusing(footprint, |rows| rows == ROWS);
        let linear = backend.load_linear(&[]).unwrap();
        let peak = |fusion| {
            let shape = Shape { tokens: ROWS, sequences: ROWS, longest: 1 };
            let mut pass = Program::new(&backend, shape, fusion);
            let rows = pass.embed(&(), HIDDEN);
            let (up, down, activation) = (&linear, &linear, Activation::Gelu);
            let layers = Layers { up, intermediate: WIDE, activation, down };
            let rows = pass.feed_forward(rows, layers, &());
            pass.finish(rows).plan().peak_bytes()
        };
        let fused = peak(Fusion::Of(ROWS));
        assert_eq!(fused, 2 * 2 * ROWS * HIDDEN);
        assert_eq!(peak(Fusion::Of(ROWS - 1)), fused + 2 * ROWS * WIDE + 4096);
        assert_eq!(peak(Fusion::Never), peak(Fusion::Of(ROWS - 1)));
    }
}
