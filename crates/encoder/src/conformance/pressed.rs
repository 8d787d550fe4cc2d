//! A backend whose memory others use as well: for tests of what happens when it runs short.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vecmill_memory::{Cause, Source, SourceError};

use crate::backend::{
    AddNorm, Attention, Backend, BackendError, Buffer, Embed, EmbeddingTensors, Indices, Linear,
    LinearAddNorm, LinearTensors, NormTensors, Pool, Precision, Slab, Stream,
};
use crate::batch::Shape;
use crate::model::TensorView;

/// How much others leave. Clones share it.
#[derive(Debug, Clone)]
pub struct Pressure(Arc<AtomicUsize>);

impl Default for Pressure {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(usize::MAX)))
    }
}

impl Pressure {
    /// From now on, pieces of memory over `bytes` are refused.
    pub fn leave(&self, bytes: usize) {
        self.0.store(bytes, Ordering::SeqCst);
    }
}

/// Another source's memory, as far as others leave it.
#[derive(Debug)]
pub struct PressedSource<S> {
    inner: S,
    pressure: Pressure,
}

impl<S: Source> PressedSource<S> {
    fn check(&self, operation: &'static str, bytes: usize) -> Result<(), SourceError> {
        if bytes <= self.pressure.0.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(SourceError::new(self.name(), operation, bytes, Cause::Exhausted, "others use it"))
    }
}

impl<S: Source> Source for PressedSource<S> {
    type Block = S::Block;
    type Stream = S::Stream;
    type Event = S::Event;

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn allocate(&self, bytes: usize) -> Result<S::Block, SourceError> {
        self.check("allocate", bytes)?;
        self.inner.allocate(bytes)
    }

    fn resizes_in_place(&self) -> bool {
        self.inner.resizes_in_place()
    }

    fn resize(&self, block: &mut S::Block, bytes: usize) -> Result<(), SourceError> {
        self.check("resize", bytes)?;
        self.inner.resize(block, bytes)
    }

    fn release(&self, block: S::Block) -> Result<(), SourceError> {
        self.inner.release(block)
    }

    fn address(&self, block: &S::Block) -> u64 {
        self.inner.address(block)
    }

    fn event(&self) -> Result<S::Event, SourceError> {
        self.inner.event()
    }

    fn record(&self, event: &mut S::Event, stream: &S::Stream) -> Result<(), SourceError> {
        self.inner.record(event, stream)
    }

    fn wait(&self, stream: &S::Stream, event: &S::Event) -> Result<(), SourceError> {
        self.inner.wait(stream, event)
    }

    fn has_passed(&self, event: &S::Event) -> Result<bool, SourceError> {
        self.inner.has_passed(event)
    }

    fn calls(&self) -> Vec<(&'static str, u64)> {
        self.inner.calls()
    }

    fn poison(&self, block: &mut S::Block) {
        self.inner.poison(block);
    }
}

/// Another backend's operations on [`PressedSource`]'s memory.
#[derive(Debug)]
pub struct Pressed<B> {
    inner: B,
    pressure: Pressure,
}

impl<B: Backend> Pressed<B> {
    /// `inner`, under `pressure`.
    pub fn new(inner: B, pressure: Pressure) -> Self {
        Self { inner, pressure }
    }
}

impl<B: Backend> Backend for Pressed<B> {
    type Source = PressedSource<B::Source>;
    type Linear = B::Linear;
    type Norm = B::Norm;
    type Embeddings = B::Embeddings;
    type RelativeBias = B::RelativeBias;
    type Fetched = B::Fetched;

    fn source(&self) -> Self::Source {
        PressedSource { inner: self.inner.source(), pressure: self.pressure.clone() }
    }

    fn stream(&self) -> Stream<Self> {
        self.inner.stream()
    }

    fn element_bytes(&self) -> usize {
        self.inner.element_bytes()
    }

    fn precision(&self) -> Precision {
        self.inner.precision()
    }

    fn linear_workspace(&self, rows: usize, inputs: usize, outputs: usize) -> usize {
        self.inner.linear_workspace(rows, inputs, outputs)
    }

    fn attention_workspace(&self, tokens: usize, longest: usize, head_size: usize) -> usize {
        self.inner.attention_workspace(tokens, longest, head_size)
    }

    fn load_linear(&self, parts: &[LinearTensors]) -> Result<B::Linear, BackendError> {
        self.inner.load_linear(parts)
    }

    fn load_norm(&self, tensors: &NormTensors) -> Result<B::Norm, BackendError> {
        self.inner.load_norm(tensors)
    }

    fn load_embeddings(&self, tensors: &EmbeddingTensors) -> Result<B::Embeddings, BackendError> {
        self.inner.load_embeddings(tensors)
    }

    fn load_relative_bias(
        &self,
        table: &TensorView,
        max_distance: usize,
    ) -> Result<B::RelativeBias, BackendError> {
        self.inner.load_relative_bias(table, max_distance)
    }

    fn run_batch<R: Send>(&self, operations: impl FnOnce() -> R + Send) -> R {
        self.inner.run_batch(operations)
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn pads(&self, shape: Shape) -> bool {
        self.inner.pads(shape)
    }

    fn repeat(
        &self,
        slab: &mut Slab<B>,
        shape: Shape,
        steps: impl FnOnce(&mut Slab<B>) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        self.inner.repeat(slab, shape, steps)
    }

    fn copy_in(
        &self,
        slab: &mut Slab<B>,
        values: &[u32],
        into: Indices,
    ) -> Result<(), BackendError> {
        self.inner.copy_in(slab, values, into)
    }

    fn embed(&self, slab: &mut Slab<B>, op: &Embed<'_, Self>) -> Result<(), BackendError> {
        let &Embed { ids, positions, tables, output } = op;
        self.inner.embed(slab, &Embed { ids, positions, tables, output })
    }

    fn linear(&self, slab: &mut Slab<B>, op: &Linear<'_, Self>) -> Result<(), BackendError> {
        let &Linear { input, weights, activation, output, workspace } = op;
        self.inner.linear(slab, &Linear { input, weights, activation, output, workspace })
    }

    fn attention(&self, slab: &mut Slab<B>, op: &Attention<'_, Self>) -> Result<(), BackendError> {
        let &Attention { qkv, sequences, heads, bias, output, workspace } = op;
        let op = Attention { qkv, sequences, heads, bias, output, workspace };
        self.inner.attention(slab, &op)
    }

    fn add_norm(&self, slab: &mut Slab<B>, op: &AddNorm<'_, Self>) -> Result<(), BackendError> {
        let &AddNorm { input, residual, norm, output } = op;
        self.inner.add_norm(slab, &AddNorm { input, residual, norm, output })
    }

    fn pool(&self, slab: &mut Slab<B>, op: &Pool) -> Result<(), BackendError> {
        self.inner.pool(slab, op)
    }

    fn linear_add_norm(
        &self,
        slab: &mut Slab<B>,
        op: &LinearAddNorm<'_, Self>,
    ) -> Result<(), BackendError> {
        let &LinearAddNorm { input, weights, residual, norm, output, workspace } = op;
        let op = LinearAddNorm { input, weights, residual, norm, output, workspace };
        self.inner.linear_add_norm(slab, &op)
    }

    fn fetch(&self, slab: &mut Slab<B>, from: Buffer) -> Result<B::Fetched, BackendError> {
        self.inner.fetch(slab, from)
    }

    fn collect(&self, fetched: B::Fetched, into: &mut [f32]) -> Result<(), BackendError> {
        self.inner.collect(fetched, into)
    }
}
