//! A forward pass as a list of steps, and the memory plan that follows from it.
//!
//! The pass is written once as calls on a [`Program`] ([`crate::forward`]); recording it tells when
//! each value is born and last read, and in which formats, so lifetimes and sizes are derived, never
//! maintained by hand. A plan may be that of a larger shape: the steps are the same, and each buffer
//! has at least the room that it needs. Running (`planned`) replays the steps on a backend with every
//! value at its planned offset.

mod planned;

use std::sync::Arc;

use vecmill_memory::{BufferId, Plan, Planner};

use crate::backend::{Backend, Buffer, Copies, LinearShape, Lower};
use crate::batch::{IndexLayout, Shape};
pub(crate) use planned::Planned;
use vecmill_model::{Activation, Poolings};

/// What a matrix has rows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rows {
    Tokens,
    Sequences,
}

impl Rows {
    fn of(self, shape: Shape) -> usize {
        match self {
            Self::Tokens => shape.tokens,
            Self::Sequences => shape.sequences,
        }
    }
}

/// A matrix that a step produces, to be read by a later one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Value {
    id: BufferId,
    of: Rows,
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

/// Which operations may be one kernel, and which normalisations are deferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fusion {
    /// As the backend has it for so many rows as this shape has: the bucket, all batches of which then
    /// take the same steps.
    Of(Shape),
    /// As takes most memory: what fusing saves and deferring costs differs from size to size, and
    /// whoever wants the most that a batch may take can't count on either.
    Costliest,
}

/// A linear layer that was loaded, and its sizes.
#[derive(Debug)]
pub(crate) struct Projection<B: Backend> {
    pub(crate) shape: LinearShape,
    pub(crate) weights: B::Linear,
}

/// The linear layers of a feed-forward block.
#[derive(Debug)]
pub(crate) struct Layers<'m, B: Backend> {
    pub(crate) up: &'m Projection<B>,
    pub(crate) activation: Activation,
    pub(crate) down: &'m Projection<B>,
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
    Normalize {
        input: Value,
        norm: &'m B::Norm,
        output: Value,
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
        pooling: Poolings,
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
    /// What normalises a value, if that is deferred.
    deferred: Vec<Option<&'m B::Norm>>,
    indices: BufferId,
    result: Value,
}

impl<'m, B: Backend> Program<'m, B> {
    pub(crate) fn new(backend: &'m B, shape: Shape, fusion: Fusion) -> Self {
        let mut planner = Planner::new();
        let indices = planner.buffer(index_bytes(IndexLayout::of(shape).length), 0..=0);
        let nothing = Value { id: indices, of: Rows::Tokens, rows: 0, columns: 0, index: 0 };
        let (steps, copies, deferred) = (Vec::new(), Vec::new(), Vec::new());
        Self { backend, shape, fusion, planner, steps, copies, deferred, indices, result: nothing }
    }

    pub(crate) fn embed(&mut self, tables: &'m B::Embeddings, hidden: usize) -> Value {
        let output = self.value(Rows::Tokens, hidden);
        self.steps.push(Step::Embed { tables, output });
        output
    }

    pub(crate) fn linear(
        &mut self,
        input: Value,
        &Projection { shape, ref weights }: &'m Projection<B>,
        activation: Activation,
    ) -> Value {
        self.read_by(shape, input);
        let output = self.value(input.of, shape.outputs);
        let bytes = self.lower().linear_workspace(input.rows, input.columns, shape.outputs);
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
        let output = self.value(qkv.of, hidden);
        let Shape { tokens, longest, .. } = self.shape;
        let bytes = self.lower().attention_workspace(tokens, longest, hidden / heads);
        let scratch = self.scratch(bytes);
        self.steps.push(Step::Attention { qkv, heads, bias, output, scratch });
        output
    }

    pub(crate) fn linear_add_norm(
        &mut self,
        input: Value,
        &Projection { shape, ref weights }: &'m Projection<B>,
        residual: Value,
        norm: &'m B::Norm,
    ) -> Value {
        self.read_by(shape, input);
        self.read(residual, Copies::Wide);
        let Value { of, rows, columns, .. } = residual;
        let output = self.value_behind(norm, of, columns);
        let bytes = self.lower().linear_workspace(rows, input.columns, columns);
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
        let Layers { up: &Projection { shape: up, .. }, down, .. } = layers;
        let (down, intermediate) = (down.shape, up.outputs);
        let Value { of, rows, columns, .. } = input;
        self.read_by(up, input);
        self.read(input, Copies::Wide);
        let fused = match self.fusion {
            Fusion::Of(bucket) => self.lower().fuses_feed_forward(of.of(bucket), up, down),
            Fusion::Costliest => false,
        };
        let fused = fused && self.deferred[input.index].is_none();
        let output =
            if fused { self.value(of, columns) } else { self.value_behind(norm, of, columns) };
        let between = (!fused).then(|| {
            let wide = self.value(of, intermediate);
            self.read_by(down, wide);
            let bytes = |inputs, outputs| self.lower().linear_workspace(rows, inputs, outputs);
            let bytes = bytes(columns, intermediate).max(bytes(intermediate, columns));
            (wide, self.scratch(bytes))
        });
        self.steps.push(Step::FeedForward { input, layers, norm, output, between });
        output
    }

