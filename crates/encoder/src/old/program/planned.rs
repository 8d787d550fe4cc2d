//! A program at work: every value at its planned offset, step by step on a backend.

use std::sync::Arc;

use vecmill_memory::{Lease, Plan};

use super::{Layers, Program, Scratch, Step, Value, index_bytes};
use crate::batch::{Batch, IndexLayout, Shape};
use crate::old::backend::{
    Attention, Backend, BackendError, Between, Buffer, Copies, Embed, FeedForward, Indices, Linear,
    LinearAddNorm, Lower, Normalize, Pool, Sequences, Slab, Workspace,
};

/// A program whose values have their places in a slab.
#[derive(Debug)]
pub(crate) struct Planned<'m, B: Backend> {
    pub(super) program: Program<'m, B>,
    pub(super) plan: Arc<Plan>,
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
            | Step::Normalize { output, .. }
            | Step::Pool { output, .. } => (output, None, None),
        };
        let end = |value: &Value| self.program.lower().end_of(self.buffer(*value));
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
                let residual_norm = self.program.deferred[residual.index];
                let (input, residual) = (self.buffer(input), self.buffer(residual));
                let (output, workspace) = (self.buffer(output), self.workspace(scratch));
                let op = LinearAddNorm {
                    input,
                    weights,
                    residual,
                    residual_norm,
                    norm,
                    output,
                    workspace,
                };
                backend.linear_add_norm(slab, &op)
            }
            Step::Normalize { input, norm, output } => {
                let (input, output) = (self.buffer(input), self.buffer(output));
                backend.normalize(slab, &Normalize { input, norm, output })
            }
            Step::FeedForward { input, ref layers, norm, output, ref between } => {
                let &Layers { up, activation, down } = layers;
                let (up, down) = (&up.weights, &down.weights);
                let input_norm = self.program.deferred[input.index];
                let (input, output) = (self.buffer(input), self.buffer(output));
                let between = between.as_ref().map(|(wide, scratch)| Between {
                    matrix: self.buffer(*wide),
                    workspace: self.workspace(scratch),
                });
                let op =
                    FeedForward { input, input_norm, up, activation, down, norm, output, between };
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
