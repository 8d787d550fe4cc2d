//! When no idle slab fits: growing one, taking a new one, and giving way when the source runs dry.
//!
//! A slab that is too small grows where it is, if the source can do that; so what is held follows
//! the number of batches at once, not the variety of their sizes. Where it can't, the largest idle
//! slab is replaced.
//!
//! The ladder, when the source refuses: take no more than needed → give idle slabs back → say so, for
//! the caller to split the batch or wait.

use std::sync::atomic::Ordering;

use super::slot::{Owned, Slab, State, Status};
use super::{LeaseError, Pool, Shared};
use crate::budget::{GRANULE, class_bytes, class_of};
use crate::source::{Cause, Source, SourceError};

/// Why memory was not obtained.
pub(super) enum Refusal {
    /// The budget is used up by leases.
    Budget,
    /// Every slot is taken.
    Slots,
    Source(SourceError),
}

impl<S: Source> Pool<S> {
    /// Gives all idle slabs back to the source, and returns how many bytes that were. What the
    /// device still works on stays.
    pub fn trim(&self) -> usize {
        let trimmed = self.shared.retire_all_idle();
        self.shared.ledger.trimmed();
        trimmed
    }
}

impl<S: Source> Shared<S> {
    /// Obtains a slab of at least `needed` bytes, a multiple of the granule, leased to the caller.
    pub(super) fn grow(&self, needed: usize) -> Result<Owned, LeaseError> {
        let available = self.budget.available();
        if needed > available {
            return Err(LeaseError::TooLarge { needed, available });
        }
        let wanted = self.growth_target(needed).min(available / GRANULE * GRANULE);
        let mut refusal = match self.obtain(wanted.max(needed)) {
            Ok(owned) => return Ok(owned),
            Err(refusal) => refusal,
        };
        let mut leased = 0;
        for give_idle_back in [false, true] {
            if let Refusal::Source(error) = &refusal
                && error.cause != Cause::Exhausted
            {
                break;
            }
            if give_idle_back {
                self.retire_all_idle();
            }
            // A batch may have come back meanwhile.
            if let Some(owned) = self.claim_warm(needed / GRANULE) {
                return Ok(owned);
            }
            // Also before the attempt: what comes back after it was not there to be had.
            leased = self.leased_bytes();
            match self.obtain(needed) {
                Ok(owned) => return Ok(owned),
                Err(next) => refusal = next,
            }
        }
        let leased = leased.max(self.leased_bytes());
        Err(match refusal {
            Refusal::Source(source) if source.cause == Cause::Exhausted => {
                LeaseError::Pressure { needed, leased, source }
            }
            Refusal::Source(error) => error.into(),
            Refusal::Budget | Refusal::Slots => LeaseError::Busy { needed, leased, available },
        })
    }

    /// How large a slab for `needed` bytes is made: what this rank of demand usually wants, or a
    /// whole class where it can't grow later.
    fn growth_target(&self, needed: usize) -> usize {
        if !self.source.resizes_in_place() {
            return self.slab_bytes(needed);
        }
        let larger =
            |state: &State| state.status == Status::Leased && state.granules * GRANULE >= needed;
        let rank = self.live_slots().map(|slot| slot.state()).filter(larger).count();
        // Policy only: if the learning is under way just now, do without.
        let usual = self.learned.try_lock().ok().and_then(|learned| learned.usual(rank));
        usual.unwrap_or(0).max(needed).next_multiple_of(GRANULE)
    }

    /// How large a slab for `bytes` is: a whole class where it can't grow later.
    pub(super) fn slab_bytes(&self, bytes: usize) -> usize {
        let class = if self.source.resizes_in_place() { None } else { class_of(bytes) };
        class.map_or_else(|| bytes.next_multiple_of(GRANULE), class_bytes)
    }

