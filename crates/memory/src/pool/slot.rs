//! A place for one slab, and who owns what is in it.
//!
//! A slot is one word that leases and returns change in one atomic operation each. The word holds what
//! a lease must know (the status and how much memory there is), so that reading it and claiming it is a
//! single compare-and-swap, and a generation that each lease advances: a claim by somebody who looked
//! before another lease came and went fails.
//!
//! The choice behind it: the slab is a pointer that its owner takes out and puts back by one exchange
//! each. A mutex around it, which nobody would ever wait for, takes two for each, and made a lease with
//! its return a quarter slower. What a slot remembers of its leases ([`SlotLedger`]) is written by their
//! owner alone, in plain stores, and read by anybody: counting in one place for all threads would make
//! them queue for it.

use std::sync::OnceLock;

use crate::source::{Source, SourceError};
use crate::sync::{AtomicOptionBox, AtomicU64, AtomicUsize, Ordering, fence};

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

/// A lease that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) leased_at: u64,
    pub(super) returned_at: u64,
    pub(super) bytes: usize,
    pub(super) stream: u32,
}

/// The leases of one slot.
#[derive(Debug)]
pub(super) struct SlotLedger {
    warm: AtomicU64,
    bytes: AtomicUsize,
    leased_at: AtomicU64,
    stream: AtomicU64,
    returned: AtomicU64,
    /// Made with the first lease: most slots never have one.
    ring: OnceLock<Box<[Entry]>>,
    size: usize,
}

#[derive(Debug, Default)]
struct Entry([AtomicU64; 4]);

impl SlotLedger {
    /// Remembers the last `events` leases, a power of two.
    pub(super) fn new(events: usize) -> Self {
        let none = || AtomicU64::new(0);
        Self {
            warm: none(),
            bytes: AtomicUsize::new(0),
            leased_at: none(),
            stream: none(),
            returned: none(),
            ring: OnceLock::new(),
            size: events.max(1).next_power_of_two(),
        }
    }

    /// The owner's note that its lease begins. `warm` when the slab was there already.
    #[inline]
    pub(super) fn begin(&self, now: u64, bytes: usize, stream: u32, warm: bool) {
        self.leased_at.store(now, Ordering::Relaxed);
        self.stream.store(stream.into(), Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Release); // last: the others are this lease's by then
        if warm {
            // One writer at a time: no read-modify-write is needed.
            self.warm.store(self.warm.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    /// The owner's note that its lease ends.
    #[inline]
    pub(super) fn end(&self, now: u64) {
        let index = self.returned.load(Ordering::Relaxed);
        // Whoever sees what is written below sees that the lap before it has ended.
        fence(Ordering::Release);
        let ring = self.ring.get_or_init(|| (0..self.size).map(|_| Entry::default()).collect());
        let Entry(entry) = &ring[slot_of(index, self.size)];
        entry[0].store(self.leased_at.load(Ordering::Relaxed), Ordering::Relaxed);
        entry[1].store(now, Ordering::Relaxed);
        entry[2].store(self.bytes.load(Ordering::Relaxed) as u64, Ordering::Relaxed);
        entry[3].store(self.stream.load(Ordering::Relaxed), Ordering::Relaxed);
        // In this order: whoever sees the lease among those that came back no longer sees it live.
        self.bytes.store(0, Ordering::Relaxed);
        self.returned.store(index + 1, Ordering::Release);
    }

    /// Leases that found the slab there.
    pub(super) fn warm(&self) -> u64 {
        self.warm.load(Ordering::Relaxed)
    }

    /// Bytes that the current lease asked for; 0 between leases.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// The current lease's beginning, bytes and stream.
    pub(super) fn current(&self) -> Option<Passed> {
        let bytes = self.bytes();
        (bytes > 0).then(|| Passed {
            leased_at: self.leased_at.load(Ordering::Relaxed),
            returned_at: u64::MAX,
            bytes,
            stream: narrow(self.stream.load(Ordering::Relaxed)),
        })
    }

    /// Hands out the leases that came back since `read`, moves `read` on, and returns how many were
    /// overwritten before.
    pub(super) fn since(&self, read: &mut u64, mut take: impl FnMut(Passed)) -> u64 {
        let end = self.returned.load(Ordering::Acquire);
        let size = self.size as u64;
        let Some(ring) = self.ring.get() else { return 0 };
        let start = (*read).max(end.saturating_sub(size));
        let mut lost = start - *read;
        for index in start..end {
            let Entry(entry) = &ring[slot_of(index, self.size)];
            let values = entry.each_ref().map(|value| value.load(Ordering::Relaxed));
            // If the writer has come round to this entry by now, what was read may be torn.
            fence(Ordering::Acquire);
            if self.returned.load(Ordering::Relaxed) >= index + size {
                lost += 1;
                continue;
            }
            let [leased_at, returned_at, bytes, stream] = values;
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            take(Passed { leased_at, returned_at, bytes, stream: narrow(stream) });
        }
        *read = end;
        lost
    }
}

fn narrow(stream: u64) -> u32 {
    u32::try_from(stream).unwrap_or(u32::MAX)
}

/// The entry of the `index`-th lease in a ring of `size`, a power of two.
fn slot_of(index: u64, size: usize) -> usize {
    usize::try_from(index & (size as u64 - 1)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
