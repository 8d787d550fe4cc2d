//! What each slot remembers of its leases: written by the lease's owner alone, read by anybody.
//!
//! Counting in one place for all threads would make them queue for it. Here each slot counts for
//! itself, in plain stores, and whoever wants a total adds them up.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

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
pub(super) struct Tally {
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

impl Tally {
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
mod tests {
    use super::*;

    #[test]
    fn each_lease_is_read_once_and_the_overwritten_ones_are_counted() {
        let tally = Tally::new(4);
        let mut read = 0;
        let mut seen = Vec::new();
        for lease in 1..=3 {
            tally.begin(lease * 10, 100, 2, true);
            tally.end(lease * 10 + 5);
        }
        assert_eq!(tally.since(&mut read, |passed| seen.push(passed.leased_at)), 0);
        assert_eq!(seen, [10, 20, 30]);
        for lease in 4..=10 {
            tally.begin(lease * 10, 100, 2, false);
            tally.end(lease * 10 + 5);
        }
        seen.clear();
        let lost = tally.since(&mut read, |passed| seen.push(passed.leased_at));
        assert_eq!(seen.len() as u64 + lost, 7);
        assert_eq!(seen.last(), Some(&100));
        assert_eq!(tally.warm(), 3);
    }

    /// Demand is followed by what came back and what is out: a lease that is both counts twice.
    #[test]
    fn a_lease_has_come_back_or_is_out_but_not_both() {
        let tally = Tally::new(4096);
        let rounds = if cfg!(miri) { 200 } else { 200_000 };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for lease in 1..=rounds {
                    tally.begin(lease, 1, 0, true);
                    tally.end(lease);
                }
            });
            let (mut read, mut last) = (0, 0);
            while last < rounds {
                tally.since(&mut read, |passed| last = passed.leased_at);
                assert!(tally.current().is_none_or(|current| current.leased_at > last));
            }
        });
    }
}
