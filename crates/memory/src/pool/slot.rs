//! A slab and the slot that it lives in.

use std::sync::atomic::{AtomicUsize, Ordering};

use mea::atomicbox::AtomicOptionBox;

use super::state::Word;
use super::tally::Tally;
use crate::source::{Source, SourceError};

/// The memory of one batch in flight.
#[derive(Debug)]
pub(super) struct Slab<S: Source> {
    pub(super) block: S::Block,
    /// Recorded behind the last batch that used the block.
    pub(super) event: S::Event,
    /// The stream of that batch, and the number that traces call it by.
    pub(super) stream: Option<(S::Stream, u32)>,
}

impl<S: Source> Slab<S> {
    /// Whether the device has finished with the block.
    pub(super) fn is_at_rest(&self, source: &S) -> Result<bool, SourceError> {
        if self.stream.is_some() { source.has_passed(&self.event) } else { Ok(true) }
    }
}

/// A place for one slab.
pub(super) struct Slot<S: Source> {
    pub(super) word: Word,
    pub(super) tally: Tally,
    /// Whoever owns the word owns this. A pointer, so that taking it out is one atomic exchange.
    slab: AtomicOptionBox<Slab<S>>,
    /// Granules that the slab is to shrink to when it is leased next; 0 when it is not.
    recall: AtomicUsize,
}

impl<S: Source> Slot<S> {
    pub(super) fn new(trace_leases: usize) -> Self {
        Self {
            word: Word::new(),
            tally: Tally::new(trace_leases),
            slab: AtomicOptionBox::none(),
            recall: AtomicUsize::new(0),
        }
    }

    /// Takes the slab out, for the owner of the word.
    #[inline]
    pub(super) fn take(&self) -> Option<Box<Slab<S>>> {
        self.slab.take()
    }

    /// Puts the slab back, before the owner gives up the word.
    #[inline]
    pub(super) fn put(&self, slab: Box<Slab<S>>) {
        self.slab.store(Some(slab));
    }

    /// Asks for the slab to shrink to `granules` when it is leased next; 0 takes that back.
    pub(super) fn recall(&self, granules: usize) {
        self.recall.store(granules, Ordering::Relaxed);
    }

    /// What it is to shrink to.
    #[inline]
    pub(super) fn recalled(&self) -> Option<usize> {
        Some(self.recall.load(Ordering::Relaxed)).filter(|&granules| granules > 0)
    }
}
