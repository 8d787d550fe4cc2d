//! Slabs under a budget, leased one per batch.
//!
//! - [`Pool`] leases ([`Lease`]), waits, trims and reports ([`Statistics`]).
//! - `state` and `slot`: who owns which slab, in one atomic word each. `tally`: what was leased when.
//! - `grow`: when no idle slab fits, up to the ladder that gives way under pressure.
//! - `upkeep` and `prediction`: what is kept ready and what is given back.
//!
//! The choice behind it: a lease of a slab that is there is one compare-and-swap, its return
//! one exchange, and neither asks the device for anything. All that takes time (growing, giving
//! back, learning) happens elsewhere, and the budget is committed before memory is taken: it is
//! never exceeded.

mod counts;
mod error;
mod grow;
mod lease;
mod prediction;
mod region;
mod settings;
mod slot;
mod state;
mod statistics;
mod tally;
mod traced;
mod upkeep;
mod waiting;

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crossbeam_utils::CachePadded;

use crate::budget::Budget;
use crate::budget::GRANULE;
use crate::source::{Cause, Source};
use counts::Counts;
use slot::Slot;
use state::{MOST_GRANULES, State, Status};
use upkeep::Upkeep;
use waiting::Waiting;

pub use crate::budget::Reservation;
pub use error::{LeaseError, Remedy};
pub use lease::Lease;
pub use region::Region;
pub use settings::{GiveBack, PoolSettings};
pub use statistics::{LatencyBucket, Leases, Statistics};
pub use upkeep::{Keeper, Maintained};

/// Slabs that a pool can have: far more batches than a device can have in flight.
const SLOTS: usize = 64;

thread_local! {
    /// The slot that this thread had last: its words are in this core's cache.
    static LAST: Cell<usize> = const { Cell::new(0) };
}

/// A pool of slabs over a [`Source`]. Clones share the same slabs.
///
/// ```
/// use vecmill_memory::{HostSource, Pool, Remedy};
///
/// let pool = Pool::new(HostSource, 64 << 20);
/// let lease = pool.lease(48 << 20, &())?;
/// let refused = pool.lease(32 << 20, &()).unwrap_err();
/// assert_eq!(refused.remedy(), Remedy::Wait);
/// drop(lease);
/// assert!(pool.lease(32 << 20, &()).is_ok());
/// # Ok::<(), vecmill_memory::LeaseError>(())
/// ```
pub struct Pool<S: Source> {
    shared: Arc<Shared<S>>,
}

pub(super) struct Shared<S: Source> {
    source: S,
    settings: PoolSettings,
    budget: Arc<Budget>,
    slots: Box<[CachePadded<Slot<S>>]>,
    /// Slots from this one on have never had memory.
    used: AtomicUsize,
    streams: Mutex<Vec<S::Stream>>,
    counts: Counts,
    waiting: Waiting,
    upkeep: Mutex<Upkeep>,
    /// What the device's driver has taken beside the pool.
    driver_bytes: OnceLock<usize>,
}

/// A slot that this thread owns.
#[derive(Debug, Clone, Copy)]
struct Owned {
    slot: usize,
    state: State,
    warm: bool,
}

impl<S: Source> Clone for Pool<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<S: Source> Pool<S> {
    /// A pool that never holds more than `budget` bytes. Nothing is taken yet.
    pub fn new(source: S, budget: usize) -> Self {
        Self::with_settings(source, budget, PoolSettings::default())
    }

