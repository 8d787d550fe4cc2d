//! Slabs under a budget, leased one per batch.
//!
//! - [`Pool`] leases ([`Lease`]), waits, trims and reports ([`Statistics`]).
//! - `lease`: a slab that is there is handed out and taken back. `grow`: when none fits, up to the
//!   ladder that gives way under pressure.
//! - `slot`: who owns which slab, in one atomic word each, and what was leased when. `ledger`: the pool's
//!   counters.
//! - `trimmer` and `prediction`: what is kept ready and what is given back.
//! - `region`: memory for weights. `settings`: what a pool goes by.
//!
//! The choice behind it: a lease of a slab that is there is one compare-and-swap, its return
//! one exchange, and neither asks the device for anything. All that takes time (growing, giving
//! back, learning) happens elsewhere, and the budget is committed before memory is taken: it is
//! never exceeded.

mod error;
mod grow;
mod lease;
mod ledger;
mod prediction;
mod region;
mod settings;
mod slot;
mod statistics;
mod trimmer;
mod waiting;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crossbeam_utils::CachePadded;

use crate::budget::Budget;
use crate::source::Source;
use ledger::Ledger;
use slot::{Slot, Status};
use trimmer::Learned;
use waiting::Waiting;

pub use crate::budget::Reservation;
pub use error::{LeaseError, Remedy};
pub use lease::Lease;
pub use region::Region;
pub use settings::{GiveBack, PoolSettings};
pub use statistics::{LatencyBucket, Leases, Statistics};
pub use trimmer::{Maintained, Trimmer};

/// Slabs that a pool can have: far more batches than a device can have in flight.
const SLOTS: usize = 64;

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
    ledger: Ledger,
    waiting: Waiting,
    learned: Mutex<Learned>,
    /// What the device's driver has taken beside the pool.
    driver_bytes: OnceLock<usize>,
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
        let slots = (0..SLOTS).map(|_| CachePadded::new(Slot::new(settings.recorded_leases)));
        let shared = Shared {
            budget: Budget::new(budget),
            slots: slots.collect(),
            used: AtomicUsize::new(0),
            streams: Mutex::default(),
            ledger: Ledger::default(),
            waiting: Waiting::default(),
            learned: Mutex::new(Learned::new(SLOTS, settings.give_back.period(), now)),
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
            shared.ledger.waited();
        }
        result.inspect_err(|error| shared.refused(bytes, stream, error))
    }

    /// Whether somebody waits for a lease to be returned.
    pub fn is_waited_for(&self) -> bool {
        self.shared.waiting.is_waited_for()
    }
}

impl<S: Source> Shared<S> {
    fn live_slots(&self) -> impl Iterator<Item = &Slot<S>> {
        self.slots[..self.used.load(Ordering::Acquire)].iter().map(|slot| &**slot)
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
                    if slot.state().status != Status::Idle {
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