    /// The value itself, unless its normalisation is deferred.
    pub(crate) fn normalized(&mut self, input: Value) -> Value {
        let Some(norm) = self.deferred[input.index] else { return input };
        self.read(input, Copies::Wide);
        let output = self.value(input.of, input.columns);
        self.steps.push(Step::Normalize { input, norm, output });
        output
    }

    pub(crate) fn pool(&mut self, input: Value, pooling: Poolings) -> Value {
        self.read(input, Copies::Wide);
        self.planner.keep_until(self.indices, self.steps.len());
        let output = self.value(Rows::Sequences, pooling.count() * input.columns);
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
    fn value(&mut self, of: Rows, columns: usize) -> Value {
        let step = self.steps.len();
        self.copies.push(None);
        self.deferred.push(None);
        let index = self.copies.len() - 1;
        let rows = of.of(self.shape);
        Value { id: self.planner.buffer(0, step..=step), of, rows, columns, index }
    }

    /// A value that `norm` normalises, now or as it is read.
    fn value_behind(&mut self, norm: &'m B::Norm, of: Rows, columns: usize) -> Value {
        let value = self.value(of, columns);
        let rows = match self.fusion {
            Fusion::Of(bucket) => of.of(bucket),
            Fusion::Costliest => usize::MAX,
        };
        self.deferred[value.index] = self.lower().defers_norm(rows, columns).then_some(norm);
        value
    }

    fn lower(&self) -> &'m B::Lower {
        self.backend.lowering()
    }

    fn scratch(&mut self, bytes: usize) -> Scratch {
        let step = self.steps.len();
        Scratch { id: self.planner.buffer(bytes, step..=step), bytes }
    }

    fn read(&mut self, value: Value, copy: Copies) {
        let deferred = self.deferred[value.index].is_some();
        let copy = if deferred { Copies::Deferred } else { copy };
        let known = &mut self.copies[value.index];
        let copies = known.map_or(copy, |known| known.and(copy));
        *known = Some(copies);
        self.planner.enlarge(value.id, self.lower().end_of(value.buffer(0, copies)));
        self.planner.keep_until(value.id, self.steps.len());
    }

    fn read_by(&mut self, layer: LinearShape, input: Value) {
        let narrow = self.lower().is_narrow(layer);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paper::PaperBackend;
    use crate::paper::tests::Sizes;
    use vecmill_model::DType;

    fn projection(inputs: usize, outputs: usize) -> Projection<PaperBackend<Sizes>> {
        Projection { shape: LinearShape { inputs, outputs, wide: false }, weights: () }
    }

    #[test]
    fn a_fused_block_takes_no_memory_between_its_layers() {
        const ROWS: usize = 1024;
        const HIDDEN: usize = 32;
        const WIDE: usize = 4 * HIDDEN;
        let fuses = |rows| rows == ROWS;
        let sizes = Sizes { linear_workspace: 4096, fuses, ..Sizes::of(DType::F16) };
        let backend = PaperBackend::new(sizes);
        let (up, down) = (projection(HIDDEN, WIDE), projection(WIDE, HIDDEN));
        let shape = Shape { tokens: ROWS, sequences: ROWS, longest: 1 };
        let peak = |fusion| {
            let mut pass = Program::new(&backend, shape, fusion);
            let rows = pass.embed(&(), HIDDEN);
            let layers = Layers { up: &up, activation: Activation::Gelu, down: &down };
            let rows = pass.feed_forward(rows, layers, &());
            pass.finish(rows).plan().peak_bytes()
        };
        let fused = peak(Fusion::Of(shape));
        let apart = peak(Fusion::Of(Shape { tokens: ROWS - 1, ..shape }));
        assert_eq!(fused, 2 * 2 * ROWS * HIDDEN);
        assert_eq!(apart, fused + 2 * ROWS * WIDE + 4096);
        assert_eq!(peak(Fusion::Costliest), apart);
    }

    #[test]
    fn rows_whose_normalisation_is_deferred_keep_their_moments_until_they_are_normalised() {
        const ROWS: usize = 64;
        const HIDDEN: usize = 32;
        let peak = |deferred_bytes| {
            let backend = PaperBackend::new(Sizes { deferred_bytes, ..Sizes::of(DType::F16) });
            let weights = projection(HIDDEN, HIDDEN);
            let shape = Shape { tokens: ROWS, sequences: ROWS, longest: 1 };
            let mut pass = Program::new(&backend, shape, Fusion::Of(shape));
            let rows = pass.embed(&(), HIDDEN);
            let first = pass.linear_add_norm(rows, &weights, rows, &());
            let second = pass.linear_add_norm(first, &weights, first, &());
            let rows = pass.normalized(second);
            let steps = pass.steps.len();
            (pass.finish(rows).plan().peak_bytes(), steps)
        };
        let (plain, steps) = peak(0);
        assert_eq!((plain, steps), (2 * 2 * ROWS * HIDDEN, 3));
        assert_eq!(peak(16), (plain + 2 * 16 * ROWS, 4));
    }
}
