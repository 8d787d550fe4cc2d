//! A forward pass as a list of steps, and the memory plan that follows from it.
//!
//! The pass is written once as calls on a [`Program`] ([`crate::forward`]); recording it tells when
//! each value is born and last read, so lifetimes are derived, never maintained by hand. A plan may
//! be that of a larger shape: the steps are the same, and each buffer has at least the room that it
//! needs. Running replays the steps on a backend with every value at its planned offset.

use std::sync::Arc;

use vecmill_memory::{BufferId, Lease, Plan, Planner};

use crate::backend::{
    AddNorm, Attention, Backend, BackendError, Buffer, Embed, Indices, Linear, Pool, Sequences,
    Slab, Workspace,
};
use crate::batch::{Batch, Shape};
use crate::model::{Activation, Pooling};

/// A matrix that a step produces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Value {
    id: BufferId,
    rows: usize,
    columns: usize,
}

#[derive(Debug)]
struct Scratch {
    id: BufferId,
    bytes: usize,
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
    AddNorm {
        input: Value,
        residual: Value,
        norm: &'m B::Norm,
        output: Value,
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
    planner: Planner,
    steps: Vec<Step<'m, B>>,
    ids: BufferId,
    positions: BufferId,
    starts: BufferId,
    result: Option<Value>,
}

impl<'m, B: Backend> Program<'m, B> {
    pub(crate) fn new(backend: &'m B, shape: Shape) -> Self {
        let mut planner = Planner::new();
        let ids = planner.buffer(index_bytes(shape.tokens), 0..=0);
        let positions = planner.buffer(index_bytes(shape.tokens), 0..=0);
        let starts = planner.buffer(index_bytes(shape.sequences + 1), 0..=0);
        let steps = Vec::new();
        Self { backend, shape, planner, steps, ids, positions, starts, result: None }
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
        self.read(&[input]);
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
        self.read(&[qkv]);
        self.planner.keep_until(self.starts, self.steps.len());
        let hidden = qkv.columns / 3;
        let output = self.value(qkv.rows, hidden);
        let Shape { tokens, longest, .. } = self.shape;
        let bytes = self.backend.attention_workspace(tokens, longest, hidden / heads);
        let scratch = self.scratch(bytes);
        self.steps.push(Step::Attention { qkv, heads, bias, output, scratch });
        output
    }

    pub(crate) fn add_norm(&mut self, input: Value, residual: Value, norm: &'m B::Norm) -> Value {
        self.read(&[input, residual]);
        let output = self.value(input.rows, input.columns);
        self.steps.push(Step::AddNorm { input, residual, norm, output });
        output
    }

    pub(crate) fn pool(&mut self, input: Value, pooling: Pooling) -> Value {
        self.read(&[input]);
        self.planner.keep_until(self.starts, self.steps.len());
        let output = self.value(self.shape.sequences, input.columns);
        self.steps.push(Step::Pool { input, pooling, output });
        output
    }

    /// Ends the program: `result` stays alive after the last step.
    pub(crate) fn finish(mut self, result: Value) -> Self {
        self.read(&[result]);
        self.result = Some(result);
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

    fn value(&mut self, rows: usize, columns: usize) -> Value {
        let step = self.steps.len();
        let bytes = rows * columns * self.backend.element_bytes();
        Value { id: self.planner.buffer(bytes, step..=step), rows, columns }
    }

    fn scratch(&mut self, bytes: usize) -> Scratch {
        let step = self.steps.len();
        Scratch { id: self.planner.buffer(bytes, step..=step), bytes }
    }

    fn read(&mut self, values: &[Value]) {
        for value in values {
            self.planner.keep_until(value.id, self.steps.len());
        }
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

    /// Runs all steps for `batch`, whose shape the program was made for, and copies the result out.
    /// The lease is told how far each step reaches into it.
    pub(crate) fn run(
        &self,
        batch: &Batch,
        position_offset: u32,
        lease: &mut Lease<'_, B::Source>,
    ) -> Result<Vec<f32>, BackendError> {
        let backend = self.program.backend;
        lease.check_use(self.end_of_indices());
        let slab = lease.block_mut();
        backend.copy_in(slab, batch.ids(), self.ids())?;
        backend.copy_in(slab, &batch.positions(position_offset), self.positions())?;
        backend.copy_in(slab, batch.starts(), self.sequences().starts)?;
        for step in &self.program.steps {
            lease.check_use(self.end_of(step));
            self.run_step(step, lease.block_mut())?;
        }
        let Some(result) = self.program.result.map(|result| self.buffer(result)) else {
            return Ok(Vec::new());
        };
        let mut rows = vec![0.0; result.elements()];
        backend.copy_out(lease.block_mut(), result, &mut rows)?;
        Ok(rows)
    }

    /// The furthest byte of what a step writes; what it reads, another step has written.
    fn end_of(&self, step: &Step<'_, B>) -> usize {
        let (output, scratch) = match step {
            Step::Linear { output, scratch, .. } | Step::Attention { output, scratch, .. } => {
                (*output, Some(self.workspace(scratch)))
            }
            Step::Embed { output, .. }
            | Step::AddNorm { output, .. }
            | Step::Pool { output, .. } => (*output, None),
        };
        let Buffer { offset, rows, columns } = self.buffer(output);
        let output = offset + rows * columns * self.program.backend.element_bytes();
        output.max(scratch.map_or(0, |scratch| scratch.offset + scratch.bytes))
    }

    fn end_of_indices(&self) -> usize {
        let lists = [self.ids(), self.positions(), self.sequences().starts];
        lists.map(|list| list.offset + index_bytes(list.length)).into_iter().max().unwrap_or(0)
    }

    fn run_step(&self, step: &Step<'_, B>, slab: &mut Slab<B>) -> Result<(), BackendError> {
        let backend = self.program.backend;
        let sequences = self.sequences();
        match *step {
            Step::Embed { tables, output } => {
                let output = self.buffer(output);
                let op = Embed { ids: self.ids(), positions: self.positions(), tables, output };
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
            Step::AddNorm { input, residual, norm, output } => {
                let (input, residual) = (self.buffer(input), self.buffer(residual));
                let output = self.buffer(output);
                backend.add_norm(slab, &AddNorm { input, residual, norm, output })
            }
            Step::Pool { input, pooling, output } => {
                let (input, output) = (self.buffer(input), self.buffer(output));
                backend.pool(slab, &Pool { input, sequences, pooling, output })
            }
        }
    }

    fn buffer(&self, value: Value) -> Buffer {
        Buffer { offset: self.plan.offset(value.id), rows: value.rows, columns: value.columns }
    }

    fn workspace(&self, scratch: &Scratch) -> Workspace {
        Workspace { offset: self.plan.offset(scratch.id), bytes: scratch.bytes }
    }

    fn ids(&self) -> Indices {
        let length = self.program.shape.tokens;
        Indices { offset: self.plan.offset(self.program.ids), length }
    }

    fn positions(&self) -> Indices {
        let length = self.program.shape.tokens;
        Indices { offset: self.plan.offset(self.program.positions), length }
    }

    fn sequences(&self) -> Sequences {
        let shape = self.program.shape;
        let offset = self.plan.offset(self.program.starts);
        let starts = Indices { offset, length: shape.sequences + 1 };
        Sequences { starts, longest: shape.longest }
    }
}
