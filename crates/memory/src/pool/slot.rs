//! A place for one slab, and who owns what is in it.
//!
//! A slot is one word that leases and returns change in one atomic operation each. The word holds what
//! a lease must know (the status and how much memory there is), so that reading it and claiming it is a
//! single compare-and-swap, and a generation that each lease advances: a claim by somebody who looked
//! before another lease came and went fails.
//!
//! The choice behind it: the slab is a pointer that its owner takes out and puts back by one exchange
//! each. A mutex around it, which nobody would ever wait for, takes two for each, and made a lease with
//! its return a quarter slower.

use crate::source::{Source, SourceError};
use crate::sync::{AtomicOptionBox, AtomicU64, AtomicUsize, Ordering};

use super::ledger::SlotLedger;

/// What a slot is doing. Whoever moved it to `Leased` or `Claimed` owns what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    /// No memory.
    Empty = 0,
    /// A slab that waits for a batch.
    Idle = 1,
    /// A slab that a batch holds.
    Leased = 2,
    /// Being grown, shrunk or given back.
    Claimed = 3,
    /// A slab whose last work can't be told to have finished: not used again.
    Quarantined = 4,
}

/// A reading of a slot's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    /// What the slot is doing.
    pub(super) status: Status,
    /// The slab's size in granules, below 2²⁴.
    pub(super) granules: usize,
    /// Counts leases, and wraps around.
    pub(super) generation: u32,
}

/// The most granules that a slab can have: 32 TiB.
pub(super) const MOST_GRANULES: usize = (1 << 24) - 1;
const GRANULES: u64 = MOST_GRANULES as u64;

impl State {
    const EMPTY: Self = Self { status: Status::Empty, granules: 0, generation: 0 };

    #[inline]
    fn pack(self) -> u64 {
        let granules = (self.granules as u64).min(GRANULES);
        (u64::from(self.generation) << 32) | (granules << 8) | u64::from(self.status as u8)
    }

    #[inline]
    fn unpack(word: u64) -> Self {
        let status = match word & 0xff {
            1 => Status::Idle,
            2 => Status::Leased,
            3 => Status::Claimed,
            4 => Status::Quarantined,
            _ => Status::Empty,
        };
        let (granules, generation) = (((word >> 8) & GRANULES) as usize, (word >> 32) as u32);
        Self { status, granules, generation }
    }
}

/// A slot that this thread owns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owned {
    /// Its place among the pool's slots.
    pub(super) slot: usize,
    pub(super) state: State,
    /// Whether its slab was there, large enough.
    pub(super) warm: bool,
}

/// The memory of one batch in flight.
#[derive(Debug)]
pub(super) struct Slab<S: Source> {
    pub(super) block: S::Block,
    /// Recorded behind the last batch that used the block.
    pub(super) event: S::Event,
    /// The stream of that batch, and the number that recordings call it by.
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
    word: AtomicU64,
    /// Whoever owns the word owns this.
    slab: AtomicOptionBox<Slab<S>>,
    /// Granules that the slab is to shrink to when it is leased next; 0 when it is not.
    recall: AtomicUsize,
    /// What the slot remembers of its leases.
    pub(super) ledger: SlotLedger,
}

impl<S: Source> Slot<S> {
    /// An empty slot that remembers its last `leases`.
    pub(super) fn new(leases: usize) -> Self {
        Self {
            word: AtomicU64::new(State::EMPTY.pack()),
            slab: AtomicOptionBox::none(),
            recall: AtomicUsize::new(0),
            ledger: SlotLedger::new(leases),
        }
    }

    /// What the slot is doing now.
    #[inline]
    pub(super) fn state(&self) -> State {
        State::unpack(self.word.load(Ordering::Acquire))
    }

    /// Moves from `seen`, which is idle, to leased, under the next generation.
    #[inline]
    pub(super) fn lease(&self, seen: State) -> Option<State> {
        let generation = seen.generation.wrapping_add(1);
        self.change(seen, State { status: Status::Leased, generation, ..seen })
    }

    /// Takes the slot out of circulation, for whoever changes its memory.
    pub(super) fn claim(&self, seen: State) -> Option<State> {
        self.change(seen, State { status: Status::Claimed, ..seen })
    }

    /// Says what the slot is from now on. Unless that is leased, it gives the slot up: the owner's last
    /// act on it.
    #[inline]
    pub(super) fn publish(&self, state: State) {
        // A swap rather than a store: it orders the word before the reading of the waiters' count.
        self.word.swap(state.pack(), Ordering::SeqCst);
    }

    #[inline]
    fn change(&self, seen: State, next: State) -> Option<State> {
        let (current, new) = (seen.pack(), next.pack());
        let changed = self.word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Relaxed);
        changed.is_ok().then_some(next)
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

    /// Does `work` with the slab, for the owner of the word of a slot with memory.
    pub(super) fn with_slab<R>(&self, work: impl FnOnce(&mut Slab<S>) -> R) -> R {
        let Some(mut slab) = self.take() else {
            unreachable!("an owned slot with memory has a slab")
        };
        let result = work(&mut slab);
        self.put(slab);
        result
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

#[cfg(test)]
mod tests;
