//! Programs and where their values lie, made once for each bucket of shapes.
//!
//! - [`Programs`] are those of one model on one kind of device: all that is known of its memory, and
//!   no device is asked. [`Prepared`] is one of them.
//!
//! The choice behind it: lowering and planning take longer than leasing by far, and batches of similar
//! shapes share a program. How many are kept is bounded, because shapes come from outside; the one
//! used least recently goes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vecmill_memory::{Lease, Plan};

use crate::backend::{Backend, Lower, RepeatKey};
use crate::batch::{Batch, MAX_BATCH_TOKENS, Numbering, Shape};
use crate::error::BackendError;
use crate::forward;
use crate::graph::{Graph, Op, Rows};
use crate::program::{Place, Placed, Program, RowBound};
use crate::weights::{WeightPlan, Weights};
use vecmill_model::{Model, ModelError, Pooling, Weight};

/// Programs that are kept: at about 20 KB for one of twelve layers, 20 MB.
const CAPACITY: usize = 1024;

/// A program, and where its values lie.
#[derive(Debug)]
pub struct Prepared<K> {
    /// Of those that it belongs to, or its own.
    number: u64,
    program: Program<K>,
    placed: Placed,
}

impl<K> Prepared<K> {
    /// Of `program`, all of whose steps are there.
    pub fn of(program: Program<K>) -> Self {
        Self::numbered(next_number(), program)
    }

    fn numbered(number: u64, program: Program<K>) -> Self {
        let placed = program.place();
        Self { number, program, placed }
    }

    /// The steps.
    pub fn program(&self) -> &Program<K> {
        &self.program
    }

    /// Every buffer's offset and the peak.
    pub fn plan(&self) -> &Plan {
        self.placed.plan()
    }

    /// Runs all steps for `batch`, padded to `shape`, which the program holds. The lease is told how far
    /// they reach into it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn run<B: Backend>(
        &self,
        backend: &B,
        weights: &Weights<B::Weight>,
        (batch, numbering, shape): (&Batch, Numbering, Shape),
        lease: &mut Lease<'_, B::Source>,
    ) -> Result<(), BackendError>
    where
        B::Lower: Lower<Kernel = K>,
    {
        let Self { number: programs, program, placed } = self;
        lease.check_use(placed.plan().peak_bytes());
        let slab = lease.block_mut();
        backend.copy_in(slab, &batch.indices(shape, numbering), placed.indices())?;
        let key = RepeatKey { programs: *programs, shape };
        backend.repeat(slab, key, |slab| {
            let mut steps = program.steps().iter().enumerate();
            steps.try_for_each(|(index, step)| {
                backend.run(weights, step, &placed.at(index, shape), slab)
            })
        })
    }

    /// The rows of an output, for a batch of `shape`: in the order of the graph's outputs.
    pub fn output(&self, index: usize, shape: Shape) -> Option<Place> {
        let output = self.program.outputs().nth(index)?;
        Some(self.placed.plane(output, 0, shape))
    }
}

/// A number that nothing else has.
fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The programs of a model on a kind of device.
///
/// Batches and weights are planned as on the device itself, and no weight is read.
#[derive(Debug)]
pub struct Programs<L: Lower> {
    number: u64,
    lowering: L,
    graph: Graph,
    /// The largest shape that programs are rounded up to.
    largest: Shape,
    /// The most tokens that a sequence may have.
    max_tokens: usize,
    state: Mutex<State<L::Kernel>>,
}

/// What [`Programs`] have been asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlanStatistics {
    /// Programs that are kept now, each with its plan.
    pub plans: usize,
    /// Those that were there.
    pub hits: u64,
    /// Those that had to be made.
    pub misses: u64,
    /// Those that were dropped for newer ones.
    pub evictions: u64,
}

/// Which linear layers have a row for each sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SequenceRows {
    None,
    OfTheSameLayers,
    OfOwnLayers,
}

