//! Space in a small staging buffer, in the order of its use.
//!
//! - [`Ring`] keeps account of a buffer that copies to and from a device pass through.
//! - [`Claim`] is a contiguous range of it.
//!
//! The choice behind it: copies on a stream end in the order in which they began, so the oldest
//! range comes back first and the free space is one range, which wraps around. Ranges that are
//! released out of order wait for the older ones. There is nothing to search and nothing to merge.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use vecmill_memory::ALIGNMENT;

/// A contiguous range of a [`Ring`], until it's released.
///
/// It's plain data: dropping it releases nothing, and a copy goes stale when the range is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Claim {
    offset: usize,
    bytes: usize,
    /// Ascending, and never twice in a process: another ring's claim is stale here.
    id: u64,
}

impl Claim {
    /// The distance in bytes from the start of the buffer, a multiple of 64.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// The size in bytes that was asked for.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A claim was released that its ring doesn't have out: a mistake of the caller. The ring is
/// unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the claim of {bytes} bytes at offset {offset} isn't live in this ring: it was released before \
     or belongs to another ring; release each claim once, where it was made"
)]
pub(crate) struct StaleClaim {
    /// The claim's offset.
    pub(crate) offset: usize,
    /// The claim's size.
    pub(crate) bytes: usize,
}

/// A ring's state and counts since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RingStatistics {
    /// The bytes that can be claimed: the buffer's, rounded down to 64.
    pub(crate) capacity_bytes: usize,
    /// Bytes that can't be claimed now: live claims rounded up to 64, claims that wait for older
    /// ones, and what was skipped at the end of the buffer.
    pub(crate) used_bytes: usize,
    /// The highest value that `used_bytes` has had.
    pub(crate) peak_used_bytes: usize,
    /// Claims refused.
    pub(crate) refused_claims: u64,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    /// With rounding, and with what was skipped before it.
    taken: usize,
    released: bool,
}

/// First-in, first-out space accounting for a staging buffer.
#[derive(Debug)]
pub(crate) struct Ring {
    capacity: usize,
    /// Where the next claim starts, unless it must wrap around.
    head: usize,
    /// Bytes behind the head, wrapping around, that aren't free.
    used: usize,
    peak: usize,
    refused: u64,
    /// From the oldest to the youngest, so by ascending id.
    entries: VecDeque<Entry>,
}

