//! How one kind of device computes a graph: a list of steps, and what each needs of memory.
//!
//! - [`Program`] is what a [`Lower`](crate::Lower) makes of a graph: [`Step`]s with kernels
//!   of its own, over [`Value`]s of which the encoder knows bytes per row and no more.
//! - [`Placed`] has the offsets that follow from it: each value lives from the step that writes it to
//!   the last that reads it, and the planner makes a place of each in one slab.
//! - [`Places`] tells a step of a batch where its operands are.
//!
//! The choice behind it: sizes are said once, by whoever writes the bytes. A program and its plan are
//! made for a bucket of shapes and hold for every batch in it: steps are the same, and a batch with
//! fewer rows uses less of each place.

use std::ops::Range;

use vecmill_memory::{ALIGNMENT, BufferId, Plan, Planner};

use crate::batch::{IndexLayout, Shape};
use crate::graph::{Graph, Rows, ValueId};

/// The rows that a program is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowBound {
    /// Those of this bucket and a few less: what a device does may depend on how many they are.
    Bucket(Shape),
    /// Any number up to these. The program is one that takes most memory: what fusing saves and
    /// deferring costs differs from size to size, and whoever wants the most that a batch may take
    /// can't count on either.
    UpTo(Shape),
}

impl RowBound {
    /// The largest shape, for which there is to be room.
    pub fn shape(self) -> Shape {
        match self {
            Self::Bucket(shape) | Self::UpTo(shape) => shape,
        }
    }
}

impl Rows {
    /// How many a batch of `shape` has.
    pub fn of(self, shape: Shape) -> usize {
        match self {
            Self::Tokens => shape.tokens,
            Self::Sequences => shape.sequences,
        }
    }
}

/// A matrix between steps, in one form or in several beside each other: its planes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// What it has rows of.
    pub rows: Rows,
    /// Bytes per row of each plane. None, where no step has it: then it takes no memory.
    pub planes: Vec<usize>,
}

/// One call of a backend.
#[derive(Debug, Clone, PartialEq)]
pub struct Step<K> {
    /// What is computed, with the numbers of its weights and its constants.
    pub kernel: K,
    /// The values that it reads.
    pub reads: Vec<ValueId>,
    /// The values that it writes. One that it reads as well is changed in place; all others have
    /// memory of their own.
    pub writes: Vec<ValueId>,
    /// Bytes of memory that it needs meanwhile. No less for more rows.
    pub scratch: usize,
    /// Whether it reads what is known of the batch: ids, positions, where sequences start.
    pub reads_batch: bool,
}

/// The steps of a graph on one kind of device.
///
/// A lowering starts with all values of the graph and without planes or steps; it gives each value
/// that it keeps its [planes](Self::keep), and [pushes](Self::push) steps in the order of their
/// running. The first plane of an output is what is fetched: rows in the device's format of
/// activations.
#[derive(Debug, Clone, PartialEq)]
pub struct Program<K> {
    shape: Shape,
    values: Vec<Value>,
    /// By value: itself, or the one whose memory it shares.
    homes: Vec<ValueId>,
    steps: Vec<Step<K>>,
    outputs: Vec<ValueId>,
}

impl<K> Program<K> {
    /// Of `graph`, without steps.
    pub fn new(graph: &Graph, rows: RowBound) -> Self {
        let ids = || (0..graph.values()).map(ValueId);
        let value = |id| Value { rows: graph.value(id).rows, planes: Vec::new() };
        Self {
            shape: rows.shape(),
            values: ids().map(value).collect(),
            homes: ids().collect(),
            steps: Vec::new(),
            outputs: graph.outputs().to_vec(),
        }
    }

    /// One more value, which the graph doesn't have.
    pub fn value(&mut self, rows: Rows, planes: Vec<usize>) -> ValueId {
        let id = ValueId(self.values.len());
        self.values.push(Value { rows, planes });
        self.homes.push(id);
        id
    }

    /// Says in which planes a value is kept, by their bytes per row.
    pub fn keep(&mut self, value: ValueId, planes: Vec<usize>) {
        self.values[value.0].planes = planes;
    }

    /// From now on `value` names the memory of `home`, whose step has been pushed: it is changed in
    /// place. No step may read what was there once it is overwritten.
    pub fn share(&mut self, value: ValueId, home: ValueId) {
        self.homes[value.0] = self.homes[home.0];
    }

    /// From now on, what is fetched in place of `output` is `other`.
    pub fn replace_output(&mut self, output: ValueId, other: ValueId) {
        for wanted in self.outputs.iter_mut().filter(|wanted| **wanted == output) {
            *wanted = other;
        }
    }

    /// Adds a step behind those before.
    pub fn push(&mut self, mut step: Step<K>) {
        for value in step.reads.iter_mut().chain(&mut step.writes) {
            *value = self.homes[value.0];
        }
        self.steps.push(step);
    }

