//! What happens beside the batches: learning what is wanted, making slabs ready, giving them back.
//!
//! [`Pool::maintain`] is one step, at the source's own time; [`Trimmer`] is a thread that repeats it.

use std::cmp::Reverse;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::prediction::Forecast;
use super::slot::{Owned, Passed, State, Status};
use super::{GiveBack, Pool, Shared};
use crate::budget::GRANULE;
use crate::source::{Cause, Source};

/// What has been learned.
#[derive(Debug)]
pub(super) struct Learned {
    pub(super) forecast: Forecast,
    /// Leases of each slot that were learned from.
    read: Vec<u64>,
    pub(super) lost: u64,
}

/// What one step did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Maintained {
    /// Bytes given back to the source.
    pub given_back_bytes: usize,
    /// Bytes of slabs made ready ahead of demand.
    pub made_ready_bytes: usize,
    /// Quarantined slabs that are good again, or whose device is gone and which were given up.
    pub recovered: usize,
}

impl Learned {
    pub(super) fn new(slots: usize, period: Duration, now: u64) -> Self {
        Self { forecast: Forecast::new(period, now), read: vec![0; slots], lost: 0 }
    }

    /// What the slab of a rank usually has to hold.
    pub(super) fn usual(&self, rank: usize) -> Option<usize> {
        self.forecast.usual().get(rank).copied()
    }
}

impl<S: Source> Pool<S> {
    /// One step of the trimmer: learns from the leases since the last one, gives back what has not been
    /// needed for a period, and makes ready what usually is.
    pub fn maintain(&self) -> Maintained {
        self.shared.maintain()
    }

    /// Starts a thread that maintains the pool every `interval` until the trimmer is dropped.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn trimmer(&self, interval: Duration) -> std::io::Result<Trimmer> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (pool, signal) = (self.clone(), Arc::clone(&stop));
        let thread =
            std::thread::Builder::new().name("memory-trimmer".into()).spawn(move || {
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
        Ok(Trimmer { stop, thread: Some(thread) })
    }
}

/// A thread that maintains a pool; dropping it ends the thread.
#[derive(Debug)]
#[must_use = "dropping a trimmer ends it"]
pub struct Trimmer {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Trimmer {
    fn drop(&mut self) {
        let (stopped, changed) = &*self.stop;
        *stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the runtime; the pool works without a trimmer.
            let _ = thread.join();
        }
    }
}

impl<S: Source> Shared<S> {
    pub(super) fn learned(&self) -> MutexGuard<'_, Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns from the leases since the last time.
    pub(super) fn observe(&self, learned: &mut Learned, now: u64) {
        let mut leases: Vec<Passed> = Vec::new();
        for (slot, read) in self.live_slots().zip(&mut learned.read) {
            learned.lost += slot.ledger.since(read, |lease| leases.push(lease));
            leases.extend(slot.ledger.current());
        }
        learned.forecast.observe(&mut leases, now);
    }

    fn maintain(&self) -> Maintained {
        let now = self.source.now();
        let mut learned = self.learned();
        self.observe(&mut learned, now);
        let (recent, usual) = (learned.forecast.recent(), learned.forecast.usual());
        drop(learned);
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
        let states = self.live_slots().map(|slot| slot.state()).enumerate();
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
            let Some(state) = self.slots[slot].claim(seen) else { continue };
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
        let bytes = granules * GRANULE;
        let resized = slot.with_slab(|slab| self.source.resize(&mut slab.block, bytes));
        if let Err(error) = resized {
            self.ledger.failed(&error);
            return owned.state;
        }
        self.budget.free(surplus);
        self.ledger.given_back(surplus);
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
        self.slots[owned.slot].publish(state);
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
                    let Some(state) = self.slots[slot].claim(seen) else {
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
            let seen = place.state();
            if seen.status != Status::Quarantined {
                continue;
            }
            let Some(state) = place.claim(seen) else { continue };
            let marked = place.with_slab(|slab| match &slab.stream {
                Some((stream, _)) => self.source.record(&mut slab.event, stream),
                None => Ok(()),
            });
            match marked {
                Ok(()) => {
                    place.publish(State { status: Status::Idle, ..state });
                    self.waiting.wake();
                    recovered += 1;
                }
                Err(error) if error.cause == Cause::Lost => {
                    recovered += usize::from(self.retire(Owned { slot, state, warm: false }) > 0);
                }
                Err(_) => place.publish(State { status: Status::Quarantined, ..state }),
            }
        }
        recovered
    }
}