impl<L: Lower> Programs<L> {
    /// Of `model`; `pooling` overrides the model's own.
    ///
    /// # Errors
    /// [`ModelError`] names the file and tensor that is missing or wrong.
    pub fn of(lowering: L, model: &Model, pooling: Option<Pooling>) -> Result<Self, ModelError> {
        Ok(Self::with_weights(lowering, model, pooling)?.0)
    }

    /// The same, and the weights by their numbers.
    pub(crate) fn with_weights(
        lowering: L,
        model: &Model,
        pooling: Option<Pooling>,
    ) -> Result<(Self, Vec<Weight>), ModelError> {
        let (graph, weights) = forward::graph(model, pooling)?;
        let max_tokens = model.config.max_tokens();
        let largest = Shape { tokens: usize::MAX, sequences: usize::MAX, longest: max_tokens };
        let (number, state) = (next_number(), Mutex::default());
        Ok((Self { number, lowering, graph, largest, max_tokens, state }, weights))
    }

    /// With `largest` as the shape that no batch will exceed: the largest batch is planned exactly,
    /// not rounded up.
    #[must_use]
    pub fn with_largest(self, largest: Shape) -> Self {
        Self { largest, ..self }
    }

    /// The kind of device.
    pub fn lowering(&self) -> &L {
        &self.lowering
    }

    /// What is computed.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The most tokens that a sequence may have.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Where the weights lie.
    pub fn weights(&self) -> WeightPlan {
        let mut plan = WeightPlan::default();
        for (_, node) in self.graph.loads() {
            self.lowering.store(&self.graph, node, &mut plan);
        }
        plan
    }

    /// The program that serves batches of `shape`: that of the [bucket](Shape::bucket) that it falls
    /// into. Other threads are not held up while one is made; two that miss the same one both make it,
    /// and one of the two is kept.
    pub fn get(&self, shape: Shape) -> Arc<Prepared<L::Kernel>> {
        let bucket = self.bucket(shape);
        if let Some(prepared) = self.state().find(bucket) {
            return prepared;
        }
        let prepared = Arc::new(self.make(RowBound::Bucket(bucket)));
        self.state().keep(bucket, prepared)
    }

    /// A program for these rows, made anew.
    pub fn make(&self, rows: RowBound) -> Prepared<L::Kernel> {
        Prepared::numbered(self.number, self.lowering.lower(&self.graph, rows))
    }

    /// The most that a batch of `shape` takes, whatever operations are one kernel with a few tokens
    /// more or fewer.
    pub(crate) fn costliest(&self, shape: Shape) -> Prepared<L::Kernel> {
        self.make(RowBound::UpTo(shape))
    }

    /// The shape that programs of batches such as this are for.
    pub fn bucket(&self, shape: Shape) -> Shape {
        shape.bucket(self.largest)
    }

    /// The most tokens of a batch that surely fits a slab of `bytes`, whatever the lengths of its
    /// inputs; 0 when none does.
    pub fn tokens_within(&self, bytes: usize) -> usize {
        let Shape { tokens: limit, longest, .. } = self.largest;
        let fits = |tokens: usize| {
            let shape = Shape { tokens, sequences: tokens, longest: longest.min(tokens) };
            let shape = self.bucket(shape);
            self.costliest(shape).plan().peak_bytes() <= bytes
        };
        last_where(fits, 0, limit.min(MAX_BATCH_TOKENS))
    }

    /// Whether linear layers have a row for each sequence, beside those that have one for each token:
    /// of the same sizes, or, with dense layers, of others.
    pub(crate) fn sequence_rows(&self) -> SequenceRows {
        let of_sequences = self.graph.nodes().iter().filter(|node| {
            let rows = self.graph.value(node.output).rows;
            matches!(node.op, Op::Linear { .. }) && rows == Rows::Sequences
        });
        let own = of_sequences.map(|node| node.layer.is_none());
        match own.reduce(|one, other| one || other) {
            None => SequenceRows::None,
            Some(false) => SequenceRows::OfTheSameLayers,
            Some(true) => SequenceRows::OfOwnLayers,
        }
    }