    /// The steps, in the order of their running.
    pub fn steps(&self) -> &[Step<K>] {
        &self.steps
    }

    /// A value's rows and planes.
    pub fn planes(&self, value: ValueId) -> &Value {
        &self.values[self.homes[value.0].0]
    }

    /// The shape that there is room for.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// What is fetched, in the order of the graph's outputs.
    pub fn outputs(&self) -> impl Iterator<Item = ValueId> {
        self.outputs.iter().map(|output| self.homes[output.0])
    }

    /// Places all values.
    pub fn place(&self) -> Placed {
        let mut planner = Planner::new();
        let indices = planner.buffer(index_bytes(IndexLayout::of(self.shape).length), 0..=0);
        let mut buffers: Vec<Option<BufferId>> = vec![None; self.values.len()];
        let mut scratch = Vec::with_capacity(self.steps.len());
        for (index, step) in self.steps.iter().enumerate() {
            if step.reads_batch {
                planner.keep_until(indices, index);
            }
            for value in step.reads.iter().chain(&step.writes) {
                let buffer = buffers[value.0].get_or_insert_with(|| {
                    planner.buffer(self.values[value.0].bytes(self.shape), index..=index)
                });
                planner.keep_until(*buffer, index);
            }
            let bytes = step.scratch;
            scratch.push((bytes > 0).then(|| (planner.buffer(bytes, index..=index), bytes)));
        }
        for output in self.outputs() {
            if let Some(buffer) = buffers[output.0] {
                planner.keep_until(buffer, self.steps.len());
            }
        }
        let plan = planner.plan();
        let planes = self.values.iter().zip(buffers).map(|(value, buffer)| {
            buffer.map_or_else(Vec::new, |buffer| value.placed(plan.offset(buffer), self.shape))
        });
        let scratch = scratch.into_iter().map(|scratch| {
            scratch.map_or(0..0, |(buffer, bytes)| plan.offset(buffer)..plan.offset(buffer) + bytes)
        });
        let (planes, scratch) = (planes.collect(), scratch.collect());
        Placed { indices: plan.offset(indices), planes, scratch, plan }
    }
}

impl Value {
    /// Bytes of all planes, each of which starts at a multiple of the alignment.
    fn bytes(&self, shape: Shape) -> usize {
        let rows = self.rows.of(shape);
        let add = |end: usize, bytes: &usize| end.next_multiple_of(ALIGNMENT) + rows * bytes;
        self.planes.iter().fold(0, add)
    }

    /// Its planes from `offset` on.
    fn placed(&self, offset: usize, shape: Shape) -> Vec<PlacedPlane> {
        let mut end = offset;
        let planes = self.planes.iter().map(|&row_bytes| {
            let offset = end.next_multiple_of(ALIGNMENT);
            end = offset + self.rows.of(shape) * row_bytes;
            PlacedPlane { offset, row_bytes, rows: self.rows }
        });
        planes.collect()
    }
}

/// Where everything of a program lies in a slab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    plan: Plan,
    indices: usize,
    planes: Vec<Vec<PlacedPlane>>,
    scratch: Vec<Range<usize>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PlacedPlane {
    offset: usize,
    row_bytes: usize,
    rows: Rows,
}

impl Placed {
    /// The offsets and lifetimes of all buffers, and the peak.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// For step number `step` of a batch of `shape`.
    pub fn at(&self, step: usize, shape: Shape) -> Places<'_> {
        Places { placed: self, shape, scratch: &self.scratch[step] }
    }

    /// Where the batch's indices begin.
    pub fn indices(&self) -> usize {
        self.indices
    }

    /// A plane of a value, for a batch of `shape`.
    pub fn plane(&self, value: ValueId, plane: usize, shape: Shape) -> Place {
        let PlacedPlane { offset, row_bytes, rows } = self.planes[value.0][plane];
        Place { offset, rows: rows.of(shape), row_bytes }
    }
}

/// Rows in a slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Distance in bytes from the start of the slab, a multiple of 64.
    pub offset: usize,
    /// As many as the batch has of what they are of.
    pub rows: usize,
    /// Bytes of each, without a gap between them.
    pub row_bytes: usize,
}

impl Place {
    /// Its bytes in the slab.
    pub fn bytes(self) -> Range<usize> {
        self.offset..self.offset + self.rows * self.row_bytes
    }
}

/// Where the operands of one step of one batch are.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    placed: &'a Placed,
    shape: Shape,
    scratch: &'a Range<usize>,
}

