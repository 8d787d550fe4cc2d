//! The most that a pool may take, and who has taken how much of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that are taken before memory is, and freed after memory is: what is held never exceeds
/// the limit.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    /// Slabs and reservations together: the one number that is checked.
    committed: AtomicUsize,
    reserved: AtomicUsize,
    peak_held: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        let zero = || AtomicUsize::new(0);
        Arc::new(Self { limit, committed: zero(), reserved: zero(), peak_held: zero() })
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// What reservations leave for everything else.
    pub(crate) fn available(&self) -> usize {
        self.limit.saturating_sub(self.reserved())
    }

    pub(crate) fn reserved(&self) -> usize {
        self.reserved.load(Ordering::Acquire)
    }

    /// Bytes that are held, without reservations.
    pub(crate) fn held(&self) -> usize {
        self.committed.load(Ordering::Acquire).saturating_sub(self.reserved())
    }

    /// The most that has been held.
    pub(crate) fn peak_held(&self) -> usize {
        self.peak_held.load(Ordering::Acquire)
    }

    /// Takes `bytes`, if that much is left.
    pub(crate) fn commit(&self, bytes: usize) -> bool {
        let grow =
            |committed: usize| committed.checked_add(bytes).filter(|&total| total <= self.limit);
        self.committed.fetch_update(Ordering::AcqRel, Ordering::Acquire, grow).is_ok()
    }

    /// Notes that memory that was committed to is there.
    pub(crate) fn held_grew(&self) {
        self.peak_held.fetch_max(self.held(), Ordering::AcqRel);
    }

    pub(crate) fn free(&self, bytes: usize) {
        self.committed.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Sets `bytes` aside; `Err` with what is left when that is not enough.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: usize) -> Result<Reservation, usize> {
        if !self.commit(bytes) {
            return Err(self.limit.saturating_sub(self.committed.load(Ordering::Acquire)));
        }
        self.reserved.fetch_add(bytes, Ordering::AcqRel);
        Ok(Reservation { bytes, budget: Arc::clone(self) })
    }
}

/// A part of a pool's budget set aside; dropping it frees that part again.
#[derive(Debug)]
pub struct Reservation {
    bytes: usize,
    budget: Arc<Budget>,
}

impl Reservation {
    /// Bytes set aside.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.reserved.fetch_sub(self.bytes, Ordering::AcqRel);
        self.budget.free(self.bytes);
    }
}
