//! The most that a pool may take, who has taken how much of it, and the sizes in which it is taken.
//!
//! Slabs that can't grow come in classes of 8 steps per octave, in granules of 2 MiB. Rounding to a
//! class wastes at most one eighth (or one granule, where that is more), and batches of similar shapes
//! meet in the same class, so that slabs are reused instead of multiplied.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Slab sizes are multiples of this; it is also the granularity of GPU memory mapping.
pub(crate) const GRANULE: usize = 2 << 20;

const STEPS_PER_OCTAVE: usize = 8;

/// Classes up to 8 TiB, far past any budget.
pub(crate) const CLASSES: usize = 2 * STEPS_PER_OCTAVE + 19 * STEPS_PER_OCTAVE;

/// The smallest class that holds `bytes`, or `None` when it is past the largest.
pub(crate) fn class_of(bytes: usize) -> Option<usize> {
    let granules = bytes.div_ceil(GRANULE).max(1);
    let class = if granules <= 2 * STEPS_PER_OCTAVE {
        granules - 1 // every granule count has its own class up to 16
    } else {
        // (mantissa + 8) << shift covers `granules`, with the mantissa in 0..8.
        let shift = (granules - 1).ilog2() as usize - 3;
        let mantissa = ((granules - 1) >> shift) - STEPS_PER_OCTAVE;
        (shift + 1) * STEPS_PER_OCTAVE + mantissa
    };
    (class < CLASSES).then_some(class)
}

/// The size in bytes of the slabs of `class`.
pub(crate) fn class_bytes(class: usize) -> usize {
    let granules = if class < 2 * STEPS_PER_OCTAVE {
        class + 1
    } else {
        let shift = class / STEPS_PER_OCTAVE - 1;
        (class % STEPS_PER_OCTAVE + STEPS_PER_OCTAVE + 1) << shift
    };
    granules * GRANULE
}

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
#[must_use = "dropping a reservation frees that part of the budget"]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_ascend_and_hold_themselves() {
        for class in 0..CLASSES {
            assert_eq!(class_of(class_bytes(class)), Some(class));
            if class > 0 {
                let below = class_bytes(class - 1);
                assert!(below < class_bytes(class));
                assert_eq!(class_of(below + 1), Some(class), "one byte more is the next class");
            }
        }
        assert_eq!(class_of(class_bytes(CLASSES - 1) + 1), None);
    }

    #[test]
    fn rounding_wastes_at_most_an_eighth_or_a_granule() {
        let mut bytes = 1;
        while let Some(class) = class_of(bytes) {
            let waste = class_bytes(class) - bytes;
            assert!(waste <= (bytes / 8).max(GRANULE), "{bytes} bytes waste {waste}");
            bytes = bytes * 17 / 16 + 1;
        }
    }
}
