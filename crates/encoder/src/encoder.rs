//! A model on a backend: batches in, vectors out.

use std::sync::Arc;
use std::time::Duration;

use vecmill_memory::{LeaseError, Plan, PlanCache, PlanCacheStatistics, Pool, Reservation};

use crate::backend::{Backend, BackendError, Lower, WeightPlan, load_weights};
use crate::batch::{Batch, MAX_BATCH_TOKENS, Shape};
use crate::fit::last_where;
use crate::forward::{LoadError, Loading, Network, SequenceRows};
use crate::paper::{Counting, PaperBackend};
use crate::program::{Fusion, Program};
use vecmill_model::{Model, Pooling, Poolings};

/// A model, loaded onto a backend.
///
/// One encoder serves any number of threads, each batch on a slab of its own.
#[derive(Debug)]
pub struct Encoder<B: Backend> {
    backend: B,
    network: Network<B>,
    limits: Limits,
    /// The largest shape that plans are rounded up to.
    largest: Shape,
    plans: PlanCache<Shape>,
    weights: WeightPlan,
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
    /// Dimensions of a vector, before it is cut.
    pub dimensions: usize,
    position_offset: u32,
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

impl<L: Lower> Encoder<PaperBackend<L>> {
    /// `model` on a device of a kind, on paper: batches and weights are planned as there, and no
    /// weight is read.
    ///
    /// # Errors
    /// [`LoadError`] names the file and tensor that is missing or wrong.
    pub fn on_paper(
        lowering: L,
        model: &Model,
        pooling: Option<Pooling>,
    ) -> Result<Self, LoadError> {
        let mut counting = Counting { lowering: &lowering, plan: WeightPlan::default() };
        let pooling = pooling.map_or(model.pipeline.pooling, Poolings::from);
        let network = Network::load(&mut counting, model, pooling, &|_, _| {})?;
        let weights = counting.plan;
        Ok(Self::of(PaperBackend::new(lowering), network, model, weights))
    }
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
        let plan = Encoder::on_paper(backend.lowering().clone(), model, pooling)?.weights;
        let mapped = pool.reserve(plan.mapped_granules())?;
        let pooling = pooling.map_or(model.pipeline.pooling, Poolings::from);
        let network = load_weights(pool, &plan, |into| {
            Network::load(&mut Loading { backend: &backend, into }, model, pooling, progress)
        })?;
        Ok(Self { _mapped: Some(mapped), ..Self::of(backend, network, model, plan) })
    }

    fn of(backend: B, network: Network<B>, model: &Model, weights: WeightPlan) -> Self {
        let config = &model.config;
        let limits = Limits {
            vocabulary: config.vocabulary,
            max_tokens: config.max_tokens(),
            dimensions: model.row(),
            position_offset: u32::try_from(config.position_offset).unwrap_or(u32::MAX),
        };
        let largest =
            Shape { tokens: usize::MAX, sequences: usize::MAX, longest: limits.max_tokens };
        let plans = PlanCache::default();
        Self { backend, network, limits, largest, plans, weights, _mapped: None }
    }

    /// With `largest` as the shape that no batch will exceed: the largest batch is planned exactly,
    /// not rounded up.
    #[must_use]
    pub fn with_largest(self, largest: Shape) -> Self {
        Self { largest, ..self }
    }

    /// The backend that the model was loaded onto.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Where the weights lie.
    pub fn weights(&self) -> &WeightPlan {
        &self.weights
    }

    /// What the encoder takes and gives.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The memory that a batch of `shape` gets: every buffer's offset and the peak, which is exact
    /// for the [bucket](Shape::bucket) that the shape falls into. Plans that were made are kept.
    pub fn plan(&self, shape: Shape) -> Arc<Plan> {
        let bucket = self.bucket(shape);
        self.plans.get_or_plan(bucket, || self.plan_exactly(bucket))
    }

    /// The plan of this very shape, made anew.
    pub fn plan_exactly(&self, shape: Shape) -> Plan {
        self.network.program(&self.backend, shape, Fusion::Of(shape)).plan()
    }