    /// As [`new`](Self::new), with settings.
    pub fn with_settings(source: S, budget: usize, settings: PoolSettings) -> Self {
        let now = source.now();
        let slots = (0..SLOTS).map(|_| CachePadded::new(Slot::new(settings.trace_leases)));
        let shared = Shared {
            budget: Budget::new(budget),
            slots: slots.collect(),
            used: AtomicUsize::new(0),
            streams: Mutex::default(),
            counts: Counts::default(),
            waiting: Waiting::default(),
            upkeep: Mutex::new(Upkeep::new(SLOTS, settings.give_back.period(), now)),
            driver_bytes: OnceLock::new(),
            source,
            settings,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Where the memory comes from.
    pub fn source(&self) -> &S {
        &self.shared.source
    }

    /// Leases a slab of at least `bytes` for work on `stream`. Its contents are unspecified. If
    /// another stream's work on it is not done yet, `stream` waits for that; the host does not.
    ///
    /// # Errors
    /// [`LeaseError::remedy`] says whether to wait, to split the batch, or to reject it.
    pub fn lease(&self, bytes: usize, stream: &S::Stream) -> Result<Lease<'_, S>, LeaseError> {
        let shared = &*self.shared;
        shared.lease(bytes, stream).inspect_err(|error| shared.refused(bytes, stream, error))
    }

    /// As [`lease`](Self::lease), but waits up to `patience` for other leases to be returned.
    ///
    /// # Errors
    /// As for [`lease`](Self::lease), when patience has run out or waiting can't help.
    pub fn lease_waiting(
        &self,
        bytes: usize,
        stream: &S::Stream,
        patience: Duration,
    ) -> Result<Lease<'_, S>, LeaseError> {
        let shared = &*self.shared;
        let attempt = || shared.lease(bytes, stream);
        let (result, waited) = shared
            .waiting
            .until(patience, attempt, |error: &LeaseError| error.remedy() == Remedy::Wait);
        if waited && result.is_ok() {
            shared.counts.waited();
        }
        result.inspect_err(|error| shared.refused(bytes, stream, error))
    }

    /// Sets `bytes` of the budget aside for memory that lives outside the pool. Idle slabs make way
    /// for it.
    ///
    /// # Errors
    /// [`LeaseError::TooLarge`] when the budget does not leave that much.
    pub fn reserve(&self, bytes: usize) -> Result<Reservation, LeaseError> {
        let budget = &self.shared.budget;
        let reserved = budget.reserve(bytes).or_else(|_| {
            self.trim();
            budget.reserve(bytes)
        });
        reserved.map_err(|available| LeaseError::TooLarge { needed: bytes, available })
    }

    /// Takes memory for weights: a region of its own, for as long as it lives. Idle slabs make way
    /// for it.
    ///
    /// # Errors
    /// [`LeaseError`] when budget or source do not have that much.
    pub fn region(&self, bytes: usize) -> Result<Region<S::Block>, LeaseError> {
        let Shared { source, counts, .. } = &*self.shared;
        let whole = self.shared.granules(bytes)? * GRANULE;
        let reservation = self.reserve(whole)?;
        let allocate = || source.allocate(whole).inspect_err(|error| counts.failed(error));
        let block = allocate().or_else(|error| {
            if error.cause != Cause::Exhausted || self.trim() == 0 {
                return Err(error);
            }
            allocate()
        })?;
        Ok(Region::new(block, whole, reservation))
    }

    /// Notes what the device's driver has taken beside the pool, for the
    /// [statistics](Self::statistics); the first measurement counts.
    pub fn note_driver(&self, bytes: usize) {
        let _ = self.shared.driver_bytes.set(bytes);
    }

    /// Gives all idle slabs back to the source, and returns how many bytes that were. What the
    /// device still works on stays.
    pub fn trim(&self) -> usize {
        self.shared.trim()
    }

    /// Whether somebody waits for a lease to be returned.
    pub fn is_waited_for(&self) -> bool {
        self.shared.waiting.is_waited_for()
    }

    /// Bytes of the largest idle slab: a batch that fits it needs nothing of the source.
    pub fn warm_bytes(&self) -> usize {
        let idle = self.shared.live_slots().map(|slot| slot.word.read());
        let idle = idle.filter(|state| state.status == Status::Idle);
        idle.map(|state| state.granules * GRANULE).max().unwrap_or(0)
    }
}