impl Ring {
    /// A ring over a buffer of `capacity` bytes.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity - capacity % ALIGNMENT,
            head: 0,
            used: 0,
            peak: 0,
            refused: 0,
            entries: VecDeque::new(),
        }
    }

    /// Claims a contiguous range of `bytes`, which starts at a multiple of 64.
    ///
    /// `None` when it doesn't fit now: release older claims first. An empty ring has room for its
    /// whole capacity.
    pub(crate) fn claim(&mut self, bytes: usize) -> Option<Claim> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let Some((offset, rounded, skipped)) = self.place(bytes) else {
            self.refused += 1;
            return None;
        };
        let id = NEXT.fetch_add(1, Relaxed);
        let taken = rounded + skipped;
        self.head = offset + rounded;
        self.used += taken;
        self.peak = self.peak.max(self.used);
        self.entries.push_back(Entry { id, taken, released: false });
        Some(Claim { offset, bytes, id })
    }

    /// Gives a range back. Its space is free once all older claims are released too.
    ///
    /// # Errors
    ///
    /// The claim isn't live in this ring: it was released before, or another ring made it.
    pub(crate) fn release(&mut self, claim: Claim) -> Result<(), StaleClaim> {
        let stale = StaleClaim { offset: claim.offset, bytes: claim.bytes };
        let position = self.entries.binary_search_by_key(&claim.id, |entry| entry.id);
        let entry = position.ok().and_then(|position| self.entries.get_mut(position));
        let entry = entry.filter(|entry| !entry.released).ok_or(stale)?;
        entry.released = true;
        while self.entries.front().is_some_and(|oldest| oldest.released) {
            self.used -= self.entries.pop_front().map_or(0, |oldest| oldest.taken);
        }
        if self.used == 0 {
            self.head = 0; // the longest contiguous range for the next claim
        }
        Ok(())
    }

    /// The ring's state and counts.
    pub(crate) fn statistics(&self) -> RingStatistics {
        RingStatistics {
            capacity_bytes: self.capacity,
            used_bytes: self.used,
            peak_used_bytes: self.peak,
            refused_claims: self.refused,
        }
    }

    /// Where a claim goes, its rounded size, and what it skips at the buffer's end.
    fn place(&self, bytes: usize) -> Option<(usize, usize, usize)> {
        let rounded = bytes.max(1).checked_next_multiple_of(ALIGNMENT)?;
        let tail = self.capacity - self.head;
        let (offset, skipped) = if rounded <= tail { (self.head, 0) } else { (0, tail) };
        let fits = rounded.checked_add(skipped)? <= self.capacity - self.used;
        fits.then_some((offset, rounded, skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_younger_range_waits_for_the_older_one() {
        let mut ring = Ring::new(4096);
        let [first, second] = [1000, 3072].map(|bytes| ring.claim(bytes).unwrap());
        assert_eq!((first.offset(), second.offset()), (0, 1024));
        assert!(ring.claim(64).is_none());
        ring.release(second).unwrap();
        assert!(ring.claim(64).is_none());
        ring.release(first).unwrap();
        assert!(ring.claim(4096).is_some());
    }

    #[test]
    fn a_claim_wraps_around_when_the_tail_is_too_short() {
        let mut ring = Ring::new(1024);
        let first = ring.claim(512).unwrap();
        let second = ring.claim(256).unwrap();
        ring.release(first).unwrap();
        let wrapped = ring.claim(320).unwrap();
        assert_eq!(wrapped.offset(), 0);
        assert_eq!(ring.statistics().used_bytes, 256 + 256 + 320, "with the tail skipped");
        ring.release(second).unwrap();
        assert_eq!(ring.statistics().used_bytes, 256 + 320);
        ring.release(wrapped).unwrap();
        assert_eq!(ring.statistics().used_bytes, 0);
        let whole = ring.claim(1024).expect("an empty ring has room for its whole capacity");
        ring.release(whole).unwrap();
        ring.claim(64).unwrap();
        assert_eq!(ring.statistics().peak_used_bytes, 1024);
    }

    #[test]
    fn stale_and_foreign_claims_change_nothing() {
        let (mut ring, mut other) = (Ring::new(256), Ring::new(256));
        let first = ring.claim(64).unwrap();
        let second = ring.claim(64).unwrap();
        let foreign = other.claim(64).unwrap();
        ring.release(second).unwrap();
        assert!(ring.release(second).is_err(), "released, but not yet reclaimed");
        assert!(ring.release(foreign).is_err());
        assert_eq!(ring.statistics().used_bytes, 128);
        ring.release(first).unwrap();
        assert!(ring.release(first).is_err() && ring.release(second).is_err());
        assert_eq!(ring.statistics().used_bytes, 0);
    }

    #[test]
    fn refusals_are_counted_and_sizes_may_not_overflow() {
        let mut ring = Ring::new(127);
        for bytes in [65, usize::MAX - 63, usize::MAX - 64, usize::MAX] {
            assert!(ring.claim(bytes).is_none());
        }
        let empty = ring.claim(0).unwrap();
        assert!(ring.claim(0).is_none(), "an empty claim takes a place, too");
        ring.release(empty).unwrap();
        let statistics = RingStatistics {
            capacity_bytes: 64,
            used_bytes: 0,
            peak_used_bytes: 64,
            refused_claims: 5,
        };
        assert_eq!(ring.statistics(), statistics);
        assert!(Ring::new(63).claim(0).is_none());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Claim(usize),
        Release(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0usize..2000).prop_map(Step::Claim),
            (0usize..300).prop_map(Step::Claim),
            any::<usize>().prop_map(Step::Release),
        ];
        prop::collection::vec(step, 1..if cfg!(miri) { 50 } else { 200 })
    }

    /// Fewer, and no file of failures, where every access is checked.
    fn cases() -> ProptestConfig {
        if cfg!(miri) {
            ProptestConfig { cases: 4, failure_persistence: None, ..ProptestConfig::default() }
        } else {
            ProptestConfig::default()
        }
    }

    proptest! {
        #![proptest_config(cases())]

        /// Beside a model that knows each range that isn't reclaimed, oldest first.
        #[test]
        fn claims_never_overlap_and_are_refused_only_for_want_of_room(steps in steps()) {
            let mut ring = Ring::new(4096);
            let mut model: Vec<(Claim, bool)> = Vec::new();
            for step in steps {
                match step {
                    Step::Claim(bytes) => {
                        let used = ring.statistics().used_bytes;
                        let Some(claim) = ring.claim(bytes) else {
                            let skipped = if bytes > 4096 - ring.head { 4096 - ring.head } else { 0 };
                            prop_assert!(used + skipped + bytes.max(1) > 4096);
                            continue;
                        };
                        prop_assert_eq!(claim.offset() % 64, 0);
                        prop_assert!(claim.offset() + bytes <= 4096);
                        for (other, _) in &model {
                            let apart = claim.offset() + bytes <= other.offset()
                                || other.offset() + other.bytes() <= claim.offset();
                            prop_assert!(apart, "{claim:?} and {other:?}");
                        }
                        model.push((claim, false));
                    }
                    Step::Release(_) if model.is_empty() => {}
                    Step::Release(pick) => {
                        let pick = pick % model.len();
                        let (claim, released) = &mut model[pick];
                        prop_assert_eq!(ring.release(*claim).is_err(), *released);
                        *released = true;
                        let kept = model.iter().position(|(_, released)| !released);
                        model.drain(..kept.unwrap_or(model.len()));
                    }
                }
                prop_assert_eq!(ring.entries.len(), model.len());
                prop_assert!(ring.statistics().peak_used_bytes <= 4096);
            }
        }
    }
}
