//! A model on a backend: batches in, vectors out.

use std::sync::Arc;
use std::time::Duration;

use vecmill_memory::{Lease, LeaseError, Pool, Reservation};

use crate::backend::{Backend, Kernel, Slab};
use crate::batch::{Batch, Numbering, Shape};
use crate::error::BackendError;
use crate::graph::Graph;
use crate::prepared::{PlanStatistics, Prepared, Programs};
use crate::program::Place;
use crate::weights::{RegionWriter, WeightPlan, Weights, load_weights};
use vecmill_model::{Model, ModelError, Pooling, Weight};

/// A model, loaded onto a backend.
///
/// One encoder serves any number of threads, each batch on a slab of its own.
#[derive(Debug)]
pub struct Encoder<B: Backend> {
    backend: Arc<B>,
    programs: Programs<B::Lower>,
    weights: Weights<B::Weight>,
    weight_plan: WeightPlan,
    limits: Limits,
    /// The budget of what is read where the model's file is mapped.
    _mapped: Option<Reservation>,
}

/// A batch that a device works on.
#[derive(Debug)]
pub struct Started<B: Backend> {
    fetched: B::Fetched,
    elements: usize,
}

/// What an [`Encoder`] takes and gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Token ids below this are known.
    pub vocabulary: usize,
    /// The most tokens that a sequence may have.
    pub max_tokens: usize,
    /// Numbers of a sequence: of a vector, before it is cut; or scores, one for each label.
    pub dimensions: usize,
    numbering: Numbering,
}

