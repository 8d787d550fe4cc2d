//! What happens beside the batches: learning what is wanted, making slabs ready, giving them back.
//!
//! [`Pool::maintain`] is one step, at the source's own time; [`Keeper`] is a thread that repeats it.

use std::cmp::Reverse;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::prediction::Demand;
use super::state::{State, Status};
use super::tally::Passed;
use super::{GiveBack, Owned, Pool, Shared};
use crate::budget::GRANULE;
use crate::source::{Cause, Source};

/// What has been learned.
#[derive(Debug)]
pub(super) struct Upkeep {
    pub(super) demand: Demand,
    /// Leases of each slot that were learned from.
    read: Vec<u64>,
    pub(super) lost: u64,
}

/// What one step did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Bytes given back to the source.
    pub given_back_bytes: usize,
    /// Bytes of slabs made ready ahead of demand.
    pub made_ready_bytes: usize,
    /// Quarantined slabs that are good again, or whose device is gone and which were given up.
    pub recovered: usize,
}

impl Upkeep {
    pub(super) fn new(slots: usize, period: Duration, now: u64) -> Self {
        Self { demand: Demand::new(period, now), read: vec![0; slots], lost: 0 }
    }

    /// What the slab of a rank usually has to hold.
    pub(super) fn usual(&self, rank: usize) -> Option<usize> {
        self.demand.usual().get(rank).copied()
    }
}

impl<S: Source> Pool<S> {
    /// One step of upkeep: learns from the leases since the last one, gives back what has not been
    /// needed for a period, and makes ready what usually is.
    pub fn maintain(&self) -> Maintained {
        self.shared.maintain()
    }

    /// Starts a thread that maintains the pool every `interval` until the keeper is dropped.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn keep(&self, interval: Duration) -> std::io::Result<Keeper> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (pool, signal) = (self.clone(), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("memory-upkeep".into()).spawn(move || {
            let (stopped, changed) = &*signal;
            let mut guard = stopped.lock().unwrap_or_else(PoisonError::into_inner);
            while !*guard {
                let waited = changed.wait_timeout(guard, interval);
                guard = waited.unwrap_or_else(PoisonError::into_inner).0;
                if !*guard {
                    pool.maintain();
                }
            }
        })?;
        Ok(Keeper { stop, thread: Some(thread) })
    }
}

/// A thread that maintains a pool; dropping it ends the thread.
#[derive(Debug)]
pub struct Keeper {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let (stopped, changed) = &*self.stop;
        *stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the runtime; the pool works without upkeep.
            let _ = thread.join();
        }
    }
}

impl<S: Source> Shared<S> {
    pub(super) fn upkeep(&self) -> MutexGuard<'_, Upkeep> {
        self.upkeep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns from the leases since the last time.
    pub(super) fn observe(&self, upkeep: &mut Upkeep, now: u64) {
        let mut leases: Vec<Passed> = Vec::new();
        for (slot, read) in self.live_slots().zip(&mut upkeep.read) {
            upkeep.lost += slot.tally.since(read, |lease| leases.push(lease));
            leases.extend(slot.tally.current());
        }
        upkeep.demand.observe(&mut leases, now);
    }

    fn maintain(&self) -> Maintained {
        let now = self.source.now();
        let mut upkeep = self.upkeep();
        self.observe(&mut upkeep, now);
        let (recent, usual) = (upkeep.demand.recent(), upkeep.demand.usual());
        drop(upkeep);
        let mut done = Maintained { recovered: self.recover(), ..Maintained::default() };
        let busy = !recent.is_empty();
        let rank = |sizes: &[usize], rank: usize| sizes.get(rank).copied().unwrap_or(0);
        if self.settings.give_back != GiveBack::Never {
            let keep = |index| {
                let expected = if busy && self.settings.predict { rank(&usual, index) } else { 0 };
                rank(&recent, index).max(expected)
            };
            done.given_back_bytes = self.give_back_beyond(keep);
        }
        if busy && self.settings.predict {
            done.made_ready_bytes = self.make_ready(&usual);
        }
        done
    }

    /// Slots with memory, the largest first.
    fn by_size(&self) -> Vec<(usize, State)> {
        let states = self.live_slots().map(|slot| slot.word.read()).enumerate();
        let mut slots: Vec<_> = states.filter(|(_, state)| state.granules > 0).collect();
        slots.sort_by_key(|&(slot, state)| (Reverse(state.granules), slot));
        slots
    }

