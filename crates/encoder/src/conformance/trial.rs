//! A backend that is put through what tests of its users need: others that take its memory, batches
//! that are padded or overlap, operations that fail, hang or panic, results that don't arrive.
//!
//! [`Trial`] says what happens to any [`Tried`] backend that shares it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vecmill_memory::{Cause, Source, SourceError};

use crate::backend::{
    AddNorm, Attention, Backend, BackendError, Buffer, Embed, EmbeddingTensors, FeedForward,
    Indices, Linear, LinearAddNorm, NormTensors, Normalize, Pool, Precision, RegionWriter, Slab,
    StackTensors, Stream,
};
use crate::batch::Shape;
use vecmill_model::TensorView;

/// What a backend goes through. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Trial(Arc<Conditions>);

struct Conditions {
    memory_left: AtomicUsize,
    lost: AtomicBool,
    pads: AtomicBool,
    in_flight: AtomicUsize,
    withheld: AtomicUsize,
    at_start: Mutex<Hook>,
    at_collect: Mutex<Hook>,
    at_any: Mutex<AnyHook>,
}

/// Called in place of success: it may fail, block or panic.
type Hook = Arc<dyn Fn() -> Result<(), BackendError> + Send + Sync>;

/// Called with what is about to be done: it may block or panic.
type AnyHook = Arc<dyn Fn(&'static str) + Send + Sync>;

impl Default for Conditions {
    fn default() -> Self {
        Self {
            memory_left: usize::MAX.into(),
            lost: false.into(),
            pads: false.into(),
            in_flight: 1.into(),
            withheld: 0.into(),
            at_start: Mutex::new(Arc::new(|| Ok(()))),
            at_collect: Mutex::new(Arc::new(|| Ok(()))),
            at_any: Mutex::new(Arc::new(|_| ())),
        }
    }
}

impl fmt::Debug for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conditions").field("memory_left", &self.memory_left).finish_non_exhaustive()
    }
}

impl Trial {
    /// From now on, pieces of memory over `bytes` are refused, as if others used the rest.
    pub fn leave(&self, bytes: usize) {
        self.0.memory_left.store(bytes, Ordering::SeqCst);
    }

    /// From now on, memory is lost, as it is with its device.
    pub fn lose(&self) {
        self.0.lost.store(true, Ordering::SeqCst);
    }

    /// From now on, all batches are padded.
    pub fn pad(&self) {
        self.0.pads.store(true, Ordering::SeqCst);
    }

    /// So many batches are worth having started at once.
    pub fn overlap(&self, in_flight: usize) {
        self.0.in_flight.store(in_flight, Ordering::SeqCst);
    }

    /// Calls `hook` whenever a batch's indices are copied in.
    pub fn at_start(&self, hook: impl Fn() -> Result<(), BackendError> + Send + Sync + 'static) {
        *self.0.at_start.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(hook);
    }

    /// Calls `hook` whenever a batch's results are collected.
    pub fn at_collect(&self, hook: impl Fn() -> Result<(), BackendError> + Send + Sync + 'static) {
        *self.0.at_collect.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(hook);
    }

    /// Calls `hook` with the name of whatever a batch, or its memory, has the backend do.
    pub fn at_any(&self, hook: impl Fn(&'static str) + Send + Sync + 'static) {
        *self.0.at_any.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(hook);
    }

    /// From now on, the last `elements` of each batch's results never arrive.
    pub fn withhold(&self, elements: usize) {
        self.0.withheld.store(elements, Ordering::SeqCst);
    }

    fn meet(&self, what: &'static str) {
        let hook = Arc::clone(&self.0.at_any.lock().unwrap_or_else(PoisonError::into_inner));
        hook(what);
    }
}

fn call(hook: &Mutex<Hook>) -> Result<(), BackendError> {
    let hook = Arc::clone(&hook.lock().unwrap_or_else(PoisonError::into_inner));
    hook()
}

/// Another source's memory, as far as others leave it.
#[derive(Debug)]
pub struct TriedSource<S> {
    inner: S,
    trial: Trial,
}

impl<S: Source> TriedSource<S> {
    fn check(&self, operation: &'static str, bytes: usize) -> Result<(), SourceError> {
        let refused =
            |cause, reason| Err(SourceError::new(self.name(), operation, bytes, cause, reason));
        if self.trial.0.lost.load(Ordering::SeqCst) {
            return refused(Cause::Lost, "it melted");
        }
        if bytes > self.trial.0.memory_left.load(Ordering::SeqCst) {
            return refused(Cause::Exhausted, "others use it");
        }
        Ok(())
    }
}

impl<S: Source> Source for TriedSource<S> {
    type Block = S::Block;
    type Stream = S::Stream;
    type Event = S::Event;

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn allocate(&self, bytes: usize) -> Result<S::Block, SourceError> {
        self.trial.meet("allocate");
        self.check("allocate", bytes)?;
        self.inner.allocate(bytes)
    }