impl Places<'_> {
    /// A plane of a value.
    pub fn plane(&self, value: ValueId, plane: usize) -> Place {
        self.placed.plane(value, plane, self.shape)
    }

    /// How many planes a value has.
    pub fn planes(&self, value: ValueId) -> usize {
        self.placed.planes[value.0].len()
    }

    /// The step's scratch memory: as many bytes as it asked for, from a multiple of 64 on.
    pub fn scratch(&self) -> Range<usize> {
        self.scratch.clone()
    }

    /// The batch's sizes. Rows that belong to no sequence count among its tokens.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The bytes of the tokens' ids, 32 bits each.
    pub fn ids(&self) -> Range<usize> {
        self.part(0, self.shape.tokens)
    }

    /// The bytes of the tokens' [positions and types](crate::position_and_type).
    pub fn positions(&self) -> Range<usize> {
        self.part(IndexLayout::of(self.shape).positions, self.shape.tokens)
    }

    /// The bytes of where sequences start, in rows, and where the last one ends.
    pub fn starts(&self) -> Range<usize> {
        self.part(IndexLayout::of(self.shape).starts, self.shape.sequences + 1)
    }

    fn part(&self, first: usize, length: usize) -> Range<usize> {
        let start = self.placed.indices + index_bytes(first);
        start..start + index_bytes(length)
    }
}

fn index_bytes(count: usize) -> usize {
    count * size_of::<u32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::GraphBuilder;
    use vecmill_model::{Activation, Linear, TensorView, Weight};

    const SHAPE: Shape = Shape { tokens: 100, sequences: 3, longest: 50 };

    fn step(reads: &[ValueId], writes: &[ValueId], scratch: usize) -> Step<()> {
        let (reads, writes) = (reads.to_vec(), writes.to_vec());
        Step { kernel: (), reads, writes, scratch, reads_batch: false }
    }

    /// A chain of layers of 16 columns.
    fn chain(layers: usize) -> Graph {
        let weight = TensorView::from_f32("w", &[16, 16], vec![0.0; 256]).unwrap();
        let layer = Linear { weight: Weight::Tensor(weight), bias: None };
        let mut graph = GraphBuilder::new(1);
        let mut value = graph.embed(&layer.weight, Some(&layer.weight), None);
        for _ in 0..layers {
            value = graph.linear(value, &layer, Activation::Identity);
        }
        graph.finish(vec![value]).0
    }

    #[test]
    fn values_live_until_they_are_read_last_and_planes_lie_behind_each_other() {
        let graph = chain(2);
        let mut program = Program::new(&graph, RowBound::Bucket(SHAPE));
        let [a, b, c] = [0, 1, 2].map(ValueId);
        for (value, planes) in [(a, vec![3, 5]), (b, vec![64]), (c, vec![64])] {
            program.keep(value, planes);
        }
        program.push(step(&[], &[a], 0));
        program.push(step(&[a], &[b], 1000));
        program.push(step(&[b], &[c], 0));
        let placed = program.place();
        let lives: Vec<_> = placed.plan().buffers().iter().map(|buffer| &buffer.steps).collect();
        assert_eq!(lives, [&(0..=0), &(0..=1), &(1..=2), &(1..=1), &(2..=3)]);
        let (first, second) = (placed.plane(a, 0, SHAPE), placed.plane(a, 1, SHAPE));
        assert_eq!((first.rows, first.bytes().len(), second.bytes().len()), (100, 300, 500));
        assert_eq!(second.offset, first.offset + 320);
        let places = placed.at(1, SHAPE);
        assert_eq!((places.scratch().len(), places.planes(a)), (1000, 2));
        let fewer = Shape { tokens: 7, ..SHAPE };
        assert_eq!(placed.at(2, fewer).plane(b, 0).rows, 7);
        assert_eq!(placed.at(2, fewer).starts().len(), 16);
    }

    #[test]
    fn what_no_step_has_takes_no_memory_and_what_is_shared_takes_it_once() {
        let graph = chain(3);
        let mut program = Program::new(&graph, RowBound::UpTo(SHAPE));
        let [a, b, c, d] = [0, 1, 2, 3].map(ValueId);
        program.keep(a, vec![64]);
        program.push(step(&[], &[a], 0));
        program.share(c, a);
        program.push(step(&[a], &[c], 0)); // in place, and b is fused away
        program.keep(d, vec![64]);
        program.push(step(&[c], &[d], 0));
        let placed = program.place();
        assert_eq!(placed.plan().buffers().len(), 3);
        assert_eq!(program.steps()[2].reads, [a]);
        assert!(program.planes(b).planes.is_empty() && program.planes(c).planes == [64]);
        let more = program.value(Rows::Sequences, vec![8]);
        program.push(step(&[d], &[more], 0));
        program.replace_output(d, more);
        assert_eq!(program.outputs().collect::<Vec<_>>(), [more]);
        assert_eq!(program.place().plane(more, 0, SHAPE).bytes().len(), 24);
    }
}