    /// Gives back what slabs have beyond the sizes to keep, by rank. What a batch holds now is
    /// marked, to be given back when it is leased next.
    fn give_back_beyond(&self, keep: impl Fn(usize) -> usize) -> usize {
        let mut given_back = 0;
        for (rank, (slot, seen)) in self.by_size().into_iter().enumerate() {
            let held = seen.granules * GRANULE;
            let keep = Some(keep(rank)).filter(|&keep| keep > 0);
            let keep = keep.map_or(0, |keep| self.slab_bytes(keep));
            // Hysteresis: a little too much is not worth a driver call.
            if held <= keep + (keep / 16).max(GRANULE) {
                self.slots[slot].recall(0);
                continue;
            }
            if keep > 0 {
                self.slots[slot].recall(keep / GRANULE);
            }
            if seen.status != Status::Idle {
                continue;
            }
            let Some(state) = self.slots[slot].word.claim(seen) else { continue };
            let owned = Owned { slot, state, warm: false };
            // What can't shrink is replaced: the slab for what is kept is made ready again.
            if keep == 0 || !self.source.resizes_in_place() {
                given_back += self.retire(owned);
            } else {
                let state = self.shrink(owned, keep / GRANULE);
                given_back += held - state.granules * GRANULE;
                self.publish(owned, Status::Idle, state.granules);
                self.waiting.wake();
            }
        }
        given_back
    }

    /// Shrinks the slab of a slot that this thread owns to `granules`, if the source can and the
    /// device has finished with it. The slot stays this thread's.
    pub(super) fn shrink(&self, owned: Owned, granules: usize) -> State {
        let slot = &self.slots[owned.slot];
        slot.recall(0);
        let surplus = owned.state.granules.saturating_sub(granules) * GRANULE;
        if !self.source.resizes_in_place() || surplus == 0 {
            return owned.state;
        }
        if !self.is_at_rest(owned) {
            return owned.state;
        }
        let Some(mut slab) = slot.take() else { unreachable!("an owned slot has its slab") };
        let resized = self.source.resize(&mut slab.block, granules * GRANULE);
        slot.put(slab);
        if let Err(error) = resized {
            self.counts.failed(&error);
            return owned.state;
        }
        self.budget.free(surplus);
        self.counts.given_back(surplus);
        State { granules, ..owned.state }
    }

    /// Shrinks a slab that this thread has just leased, if it was to when leased next and still
    /// holds `granules` then.
    pub(super) fn heed_recall(&self, owned: Owned, granules: usize) -> Owned {
        let Some(wanted) = self.slots[owned.slot].recalled() else { return owned };
        if granules > wanted {
            self.slots[owned.slot].recall(0);
            return owned;
        }
        let state = self.shrink(owned, wanted);
        self.slots[owned.slot].word.publish(state);
        self.waiting.wake();
        Owned { state, ..owned }
    }

    /// Makes slabs of the sizes ready, largest first, out of what the budget leaves.
    fn make_ready(&self, sizes: &[usize]) -> usize {
        let slots = self.by_size();
        let mut made = 0;
        for (rank, &bytes) in sizes.iter().enumerate() {
            let bytes = self.slab_bytes(bytes);
            let owned = match slots.get(rank) {
                Some(&(slot, seen)) => {
                    let lacking = bytes.saturating_sub(seen.granules * GRANULE);
                    if seen.status != Status::Idle
                        || lacking == 0
                        || !self.source.resizes_in_place()
                        || !self.budget.commit(lacking)
                    {
                        continue;
                    }
                    let Some(state) = self.slots[slot].word.claim(seen) else {
                        self.budget.free(lacking);
                        continue;
                    };
                    let owned = Owned { slot, state, warm: false };
                    self.extend(owned, bytes)
                        .inspect_err(|_| self.publish(owned, Status::Idle, state.granules))
                }
                None if self.budget.commit(bytes) => self.fill_empty(bytes),
                None => break,
            };
            // Where the source refuses, demand itself will find out whether it really must.
            let Ok(owned) = owned else { break };
            made += bytes;
            self.publish(owned, Status::Idle, owned.state.granules);
            self.waiting.wake();
        }
        made
    }

    /// Gives quarantined slabs another chance to have their end marked. On a lost device nothing
    /// runs any more: they are given up.
    fn recover(&self) -> usize {
        let mut recovered = 0;
        for (slot, place) in self.live_slots().enumerate() {
            let seen = place.word.read();
            if seen.status != Status::Quarantined {
                continue;
            }
            let Some(state) = place.word.claim(seen) else { continue };
            let Some(mut slab) = place.take() else { unreachable!("a claimed slot has its slab") };
            let marked = match &slab.stream {
                Some((stream, _)) => self.source.record(&mut slab.event, stream),
                None => Ok(()),
            };
            place.put(slab);
            match marked {
                Ok(()) => {
                    place.word.publish(State { status: Status::Idle, ..state });
                    self.waiting.wake();
                    recovered += 1;
                }
                Err(error) if error.cause == Cause::Lost => {
                    recovered += usize::from(self.retire(Owned { slot, state, warm: false }) > 0);
                }
                Err(_) => place.word.publish(State { status: Status::Quarantined, ..state }),
            }
        }
        recovered
    }
}