    fn resizes_in_place(&self) -> bool {
        self.inner.resizes_in_place()
    }

    fn resize(&self, block: &mut S::Block, bytes: usize) -> Result<(), SourceError> {
        self.trial.meet("resize");
        self.check("resize", bytes)?;
        self.inner.resize(block, bytes)
    }

    fn release(&self, block: S::Block) -> Result<(), SourceError> {
        self.trial.meet("release");
        self.inner.release(block)
    }

    fn address(&self, block: &S::Block) -> u64 {
        self.inner.address(block)
    }

    fn event(&self) -> Result<S::Event, SourceError> {
        self.trial.meet("event");
        self.check("event", 0)?;
        self.inner.event()
    }

    fn record(&self, event: &mut S::Event, stream: &S::Stream) -> Result<(), SourceError> {
        self.trial.meet("record");
        self.inner.record(event, stream)
    }

    fn wait(&self, stream: &S::Stream, event: &S::Event) -> Result<(), SourceError> {
        self.trial.meet("wait");
        self.inner.wait(stream, event)
    }

    fn has_passed(&self, event: &S::Event) -> Result<bool, SourceError> {
        self.trial.meet("has_passed");
        self.inner.has_passed(event)
    }

    fn calls(&self) -> Vec<(&'static str, u64)> {
        self.inner.calls()
    }

    fn poison(&self, block: &mut S::Block) {
        self.inner.poison(block);
    }
}

/// Another backend, under a [`Trial`].
#[derive(Debug)]
pub struct Tried<B> {
    inner: B,
    trial: Trial,
}

impl<B: Backend> Tried<B> {
    /// `inner`, under `trial`.
    pub fn new(inner: B, trial: Trial) -> Self {
        Self { inner, trial }
    }
}

impl<B: Backend> Backend for Tried<B> {
    type Lower = B::Lower;
    type Source = TriedSource<B::Source>;
    type Linear = B::Linear;
    type Norm = B::Norm;
    type Embeddings = B::Embeddings;
    type RelativeBias = B::RelativeBias;
    type Fetched = B::Fetched;

    fn source(&self) -> Self::Source {
        TriedSource { inner: self.inner.source(), trial: self.trial.clone() }
    }

    fn stream(&self) -> Stream<Self> {
        self.trial.meet("stream");
        self.inner.stream()
    }

    fn lowering(&self) -> &B::Lower {
        self.inner.lowering()
    }

    fn precision(&self) -> Precision {
        self.inner.precision()
    }

    fn load_linear(
        &self,
        stack: StackTensors<'_>,
        into: &mut RegionWriter<Slab<B>>,
    ) -> Result<B::Linear, BackendError> {
        self.inner.load_linear(stack, into)
    }

    fn load_norm(
        &self,
        tensors: &NormTensors,
        into: &mut RegionWriter<Slab<B>>,
    ) -> Result<B::Norm, BackendError> {
        self.inner.load_norm(tensors, into)
    }

    fn load_embeddings(
        &self,
        tensors: &EmbeddingTensors,
        into: &mut RegionWriter<Slab<B>>,
    ) -> Result<B::Embeddings, BackendError> {
        self.inner.load_embeddings(tensors, into)
    }

    fn load_relative_bias(
        &self,
        table: &TensorView,
        max_distance: usize,
        into: &mut RegionWriter<Slab<B>>,
    ) -> Result<B::RelativeBias, BackendError> {
        self.inner.load_relative_bias(table, max_distance, into)
    }

    fn run_batch<R: Send>(&self, operations: impl FnOnce() -> R + Send) -> R {
        self.trial.meet("run_batch");
        self.inner.run_batch(operations)
    }

