//! A backend that is put through what tests of its users need: others that take its memory, batches
//! that are padded or overlap, operations that fail, hang or panic, results that don't arrive.
//!
//! [`FaultPlan`] says what happens to any [`Faulty`] backend that shares it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vecmill_encoder::{Backend, Graph, Kernel, Node, Place, Places, Slab, Step, Stream, Weights};
use vecmill_encoder::{BackendError, RegionWriter, RepeatKey, Shape};
use vecmill_memory::{Cause, Source, SourceError};
use vecmill_model::Weight;

/// What a backend goes through. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct FaultPlan(Arc<Conditions>);

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

impl FaultPlan {
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
pub struct FaultySource<S> {
    inner: S,
    plan: FaultPlan,
}

impl<S: Source> FaultySource<S> {
    fn check(&self, operation: &'static str, bytes: usize) -> Result<(), SourceError> {
        let refused =
            |cause, reason| Err(SourceError::new(self.name(), operation, bytes, cause, reason));
        if self.plan.0.lost.load(Ordering::SeqCst) {
            return refused(Cause::Lost, "it melted");
        }
        if bytes > self.plan.0.memory_left.load(Ordering::SeqCst) {
            return refused(Cause::Exhausted, "others use it");
        }
        Ok(())
    }
}

impl<S: Source> Source for FaultySource<S> {
    type Block = S::Block;
    type Stream = S::Stream;
    type Event = S::Event;

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn allocate(&self, bytes: usize) -> Result<S::Block, SourceError> {
        self.plan.meet("allocate");
        self.check("allocate", bytes)?;
        self.inner.allocate(bytes)
    }

    fn resizes_in_place(&self) -> bool {
        self.inner.resizes_in_place()
    }

    fn resize(&self, block: &mut S::Block, bytes: usize) -> Result<(), SourceError> {
        self.plan.meet("resize");
        self.check("resize", bytes)?;
        self.inner.resize(block, bytes)
    }

    fn release(&self, block: S::Block) -> Result<(), SourceError> {
        self.plan.meet("release");
        self.inner.release(block)
    }

    fn address(&self, block: &S::Block) -> u64 {
        self.inner.address(block)
    }

    fn event(&self) -> Result<S::Event, SourceError> {
        self.plan.meet("event");
        self.check("event", 0)?;
        self.inner.event()
    }

    fn record(&self, event: &mut S::Event, stream: &S::Stream) -> Result<(), SourceError> {
        self.plan.meet("record");
        self.inner.record(event, stream)
    }

    fn wait(&self, stream: &S::Stream, event: &S::Event) -> Result<(), SourceError> {
        self.plan.meet("wait");
        self.inner.wait(stream, event)
    }

    fn has_passed(&self, event: &S::Event) -> Result<bool, SourceError> {
        self.plan.meet("has_passed");
        self.inner.has_passed(event)
    }

    fn calls(&self) -> Vec<(&'static str, u64)> {
        self.inner.calls()
    }

    fn poison(&self, block: &mut S::Block) {
        self.inner.poison(block);
    }
}

/// Another backend, under a [`FaultPlan`].
#[derive(Debug)]
pub struct Faulty<B> {
    inner: B,
    plan: FaultPlan,
}

impl<B: Backend> Faulty<B> {
    /// `inner`, under `plan`.
    pub fn new(inner: B, plan: FaultPlan) -> Self {
        Self { inner, plan }
    }
}

impl<B: Backend> Backend for Faulty<B> {
    type Lower = B::Lower;
    type Source = FaultySource<B::Source>;
    type Weight = B::Weight;
    type Fetched = B::Fetched;

    fn lowering(&self) -> &B::Lower {
        self.inner.lowering()
    }

    fn source(&self) -> Self::Source {
        FaultySource { inner: self.inner.source(), plan: self.plan.clone() }
    }

    fn stream(&self) -> Stream<Self> {
        self.plan.meet("stream");
        self.inner.stream()
    }

    fn load(
        &self,
        graph: &Graph,
        node: &Node,
        weights: &[Weight],
        into: &mut RegionWriter<Slab<B>>,
    ) -> Result<B::Weight, BackendError> {
        self.inner.load(graph, node, weights, into)
    }

    fn copy_in(&self, slab: &mut Slab<B>, values: &[u32], at: usize) -> Result<(), BackendError> {
        self.plan.meet("copy_in");
        call(&self.plan.0.at_start)?;
        self.inner.copy_in(slab, values, at)
    }

    fn run(
        &self,
        weights: &Weights<B::Weight>,
        step: &Step<Kernel<B>>,
        places: &Places<'_>,
        slab: &mut Slab<B>,
    ) -> Result<(), BackendError> {
        self.plan.meet(match (step.reads.len(), step.reads_batch) {
            (0, _) => "run on no value",
            (_, true) => "run on sequences",
            (1, false) => "run on one value",
            (_, false) => "run on two values",
        });
        self.inner.run(weights, step, places, slab)
    }

    fn fetch(&self, slab: &mut Slab<B>, from: Place) -> Result<B::Fetched, BackendError> {
        self.plan.meet("fetch");
        self.inner.fetch(slab, from)
    }

    fn collect(&self, fetched: B::Fetched, into: &mut [f32]) -> Result<(), BackendError> {
        self.plan.meet("collect");
        call(&self.plan.0.at_collect)?;
        let arrive = into.len().saturating_sub(self.plan.0.withheld.load(Ordering::SeqCst));
        let kept = into[arrive..].to_vec();
        self.inner.collect(fetched, into)?;
        into[arrive..].copy_from_slice(&kept);
        Ok(())
    }

    fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.plan.meet("enter");
        self.inner.enter(work)
    }

    fn in_flight(&self) -> usize {
        self.plan.meet("in_flight");
        self.plan.0.in_flight.load(Ordering::SeqCst)
    }

    fn tune(&self, on: bool) {
        self.inner.tune(on);
    }

    fn ways_taken(&self) -> u64 {
        self.inner.ways_taken()
    }

    fn pads(&self, shape: Shape) -> bool {
        self.plan.meet("pads");
        self.plan.0.pads.load(Ordering::SeqCst) || self.inner.pads(shape)
    }

    fn repeat(
        &self,
        slab: &mut Slab<B>,
        key: RepeatKey,
        steps: impl FnMut(&mut Slab<B>) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        self.plan.meet("repeat");
        self.inner.repeat(slab, key, steps)
    }
}
