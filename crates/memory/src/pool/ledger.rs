//! What a pool remembers: of each slot's leases, and of all that takes time anyway.
//!
//! - [`SlotLedger`] is written by the lease's owner alone and read by anybody. Counting in one place for
//!   all threads would make them queue for it: each slot counts for itself, in plain stores, and whoever
//!   wants a total adds them up.
//! - [`Ledger`] is the pool's: refusals, failures, what was given back, how long leases took.
//! - [`Pool::recording`] has the leases of both in order of time.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::{Pool, Shared};
use crate::recording::{Event, Recording, What};
use crate::source::{Source, SourceError};

/// Leases of one slot are numbered on from a start of its own.
const SLOT_SHIFT: u32 = 40;

/// One lease in so many is timed: reading the clock takes as long as the lease itself.
const TIMED: u32 = 16;

/// Refusals that are remembered for recordings.
const REFUSALS: usize = 1024;

/// Upper bounds of the latency histogram double from this many nanoseconds on.
const FIRST_BUCKET: u64 = 32;
pub(super) const BUCKETS: usize = 22;

thread_local! {
    static UNTIMED: Cell<u32> = const { Cell::new(0) };
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

/// A lease that was not given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refused {
    pub(super) at: u64,
    pub(super) stream: u32,
    pub(super) bytes: usize,
}

/// What a pool counts where it takes time anyway, and how long leases take.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) grown: AtomicU64,
    pub(super) waited: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) refused_with_room: AtomicU64,
    pub(super) overruns: AtomicU64,
    pub(super) retired_slabs: AtomicU64,
    pub(super) given_back_bytes: AtomicU64,
    pub(super) trims: AtomicU64,
    pub(super) failures: AtomicU64,
    latency: [AtomicU64; BUCKETS],
    latency_sum: AtomicU64,
    refusals: Mutex<VecDeque<Refused>>,
    last_failure: Mutex<Option<SourceError>>,
}

impl Ledger {
    fn one(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn grown(&self) {
        Self::one(&self.grown);
    }

    pub(super) fn waited(&self) {
        Self::one(&self.waited);
    }

    pub(super) fn overrun(&self) {
        Self::one(&self.overruns);
    }

    pub(super) fn trimmed(&self) {
        Self::one(&self.trims);
    }

    pub(super) fn given_back(&self, bytes: usize) {
        self.given_back_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn retired(&self, bytes: usize) {
        Self::one(&self.retired_slabs);
        self.given_back(bytes);
    }

    pub(super) fn refused(&self, at: u64, stream: u32, bytes: usize, had_room: bool) {
        Self::one(&self.refused);
        if had_room {
            Self::one(&self.refused_with_room);
        }
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.len() == REFUSALS {
            refusals.pop_front();
        }
        refusals.push_back(Refused { at, stream, bytes });
    }

    pub(super) fn refusals(&self) -> Vec<Refused> {
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.iter().copied().collect()
    }

    /// Notes that the source failed; whoever can act on it gets the error as well.
    pub(super) fn failed(&self, error: &SourceError) {
        Self::one(&self.failures);
        let mut last = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(error.clone());
    }

    pub(super) fn last_failure(&self) -> Option<SourceError> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[inline]
    pub(super) fn should_time(&self) -> bool {
        UNTIMED.with(|untimed| {
            let next = untimed.get().wrapping_add(1);
            untimed.set(next);
            next % TIMED == 0
        })
    }

    pub(super) fn took(&self, nanoseconds: u64) {
        let index = (0..BUCKETS - 1).find(|&index| nanoseconds <= bound(index));
        Self::one(&self.latency[index.unwrap_or(BUCKETS - 1)]);
        self.latency_sum.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Leases timed, per bucket, and the nanoseconds of all.
    pub(super) fn latency(&self) -> ([u64; BUCKETS], u64) {
        let counts = self.latency.each_ref().map(|count| count.load(Ordering::Relaxed));
        (counts, self.latency_sum.load(Ordering::Relaxed))
    }
}

/// The upper bound of a latency bucket in nanoseconds; the last one has none.
pub(super) fn bound(index: usize) -> u64 {
    FIRST_BUCKET << index
}

impl<S: Source> Pool<S> {
    /// What the pool's rings remember: the last leases of each slab, those that are still out, and
    /// the last refusals.
    pub fn recording(&self) -> Recording {
        self.shared.recording()
    }
}

impl<S: Source> Shared<S> {
    fn recording(&self) -> Recording {
        let mut events = Vec::new();
        let mut lost = 0;
        for (index, slot) in self.live_slots().enumerate() {
            let (mut read, mut id) = (0, (index as u64) << SLOT_SHIFT);
            lost += slot.ledger.since(&mut read, |lease| {
                let (stream, bytes) = (lease.stream, lease.bytes);
                events.push((lease.leased_at, What::Lease { id, stream, bytes }));
                // A lease ends after it begins, also where the clock is too coarse to tell.
                let returned_at = lease.returned_at.max(lease.leased_at + 1);
                events.push((returned_at, What::Return { id }));
                id += 1;
            });
            if let Some(lease) = slot.ledger.current() {
                let (stream, bytes) = (lease.stream, lease.bytes);
                events.push((lease.leased_at, What::Lease { id, stream, bytes }));
            }
        }
        for refused in self.ledger.refusals() {
            let (stream, bytes) = (refused.stream, refused.bytes);
            events.push((refused.at, What::Refuse { stream, bytes }));
        }
        // Of what happened at the same moment, returns come first: they made room for the rest.
        events.sort_by_key(|(at, what)| (*at, !matches!(what, What::Return { .. })));
        let event = |(nanoseconds, what)| Event { nanoseconds, what };
        Recording { events: events.into_iter().map(event).collect(), lost }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lease_is_read_once_and_the_overwritten_ones_are_counted() {
        let ledger = SlotLedger::new(4);
        let mut read = 0;
        let mut seen = Vec::new();
        for lease in 1..=3 {
            ledger.begin(lease * 10, 100, 2, true);
            ledger.end(lease * 10 + 5);
        }
        assert_eq!(ledger.since(&mut read, |passed| seen.push(passed.leased_at)), 0);
        assert_eq!(seen, [10, 20, 30]);
        for lease in 4..=10 {
            ledger.begin(lease * 10, 100, 2, false);
            ledger.end(lease * 10 + 5);
        }
        seen.clear();
        let lost = ledger.since(&mut read, |passed| seen.push(passed.leased_at));
        assert_eq!(seen.len() as u64 + lost, 7);
        assert_eq!(seen.last(), Some(&100));
        assert_eq!(ledger.warm(), 3);
    }

    /// A forecast is made by what came back and what is out: a lease that is both counts twice.
    #[test]
    fn a_lease_has_come_back_or_is_out_but_not_both() {
        let ledger = SlotLedger::new(4096);
        let rounds = if cfg!(miri) { 200 } else { 200_000 };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for lease in 1..=rounds {
                    ledger.begin(lease, 1, 0, true);
                    ledger.end(lease);
                }
            });
            let (mut read, mut last) = (0, 0);
            while last < rounds {
                ledger.since(&mut read, |passed| last = passed.leased_at);
                assert!(ledger.current().is_none_or(|current| current.leased_at > last));
            }
        });
    }
}