    fn obtain(&self, bytes: usize) -> Result<Owned, Refusal> {
        if self.source.resizes_in_place() {
            if let Some(owned) = self.claim_largest_idle() {
                let held = owned.state.granules * GRANULE;
                let more = bytes.saturating_sub(held);
                return self
                    .commit(more)
                    .and_then(|()| self.extend(owned, held + more))
                    .inspect_err(|_| self.publish(owned, Status::Idle, owned.state.granules));
            }
        } else {
            self.retire_largest_idle();
        }
        self.commit(bytes)?;
        self.fill_empty(bytes)
    }

    /// Fills an empty slot with a slab of `bytes`, which the budget has been committed to.
    pub(super) fn fill_empty(&self, bytes: usize) -> Result<Owned, Refusal> {
        let fill = |owned: Owned| {
            let event = self.source.event()?;
            let block = self.source.allocate(bytes)?;
            self.slots[owned.slot].put(Box::new(Slab { block, event, stream: None }));
            Ok(())
        };
        let filled = self.claim_empty().ok_or(Refusal::Slots).and_then(|owned| {
            fill(owned).map(|()| owned).map_err(|error| {
                self.publish(owned, Status::Empty, 0);
                self.source_failed(error)
            })
        });
        let owned = filled.inspect_err(|_| self.budget.free(bytes))?;
        self.budget.held_grew();
        Ok(self.as_lease(owned, bytes))
    }

    /// Makes the slab of a claimed slot `bytes` large, the growth of which the budget has been
    /// committed to. On failure the slot stays claimed and the budget is free again.
    pub(super) fn extend(&self, owned: Owned, bytes: usize) -> Result<Owned, Refusal> {
        let held = owned.state.granules * GRANULE;
        if bytes > held {
            let resize = |slab: &mut Slab<S>| self.source.resize(&mut slab.block, bytes);
            let resized = self.slots[owned.slot].with_slab(resize);
            resized.map_err(|error| {
                self.budget.free(bytes - held);
                self.source_failed(error)
            })?;
            self.budget.held_grew();
        }
        Ok(self.as_lease(owned, bytes))
    }

    fn source_failed(&self, error: SourceError) -> Refusal {
        self.ledger.failed(&error);
        Refusal::Source(error)
    }

    /// Gives up a slot that this thread owns. Whoever changed something that others wait for tells
    /// them. An attempt that failed must not: those who wait would keep waking each other.
    pub(super) fn publish(&self, owned: Owned, status: Status, granules: usize) {
        self.slots[owned.slot].publish(State { status, granules, ..owned.state });
    }

    /// Turns a claimed slot of `bytes` into one that is leased to this thread.
    fn as_lease(&self, owned: Owned, bytes: usize) -> Owned {
        let state = State {
            status: Status::Leased,
            granules: bytes / GRANULE,
            generation: owned.state.generation.wrapping_add(1),
        };
        let slot = &self.slots[owned.slot];
        slot.recall(0); // what was to shrink was another size
        slot.publish(state);
        Owned { state, ..owned }
    }

    /// Takes `bytes` of the budget, giving idle slabs back for it if it must.
    fn commit(&self, bytes: usize) -> Result<(), Refusal> {
        while !self.budget.commit(bytes) {
            if self.retire_largest_idle() == 0 {
                return Err(Refusal::Budget);
            }
        }
        Ok(())
    }

    fn claim_empty(&self) -> Option<Owned> {
        for (slot, place) in self.slots.iter().enumerate() {
            let seen = place.state();
            if seen.status == Status::Empty
                && let Some(state) = place.claim(seen)
            {
                self.used.fetch_max(slot + 1, Ordering::AcqRel);
                return Some(Owned { slot, state, warm: false });
            }
        }
        None
    }

    pub(super) fn claim_largest_idle(&self) -> Option<Owned> {
        self.claim_idle_where(|_, _| true)
    }