    /// How often programs were there already.
    pub fn statistics(&self) -> PlanStatistics {
        let state = self.state();
        PlanStatistics { plans: state.kept.len(), ..state.statistics }
    }

    fn state(&self) -> MutexGuard<'_, State<L::Kernel>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The largest number up to `last` for which `holds`, which must not hold again once it does not;
/// `first` is taken to hold.
pub(crate) fn last_where(holds: impl Fn(usize) -> bool, first: usize, last: usize) -> usize {
    let (mut below, mut above) = (first, last.max(first) + 1);
    while above - below > 1 {
        let middle = below + (above - below) / 2;
        if holds(middle) { below = middle } else { above = middle }
    }
    below
}

#[derive(Debug)]
struct State<K> {
    kept: HashMap<Shape, Used<K>>,
    /// Counts look-ups: the time by which the least recently used program is told.
    now: u64,
    statistics: PlanStatistics,
}

#[derive(Debug)]
struct Used<K> {
    prepared: Arc<Prepared<K>>,
    last: u64,
}

impl<K> Default for State<K> {
    fn default() -> Self {
        Self { kept: HashMap::new(), now: 0, statistics: PlanStatistics::default() }
    }
}

impl<K> State<K> {
    fn find(&mut self, bucket: Shape) -> Option<Arc<Prepared<K>>> {
        self.now += 1;
        let Some(used) = self.kept.get_mut(&bucket) else {
            self.statistics.misses += 1;
            return None;
        };
        used.last = self.now;
        self.statistics.hits += 1;
        Some(Arc::clone(&used.prepared))
    }

    /// Keeps `prepared`, or returns the one that another thread has put there meanwhile.
    fn keep(&mut self, bucket: Shape, prepared: Arc<Prepared<K>>) -> Arc<Prepared<K>> {
        if !self.kept.contains_key(&bucket) && self.kept.len() == CAPACITY {
            // Looking at all of them takes microseconds, less than the planning before it.
            let oldest = self.kept.iter().min_by_key(|(_, used)| used.last);
            if let Some(oldest) = oldest.map(|(&bucket, _)| bucket) {
                self.kept.remove(&oldest);
                self.statistics.evictions += 1;
            }
        }
        let used = self.kept.entry(bucket).or_insert(Used { prepared, last: self.now });
        Arc::clone(&used.prepared)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::sizes::Sizes;
    use vecmill_model::DType;

    fn programs() -> Programs<Sizes> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/bert-mean");
        Programs::of(Sizes::of(DType::F32), &Model::open(&folder).unwrap(), None).unwrap()
    }

    /// Each of a bucket of its own.
    fn shape(number: usize) -> Shape {
        Shape { tokens: 16 * (number + 1), sequences: 1, longest: 1 }
    }

    #[test]
    fn the_least_recently_used_program_goes() {
        let programs = programs();
        let mut state = State::default();
        let made = |number| Arc::new(programs.make(RowBound::Bucket(shape(number))));
        for number in 0..CAPACITY {
            assert!(state.find(shape(number)).is_none());
            state.keep(shape(number), made(number));
        }
        assert!(state.find(shape(0)).is_some());
        state.keep(shape(CAPACITY), made(CAPACITY));
        assert!(state.find(shape(0)).is_some() && state.find(shape(CAPACITY)).is_some());
        assert!(state.find(shape(1)).is_none(), "it was used least recently");
        assert_eq!((state.statistics.evictions, state.kept.len()), (1, CAPACITY));
    }

    #[test]
    fn threads_share_one_program_for_a_bucket() {
        let programs = programs();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..1000 {
                        let shape = shape(round % 16);
                        assert_eq!(programs.get(shape).program.shape(), programs.bucket(shape));
                    }
                });
            }
        });
        let seen = programs.statistics();
        assert_eq!((seen.hits + seen.misses, seen.plans, seen.evictions), (4000, 16, 0));
    }
}