impl<S: Source> Shared<S> {
    fn lease(&self, bytes: usize, stream: &S::Stream) -> Result<Lease<'_, S>, LeaseError> {
        let timed = self.counts.should_time().then(|| self.source.now());
        let granules = self.granules(bytes)?;
        let owned = match self.claim_warm(granules) {
            Some(owned) => self.heed_recall(owned, granules),
            None => self.grow(granules * GRANULE)?,
        };
        let lease = self.hand_out(owned, bytes, stream)?;
        if let Some(started) = timed {
            self.counts.took(self.source.now().saturating_sub(started));
        }
        Ok(lease)
    }

    /// `bytes` in granules, at least one.
    #[inline]
    fn granules(&self, bytes: usize) -> Result<usize, LeaseError> {
        let granules = bytes.div_ceil(GRANULE).max(1);
        if granules > MOST_GRANULES {
            return Err(LeaseError::TooLarge { needed: bytes, available: self.budget.available() });
        }
        Ok(granules)
    }

    /// The smallest idle slab of at least `granules`.
    #[inline]
    fn claim_warm(&self, granules: usize) -> Option<Owned> {
        let used = self.used.load(Ordering::Acquire);
        let last = LAST.get();
        if last < used {
            let slot = &self.slots[last];
            let seen = slot.word.read();
            let snug = granules..=granules + granules / 8;
            if seen.status == Status::Idle
                && snug.contains(&seen.granules)
                && let Some(state) = slot.word.lease(seen)
            {
                return Some(Owned { slot: last, state, warm: true });
            }
        }
        loop {
            let mut best: Option<(usize, State)> = None;
            for step in 0..used {
                // From its own slot on, so that threads do not all try the same one.
                let index = (last + step) % used;
                let seen = self.slots[index].word.read();
                if seen.status == Status::Idle
                    && seen.granules >= granules
                    && best.is_none_or(|(_, best)| seen.granules < best.granules)
                {
                    best = Some((index, seen));
                }
            }
            let (index, seen) = best?;
            if let Some(state) = self.slots[index].word.lease(seen) {
                LAST.set(index);
                return Some(Owned { slot: index, state, warm: true });
            }
        }
    }

    /// Makes a lease of a slot that this thread has in the leased state.
    #[inline]
    fn hand_out(
        &self,
        owned: Owned,
        bytes: usize,
        stream: &S::Stream,
    ) -> Result<Lease<'_, S>, LeaseError> {
        let Owned { slot: index, state, warm } = owned;
        let slot = &self.slots[index];
        let Some(mut slab) = slot.take() else {
            unreachable!("a slot in the leased state has a slab")
        };
        let number = match &slab.stream {
            Some((last, number)) if last == stream => *number,
            last => {
                if last.is_some()
                    && let Err(error) = self.source.wait(stream, &slab.event)
                {
                    self.counts.failed(&error);
                    slot.put(slab);
                    slot.word.publish(State { status: Status::Quarantined, ..state });
                    return Err(error.into());
                }
                let number = self.number_of(stream);
                slab.stream = Some((stream.clone(), number));
                number
            }
        };
        slot.tally.begin(self.source.now(), bytes.max(1), number, warm);
        if !warm {
            self.counts.grown();
        }
        Ok(Lease::new(self, index, state, slab, bytes))
    }

    /// The number that traces call a stream by.
    fn number_of(&self, stream: &S::Stream) -> u32 {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let index = streams.iter().position(|known| known == stream).unwrap_or_else(|| {
            streams.push(stream.clone());
            streams.len() - 1
        });
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    fn live_slots(&self) -> impl Iterator<Item = &Slot<S>> {
        self.slots[..self.used.load(Ordering::Acquire)].iter().map(|slot| &**slot)
    }

    /// Bytes of the slabs that batches hold.
    fn leased_bytes(&self) -> usize {
        let leased = self.live_slots().map(|slot| slot.word.read());
        leased
            .filter(|state| state.status == Status::Leased)
            .map(|state| state.granules * GRANULE)
            .sum()
    }
}

impl<S: Source> fmt::Debug for Pool<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("source", &self.shared.source).finish_non_exhaustive()
    }
}

impl<S: Source> Drop for Shared<S> {
    /// The only place where the host waits for the device: memory goes back when its work is done.
    fn drop(&mut self) {
        for slot in &self.slots {
            if let Some(mut slab) = slot.take() {
                if let Some((stream, _)) = &slab.stream {
                    if slot.word.read().status != Status::Idle {
                        // Quarantined: its end has not been marked yet.
                        let _ = self.source.record(&mut slab.event, stream);
                    }
                    let _ = self.source.wait_on_host(&slab.event); // a lost device runs nothing
                }
                let _ = self.source.release(slab.block); // nobody is left to be told
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
