//! Who owns a slot: one word that leases and returns change in one atomic operation each.
//!
//! The word holds what a lease must know (the status and how much memory there is), so that reading
//! it and claiming it is a single compare-and-swap, and a generation that each lease advances: a
//! claim by somebody who looked before another lease came and went fails.

use crate::sync::{AtomicU64, Ordering};

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

/// A slot's word.
#[derive(Debug)]
pub(super) struct Word(AtomicU64);

impl Word {
    /// The word of an empty slot.
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(State::EMPTY.pack()))
    }

    /// What it says now.
    #[inline]
    pub(super) fn read(&self) -> State {
        State::unpack(self.0.load(Ordering::Acquire))
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

    /// Gives the slot up: the owner's last act on it.
    #[inline]
    pub(super) fn publish(&self, state: State) {
        // A swap rather than a store: it orders the word before the reading of the waiters' count.
        self.0.swap(state.pack(), Ordering::SeqCst);
    }

    #[inline]
    fn change(&self, seen: State, next: State) -> Option<State> {
        let (current, new) = (seen.pack(), next.pack());
        let changed = self.0.compare_exchange(current, new, Ordering::AcqRel, Ordering::Relaxed);
        changed.is_ok().then_some(next)
    }
}

impl Default for Word {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_word_holds_what_was_put_in() {
        for status in
            [Status::Empty, Status::Idle, Status::Leased, Status::Claimed, Status::Quarantined]
        {
            for granules in [0, 1, 4096, (1 << 24) - 1] {
                for generation in [0, 7, u32::MAX] {
                    let state = State { status, granules, generation };
                    assert_eq!(State::unpack(state.pack()), state);
                }
            }
        }
    }

    #[test]
    fn a_stale_reading_claims_nothing() {
        let word = Word::new();
        word.publish(State { status: Status::Idle, granules: 3, generation: 0 });
        let seen = word.read();
        let leased = word.lease(seen).unwrap();
        assert!(word.lease(seen).is_none() && word.claim(seen).is_none());
        word.publish(State { status: Status::Idle, ..leased });
        assert!(word.lease(seen).is_none(), "it came and went in between");
        assert!(word.lease(word.read()).is_some());
    }
}

/// Every interleaving of what threads do to one slot: `just loom`.
#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::{Arc, Mutex};

    use super::*;

    /// A slot whose content notices two owners: they would meet at the lock.
    struct Slot {
        word: Word,
        uses: Mutex<usize>,
    }

    impl Slot {
        fn idle() -> Arc<Self> {
            let word = Word::new();
            word.publish(State { status: Status::Idle, granules: 2, generation: 0 });
            Arc::new(Self { word, uses: Mutex::new(0) })
        }

        fn own(&self) {
            let mut uses = self.uses.try_lock().expect("two owners at once");
            *uses += 1;
            loom::thread::yield_now();
        }

        fn lease_and_return(&self) -> bool {
            let seen = self.word.read();
            let idle = (seen.status == Status::Idle).then_some(seen);
            let Some(state) = idle.and_then(|seen| self.word.lease(seen)) else { return false };
            self.own();
            self.word.publish(State { status: Status::Idle, ..state });
            true
        }

        fn grow(&self) {
            let seen = self.word.read();
            if seen.status == Status::Idle
                && let Some(state) = self.word.claim(seen)
            {
                self.own();
                let granules = state.granules + 1;
                self.word.publish(State { status: Status::Idle, granules, ..state });
            }
        }
    }

    #[test]
    fn a_slot_has_one_owner_at_a_time() {
        loom::model(|| {
            let slot = Slot::idle();
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let slot = Arc::clone(&slot);
                    loom::thread::spawn(move || usize::from(slot.lease_and_return()))
                })
                .collect();
            slot.grow();
            let leases: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
            let last = slot.word.read();
            assert_eq!(last.status, Status::Idle, "whatever happened, it came back");
            assert_eq!(last.generation as usize, leases, "each lease is counted");
            assert_eq!(*slot.uses.lock().unwrap(), leases + last.granules - 2);
        });
    }
}