    /// The most that a batch of `shape` takes, whatever operations are one kernel with a few tokens
    /// more or fewer.
    pub(crate) fn costliest(&self, shape: Shape) -> Plan {
        self.network.program(&self.backend, shape, Fusion::Costliest).plan()
    }

    /// The shape that plans of batches such as this are for.
    pub(crate) fn bucket(&self, shape: Shape) -> Shape {
        shape.bucket(self.largest)
    }

    /// Which linear layers have a row for each sequence.
    pub(crate) fn sequence_rows(&self) -> SequenceRows {
        self.network.sequence_rows()
    }

    /// As the plan of its bucket says.
    fn program(&self, shape: Shape) -> Program<'_, B> {
        let fusion = Fusion::Of(self.bucket(shape));
        self.network.program(&self.backend, shape, fusion)
    }

    /// Whether a batch of `shape` can run as `plan` says.
    #[cfg(test)]
    pub(crate) fn holds(&self, shape: Shape, plan: &Plan) -> bool {
        self.program(shape).fits(plan)
    }

    /// The most tokens of a batch that surely fits a slab of `bytes`, whatever the lengths of its
    /// inputs; 0 when none does.
    pub fn tokens_within(&self, bytes: usize) -> usize {
        let Shape { tokens: limit, longest, .. } = self.largest;
        let fits = |tokens: usize| {
            let shape = Shape { tokens, sequences: tokens, longest: longest.min(tokens) };
            let shape = self.bucket(shape);
            self.costliest(shape).peak_bytes() <= bytes
        };
        last_where(fits, 0, limit.min(MAX_BATCH_TOKENS))
    }

    /// How often plans were there already.
    pub fn plan_statistics(&self) -> PlanCacheStatistics {
        self.plans.statistics()
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
        let shape = if self.backend.pads(exact) { self.bucket(exact) } else { exact };
        let program = self.program(shape).placed(self.plan(shape));
        let bytes = program.plan().peak_bytes();
        let mut lease = pool.lease_waiting(bytes, &self.backend.stream(), patience)?;
        let offset = self.limits.position_offset;
        let fetched = self.backend.run_batch(|| program.start(batch, offset, &mut lease))?;
        Ok(Started { fetched, elements: batch.sequences() * self.limits.dimensions })
    }

    /// Waits for a batch that was started. The result has a row per sequence, pooled and projected
    /// but neither cut nor normalised: see [`finish`].
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

/// What a row holds until the device has written it: a NaN that no arithmetic gives.
const UNWRITTEN: f32 = f32::from_bits(0x7fca_fe5e);

/// Whether a device has written a row to its end.
fn is_written(row: &[f32]) -> bool {
    row.last().is_some_and(|value| value.to_bits() != UNWRITTEN.to_bits())
}

/// Which numbers of a pooled row are given length one together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scaling {
    /// None: they stay as they are.
    AsIs,
    /// Those that are kept.
    Kept,
    /// All of the row, before it is cut.
    Whole,
}

/// Cuts a pooled row to its leading `dimensions` and scales it as `scaling` says.
///
/// A row of zeros stays as it is.
///
/// ```
/// use vecmill_encoder::{Scaling, finish};
///
/// assert_eq!(finish(&[3.0, 4.0, 12.0], 2, Scaling::Kept), [0.6, 0.8]);
/// assert_eq!(finish(&[3.0, 4.0, 0.0], 1, Scaling::Whole), [0.6]);
/// ```
pub fn finish(row: &[f32], dimensions: usize, scaling: Scaling) -> Vec<f32> {
    let kept = &row[..dimensions.min(row.len())];
    let measured = match scaling {
        Scaling::AsIs => return kept.to_vec(),
        Scaling::Kept => kept,
        Scaling::Whole => row,
    };
    let squares: f64 = measured.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    // As in PyTorch's `normalize`: the floor keeps zeros from becoming NaN.
    let scale = 1.0 / squares.sqrt().max(1e-12);
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
    kept.iter().map(|&value| (f64::from(value) * scale) as f32).collect()
}
