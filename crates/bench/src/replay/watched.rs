//! A source that is looked at from outside, and whose time is the recording's.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vecmill_memory::{Source, SourceError};

/// Passes everything on to a source, keeps a list of the blocks that are out, and tells the time
/// that it was told.
#[derive(Debug)]
pub(super) struct Watched<S: Source> {
    source: S,
    blocks: Arc<Blocks>,
    now: Arc<AtomicU64>,
}

/// Sizes of the blocks that are out, by address.
#[derive(Debug, Default)]
pub(super) struct Blocks(Mutex<BTreeMap<u64, usize>>);

impl Blocks {
    /// The list.
    pub(super) fn list(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        // Entries are whole also where a thread died.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A block that leaves the list when it goes.
#[derive(Debug)]
pub(super) struct WatchedBlock<B> {
    block: Option<B>, // taken only when it is released
    address: u64,
    blocks: Arc<Blocks>,
}

impl<B> Drop for WatchedBlock<B> {
    fn drop(&mut self) {
        self.blocks.list().remove(&self.address);
    }
}

impl<S: Source> Watched<S> {
    /// Watches `source`. The time is what `now` holds, in nanoseconds.
    pub(super) fn new(source: S, now: Arc<AtomicU64>) -> Self {
        Self { source, blocks: Arc::default(), now }
    }

    /// The list of blocks that are out.
    pub(super) fn blocks(&self) -> Arc<Blocks> {
        Arc::clone(&self.blocks)
    }
}

impl<S: Source> Source for Watched<S> {
    type Block = WatchedBlock<S::Block>;
    type Stream = S::Stream;
    type Event = S::Event;

    fn name(&self) -> &str {
        self.source.name()
    }

    fn allocate(&self, bytes: usize) -> Result<Self::Block, SourceError> {
        let block = self.source.allocate(bytes)?;
        let (address, blocks) = (self.source.address(&block), self.blocks());
        blocks.list().insert(address, bytes);
        Ok(WatchedBlock { block: Some(block), address, blocks })
    }

    fn resizes_in_place(&self) -> bool {
        self.source.resizes_in_place()
    }

    fn resize(&self, block: &mut Self::Block, bytes: usize) -> Result<(), SourceError> {
        if let Some(inner) = &mut block.block {
            self.source.resize(inner, bytes)?;
            self.blocks.list().insert(block.address, bytes);
        }
        Ok(())
    }

    fn release(&self, mut block: Self::Block) -> Result<(), SourceError> {
        block.block.take().map_or(Ok(()), |block| self.source.release(block))
    }

    fn address(&self, block: &Self::Block) -> u64 {
        block.address
    }

    fn event(&self) -> Result<S::Event, SourceError> {
        self.source.event()
    }

    fn record(&self, event: &mut S::Event, stream: &S::Stream) -> Result<(), SourceError> {
        self.source.record(event, stream)
    }

    fn wait(&self, stream: &S::Stream, event: &S::Event) -> Result<(), SourceError> {
        self.source.wait(stream, event)
    }

    fn has_passed(&self, event: &S::Event) -> Result<bool, SourceError> {
        self.source.has_passed(event)
    }

    fn wait_on_host(&self, event: &S::Event) -> Result<(), SourceError> {
        self.source.wait_on_host(event)
    }

    fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn available(&self) -> Option<usize> {
        self.source.available()
    }

    fn calls(&self) -> Vec<(&'static str, u64)> {
        self.source.calls()
    }

    fn poison(&self, block: &mut Self::Block) {
        if let Some(block) = &mut block.block {
            self.source.poison(block);
        }
    }
}
