//! What a pool remembers of all that takes time anyway: refusals, failures, what was given back, how long
//! leases took ([`Ledger`]). Each slot counts its own leases; [`Pool::recording`] has these and the
//! refusals in order of time.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

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