    fn in_flight(&self) -> usize {
        self.trial.meet("in_flight");
        self.trial.0.in_flight.load(Ordering::SeqCst)
    }

    fn tune(&self, on: bool) {
        self.inner.tune(on);
    }

    fn ways_taken(&self) -> u64 {
        self.inner.ways_taken()
    }

    fn pads(&self, shape: Shape) -> bool {
        self.trial.meet("pads");
        self.trial.0.pads.load(Ordering::SeqCst) || self.inner.pads(shape)
    }

    fn repeat(
        &self,
        slab: &mut Slab<B>,
        shape: Shape,
        steps: impl FnMut(&mut Slab<B>) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        self.trial.meet("repeat");
        self.inner.repeat(slab, shape, steps)
    }

    fn copy_in(
        &self,
        slab: &mut Slab<B>,
        values: &[u32],
        into: Indices,
    ) -> Result<(), BackendError> {
        self.trial.meet("copy_in");
        call(&self.trial.0.at_start)?;
        self.inner.copy_in(slab, values, into)
    }

    fn embed(&self, slab: &mut Slab<B>, op: &Embed<'_, Self>) -> Result<(), BackendError> {
        self.trial.meet("embed");
        let &Embed { ids, positions, tables, output } = op;
        self.inner.embed(slab, &Embed { ids, positions, tables, output })
    }

    fn linear(&self, slab: &mut Slab<B>, op: &Linear<'_, Self>) -> Result<(), BackendError> {
        self.trial.meet("linear");
        let &Linear { input, weights, activation, output, workspace } = op;
        self.inner.linear(slab, &Linear { input, weights, activation, output, workspace })
    }

    fn attention(&self, slab: &mut Slab<B>, op: &Attention<'_, Self>) -> Result<(), BackendError> {
        self.trial.meet("attention");
        let &Attention { qkv, sequences, heads, bias, output, workspace } = op;
        let op = Attention { qkv, sequences, heads, bias, output, workspace };
        self.inner.attention(slab, &op)
    }

    fn add_norm(&self, slab: &mut Slab<B>, op: &AddNorm<'_, Self>) -> Result<(), BackendError> {
        self.trial.meet("add_norm");
        let &AddNorm { input, residual, norm, output } = op;
        self.inner.add_norm(slab, &AddNorm { input, residual, norm, output })
    }

    fn pool(&self, slab: &mut Slab<B>, op: &Pool) -> Result<(), BackendError> {
        self.trial.meet("pool");
        self.inner.pool(slab, op)
    }

    fn linear_add_norm(
        &self,
        slab: &mut Slab<B>,
        op: &LinearAddNorm<'_, Self>,
    ) -> Result<(), BackendError> {
        self.trial.meet("linear_add_norm");
        let &LinearAddNorm { input, weights, residual, residual_norm, norm, output, workspace } =
            op;
        let op = LinearAddNorm { input, weights, residual, residual_norm, norm, output, workspace };
        self.inner.linear_add_norm(slab, &op)
    }

    fn normalize(&self, slab: &mut Slab<B>, op: &Normalize<'_, Self>) -> Result<(), BackendError> {
        self.trial.meet("normalize");
        let &Normalize { input, norm, output } = op;
        self.inner.normalize(slab, &Normalize { input, norm, output })
    }

    fn feed_forward(
        &self,
        slab: &mut Slab<B>,
        op: &FeedForward<'_, Self>,
    ) -> Result<(), BackendError> {
        self.trial.meet("feed_forward");
        let &FeedForward { input, input_norm, up, activation, down, norm, output, between } = op;
        let op = FeedForward { input, input_norm, up, activation, down, norm, output, between };
        self.inner.feed_forward(slab, &op)
    }

    fn fetch(&self, slab: &mut Slab<B>, from: Buffer) -> Result<B::Fetched, BackendError> {
        self.trial.meet("fetch");
        self.inner.fetch(slab, from)
    }

    fn collect(&self, fetched: B::Fetched, into: &mut [f32]) -> Result<(), BackendError> {
        self.trial.meet("collect");
        call(&self.trial.0.at_collect)?;
        let arrive = into.len().saturating_sub(self.trial.0.withheld.load(Ordering::SeqCst));
        let kept = into[arrive..].to_vec();
        self.inner.collect(fetched, into)?;
        into[arrive..].copy_from_slice(&kept);
        Ok(())
    }
}