/// Why a batch got no vectors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A token id is not in the vocabulary.
    #[error("token id {token} is not in the vocabulary of {vocabulary}")]
    UnknownToken {
        /// The id.
        token: u32,
        /// The vocabulary's size.
        vocabulary: usize,
    },
    /// A sequence is longer than the model has positions.
    #[error("a sequence has {tokens} tokens, but the model takes {limit}")]
    TooLong {
        /// Tokens of the longest sequence.
        tokens: usize,
        /// The most that the model takes.
        limit: usize,
    },
    /// No memory for the batch.
    #[error(transparent)]
    Memory(#[from] LeaseError),
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl EncodeError {
    /// What a caller that catches panics makes of one: a defect of vecmill, kept to its batch.
    pub fn panicked() -> Self {
        let reason = "it panicked: please report this".into();
        Self::Backend(BackendError { operation: "the forward pass", reason })
    }
}

/// Why a model could not be loaded onto a backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The model's files are wrong.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// There is no memory for the weights.
    #[error(transparent)]
    Memory(#[from] LeaseError),
}

impl<B: Backend> Encoder<B> {
    /// Loads `model` into a region of `pool`, of the size that was planned before anything is read;
    /// `pooling` overrides the model's own. `progress` is told layers done and in all.
    ///
    /// # Errors
    /// [`LoadError`] names the file and tensor that is missing or wrong, or says what memory there
    /// is.
    pub fn load(
        backend: B,
        model: &Model,
        pooling: Option<Pooling>,
        pool: &Pool<B::Source>,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self, LoadError> {
        Self::load_beside(Arc::new(backend), model, pooling, pool, progress)
    }

    /// The same, onto a backend that other models may be on.
    ///
    /// # Errors
    /// As there.
    pub fn load_beside(
        backend: Arc<B>,
        model: &Model,
        pooling: Option<Pooling>,
        pool: &Pool<B::Source>,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self, LoadError> {
        let lowering = backend.lowering().clone();
        let (programs, tensors) = Programs::with_weights(lowering, model, pooling)?;
        let weight_plan = programs.weights();
        let mapped = Some(pool.reserve(weight_plan.mapped_granules())?);
        let graph = programs.graph();
        let weights = load_weights::<_, _, LoadError>(pool, &weight_plan, |into| {
            Ok(load_graph(&*backend, graph, &tensors, into, progress)?)
        })?;
        let config = &model.config;
        let limits = Limits {
            vocabulary: config.vocabulary,
            max_tokens: config.max_tokens(),
            dimensions: graph.outputs().first().map_or(0, |&output| graph.value(output).columns),
            numbering: Numbering {
                first: u32::try_from(config.position_offset).unwrap_or(u32::MAX),
                types: graph.reads_types(),
            },
        };
        Ok(Self { backend, programs, weights, weight_plan, limits, _mapped: mapped })
    }

    /// With `largest` as the shape that no batch will exceed: the largest batch is planned exactly,
    /// not rounded up.
    #[must_use]
    pub fn with_largest(self, largest: Shape) -> Self {
        Self { programs: self.programs.with_largest(largest), ..self }
    }

    /// The backend that the model was loaded onto.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The same, for another model to be loaded onto it.
    pub fn shared_backend(&self) -> Arc<B> {
        Arc::clone(&self.backend)
    }

    /// How batches are computed there.
    pub fn programs(&self) -> &Programs<B::Lower> {
        &self.programs
    }

    /// Where the weights lie.
    pub fn weights(&self) -> &WeightPlan {
        &self.weight_plan
    }

    /// What the encoder takes and gives.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The bytes that a batch of `shape` takes: exact for the [bucket](Shape::bucket) that it falls
    /// into.
    pub fn peak_bytes(&self, shape: Shape) -> usize {
        self.programs.get(shape).plan().peak_bytes()
    }

    /// The most tokens of a batch that surely fits a slab of `bytes`, whatever the lengths of its
    /// inputs; 0 when none does.
    pub fn tokens_within(&self, bytes: usize) -> usize {
        self.programs.tokens_within(bytes)
    }

    /// How often plans were there already.
    pub fn plan_statistics(&self) -> PlanStatistics {
        self.programs.statistics()
    }

    /// Starts a batch on a slab leased from `pool`, waiting up to `patience` for other batches to
    /// return theirs. The slab is returned at once, to be used again when the device has come that
    /// far.
    ///
    /// # Errors
    /// [`EncodeError`]; the memory is returned in any case.
    pub fn start(
        &self,
        batch: &Batch,
        pool: &Pool<B::Source>,
        patience: Duration,
    ) -> Result<Started<B>, EncodeError> {
        self.check(batch)?;
        let exact = batch.shape();
        let prepared = self.programs.get(exact);
        let shape = if self.backend.pads(exact) { prepared.program().shape() } else { exact };
        let bytes = prepared.plan().peak_bytes();
        let mut lease = pool.lease_waiting(bytes, &self.backend.stream(), patience)?;
        let fetched = self.backend.enter(|| self.run(&prepared, (batch, shape), &mut lease))?;
        Ok(Started { fetched, elements: batch.sequences() * self.limits.dimensions })
    }

    /// Runs all steps, and starts bringing the batch's rows to the host.
    fn run(
        &self,
        prepared: &Prepared<Kernel<B>>,
        (batch, shape): (&Batch, Shape),
        lease: &mut Lease<'_, B::Source>,
    ) -> Result<B::Fetched, BackendError> {
        let packed = (batch, self.limits.numbering, shape);
        prepared.run(&*self.backend, &self.weights, packed, lease)?;
        let Some(rows) = prepared.output(0, shape) else {
            let reason = "its program has no output: please report this".into();
            return Err(BackendError { operation: "the forward pass", reason });
        };
        self.backend.fetch(lease.block_mut(), Place { rows: batch.sequences(), ..rows })
    }

    /// Waits for a batch that was started. The result has a row per sequence, pooled and projected
    /// but neither cut nor normalised: see [`finish`](crate::finish).
    ///
    /// # Errors
    /// When the device failed, or gave fewer rows than there are sequences.
    pub fn collect(&self, started: Started<B>) -> Result<Vec<f32>, EncodeError> {
        let mut rows = vec![UNWRITTEN; started.elements];
        self.backend.collect(started.fetched, &mut rows)?;
        let there = rows.chunks(self.limits.dimensions).filter(|row| is_written(row)).count();
        let sequences = rows.len() / self.limits.dimensions;
        if there < sequences {
            let reason = format!("{there} of {sequences} rows came back");
            return Err(BackendError { operation: "fetching the vectors", reason }.into());
        }
        Ok(rows)
    }

    /// [Starts](Self::start) a batch and waits for it.
    ///
    /// # Errors
    /// As for both.
    pub fn encode(
        &self,
        batch: &Batch,
        pool: &Pool<B::Source>,
        patience: Duration,
    ) -> Result<Vec<f32>, EncodeError> {
        self.collect(self.start(batch, pool, patience)?)
    }

    fn check(&self, batch: &Batch) -> Result<(), EncodeError> {
        let Limits { vocabulary, max_tokens, .. } = self.limits;
        if batch.longest() > max_tokens {
            return Err(EncodeError::TooLong { tokens: batch.longest(), limit: max_tokens });
        }
        match batch.ids().iter().find(|&&id| id as usize >= vocabulary) {
            Some(&token) => Err(EncodeError::UnknownToken { token, vocabulary }),
            None => Ok(()),
        }
    }
}

/// Loads what `graph` reads of `tensors`, its weights by their numbers, each into its place. `progress` is
/// told layers done and in all.
///
/// # Errors
/// When the device fails.
pub fn load_graph<B: Backend>(
    backend: &B,
    graph: &Graph,
    tensors: &[Weight],
    into: &mut RegionWriter<Slab<B>>,
    progress: &dyn Fn(usize, usize),
) -> Result<Weights<B::Weight>, BackendError> {
    let mut weights = Weights::new(graph.weights());
    let mut done = 0;
    progress(done, graph.layers());
    for (weight, node) in graph.loads() {
        let begun = node.layer.unwrap_or(done);
        if begun > done {
            done = begun;
            progress(done, graph.layers());
        }
        weights.keep(weight, backend.load(graph, node, tensors, into)?);
    }
    progress(graph.layers(), graph.layers());
    Ok(weights)
}

/// What a row holds until the device has written it: a NaN that no arithmetic gives.
const UNWRITTEN: f32 = f32::from_bits(0x7fca_fe5e);

/// Whether a device has written a row to its end.
fn is_written(row: &[f32]) -> bool {
    row.last().is_some_and(|value| value.to_bits() != UNWRITTEN.to_bits())
}