    /// Claims the largest idle slot that `fits`.
    fn claim_idle_where(&self, fits: impl Fn(usize, State) -> bool) -> Option<Owned> {
        loop {
            let used = self.used.load(Ordering::Acquire);
            let idle = (0..used).map(|slot| (slot, self.slots[slot].state()));
            let (slot, seen) = idle
                .filter(|&(slot, state)| state.status == Status::Idle && fits(slot, state))
                .max_by_key(|(_, state)| state.granules)?;
            if let Some(state) = self.slots[slot].claim(seen) {
                return Some(Owned { slot, state, warm: false });
            }
        }
    }

    /// Gives the largest idle slab that the device has finished with back, and returns its bytes.
    fn retire_largest_idle(&self) -> usize {
        self.idle_one_by_one().map(|owned| self.retire(owned)).find(|&bytes| bytes > 0).unwrap_or(0)
    }

    /// Claims the idle slots, each once, the largest first. Whoever gets one gives it up again.
    fn idle_one_by_one(&self) -> impl Iterator<Item = Owned> {
        let mut seen = [false; super::SLOTS];
        std::iter::from_fn(move || {
            let owned = self.claim_idle_where(|slot, _| !seen[slot])?;
            seen[owned.slot] = true;
            Some(owned)
        })
    }

    /// Notes that a lease was refused, and whether it need not have been.
    pub(super) fn refused(&self, bytes: usize, stream: &S::Stream, error: &LeaseError) {
        let had_room = match *error {
            // Then as well as now: a lease may have come back in between.
            LeaseError::Busy { needed, leased, available } => {
                leased.saturating_add(needed) <= available && self.free_bytes() >= bytes
            }
            _ => false,
        };
        self.ledger.refused(self.source.now(), self.number_of(stream), bytes, had_room);
    }

    /// Bytes of the slabs that batches hold.
    fn leased_bytes(&self) -> usize {
        let leased = self.live_slots().map(|slot| slot.state());
        leased
            .filter(|state| state.status == Status::Leased)
            .map(|state| state.granules * GRANULE)
            .sum()
    }

    /// Bytes that a lease could have: unused budget and idle slabs that the device has finished
    /// with.
    fn free_bytes(&self) -> usize {
        let at_rest = self.idle_one_by_one().map(|owned| {
            let at_rest = self.is_at_rest(owned);
            self.publish(owned, Status::Idle, owned.state.granules);
            if at_rest { owned.state.granules * GRANULE } else { 0 }
        });
        let at_rest: usize = at_rest.sum();
        self.budget.available().saturating_sub(self.budget.held()) + at_rest
    }

    /// Whether the device has finished with the slab of a slot that this thread owns.
    pub(super) fn is_at_rest(&self, owned: Owned) -> bool {
        let at_rest = self.slots[owned.slot].with_slab(|slab| slab.is_at_rest(&self.source));
        at_rest.unwrap_or_else(|error| {
            self.ledger.failed(&error);
            error.cause == Cause::Lost // nothing runs there any more
        })
    }

    pub(super) fn retire_all_idle(&self) -> usize {
        std::iter::repeat_with(|| self.retire_largest_idle()).take_while(|&bytes| bytes > 0).sum()
    }

    /// Gives the slab of a claimed slot back, unless the device still works on it.
    pub(super) fn retire(&self, owned: Owned) -> usize {
        let slot = &self.slots[owned.slot];
        let bytes = owned.state.granules * GRANULE;
        if !self.is_at_rest(owned) {
            self.publish(owned, Status::Idle, owned.state.granules);
            return 0;
        }
        let Some(slab) = slot.take() else { unreachable!("a claimed slot has its slab") };
        if let Err(error) = self.source.release(slab.block) {
            self.ledger.failed(&error);
        }
        self.budget.free(bytes);
        self.ledger.retired(bytes);
        self.publish(owned, Status::Empty, 0);
        self.waiting.wake();
        bytes
    }
}
