//! Slabs under a budget, leased one per batch.
//!
//! A returned slab waits in the queue of its size class; taking and returning one are lock-free
//! queue operations. A batch takes the smallest idle slab that holds it. Only when none does, the
//! pool goes to its source, and gives idle slabs back first as the budget asks. The budget is authoritative:
//! slabs held plus bytes reserved never exceed it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_queue::SegQueue;

use crate::class::{CLASSES, class_bytes, class_of};
use crate::source::{Source, SourceError};

/// A pool of slabs over a [`Source`]. Clones share the same slabs.
#[derive(Debug)]
pub struct Pool<S: Source> {
    shared: Arc<Shared<S>>,
}

#[derive(Debug)]
struct Shared<S: Source> {
    source: S,
    budget: usize,
    idle: Vec<SegQueue<S::Block>>,
    /// Held and reserved bytes together: the one number that admission checks against the budget.
    committed: AtomicUsize,
    held: AtomicUsize,
    leased: AtomicUsize,
    reserved: AtomicUsize,
    peak_held: AtomicUsize,
    warm: AtomicU64,
    grown: AtomicU64,
    refused: AtomicU64,
}

/// A pool's state and counts since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    /// The most that may be held and reserved, in bytes.
    pub budget_bytes: usize,
    /// Slabs taken from the source, leased or idle, in bytes.
    pub held_bytes: usize,
    /// The highest value that `held_bytes` has had.
    pub peak_held_bytes: usize,
    /// Slabs leased at this moment, in bytes.
    pub leased_bytes: usize,
    /// Bytes of the budget set aside for what lives outside slabs, such as weights.
    pub reserved_bytes: usize,
    /// Leases served from an idle slab.
    pub warm_leases: u64,
    /// Leases for which a slab was taken from the source.
    pub grown_leases: u64,
    /// Leases refused.
    pub refused_leases: u64,
}

/// Why a lease or a reservation was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// It can never fit; split the batch or raise the budget.
    #[error(
        "{needed} bytes are needed, but the budget leaves {available}: send less at once or raise the budget"
    )]
    TooLarge {
        /// Bytes that the lease would take.
        needed: usize,
        /// Bytes that the budget leaves beside reservations.
        available: usize,
    },
    /// It fits once other leases are returned; wait.
    #[error(
        "{needed} bytes are needed, but {leased} of the {available} available are leased: try again when a batch has finished"
    )]
    Busy {
        /// Bytes that the lease would take.
        needed: usize,
        /// Bytes that other batches hold at the moment.
        leased: usize,
        /// Bytes that the budget leaves beside reservations.
        available: usize,
    },
    /// The source failed although the budget allowed it.
    #[error(transparent)]
    Source(#[from] SourceError),
}

impl<S: Source> Clone for Pool<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<S: Source> Pool<S> {
    /// A pool that never holds more than `budget` bytes. Nothing is taken yet.
    pub fn new(source: S, budget: usize) -> Self {
        let zero = || AtomicUsize::new(0);
        let none = || AtomicU64::new(0);
        Self {
            shared: Arc::new(Shared {
                source,
                budget,
                idle: (0..CLASSES).map(|_| SegQueue::new()).collect(),
                committed: zero(),
                held: zero(),
                leased: zero(),
                reserved: zero(),
                peak_held: zero(),
                warm: none(),
                grown: none(),
                refused: none(),
            }),
        }
    }

    /// Leases a slab of at least `bytes`. Its contents are unspecified.
    ///
    /// # Errors
    /// [`LeaseError`] says whether to wait, to split the batch, or that the source failed.
    pub fn lease(&self, bytes: usize) -> Result<Lease<S>, LeaseError> {
        self.try_lease(bytes).inspect_err(|_| {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn try_lease(&self, bytes: usize) -> Result<Lease<S>, LeaseError> {
        let shared = &self.shared;
        let available = shared.budget.saturating_sub(shared.reserved.load(Ordering::Acquire));
        let class = class_of(bytes).ok_or(LeaseError::TooLarge { needed: bytes, available })?;
        for candidate in class..CLASSES {
            if let Some(block) = shared.idle[candidate].pop() {
                shared.warm.fetch_add(1, Ordering::Relaxed);
                return Ok(self.hand_out(block, candidate));
            }
        }
        // Every idle slab is too small. The largest is replaced rather than joined by the new one:
        // what is held then follows the number of batches at once, not the variety of their sizes.
        shared.give_back_one_idle();
        let needed = class_bytes(class);
        while !shared.commit(needed) {
            if needed > available {
                return Err(LeaseError::TooLarge { needed, available });
            }
            if !shared.give_back_one_idle() {
                let leased = shared.leased.load(Ordering::Acquire);
                return Err(LeaseError::Busy { needed, leased, available });
            }
        }
        let block = shared.source.allocate(needed).inspect_err(|_| {
            shared.committed.fetch_sub(needed, Ordering::AcqRel);
        })?;
        let held = shared.held.fetch_add(needed, Ordering::AcqRel) + needed;
        shared.peak_held.fetch_max(held, Ordering::AcqRel);
        shared.grown.fetch_add(1, Ordering::Relaxed);
        Ok(self.hand_out(block, class))
    }

    fn hand_out(&self, block: S::Block, class: usize) -> Lease<S> {
        self.shared.leased.fetch_add(class_bytes(class), Ordering::AcqRel);
        Lease { block: Some(block), class, pool: self.clone() }
    }

    /// Sets `bytes` of the budget aside for memory that lives outside slabs.
    ///
    /// # Errors
    /// [`LeaseError::TooLarge`] when the budget does not leave that much.
    pub fn reserve(&self, bytes: usize) -> Result<Reservation<S>, LeaseError> {
        let shared = &self.shared;
        if !shared.commit(bytes) {
            let committed = shared.committed.load(Ordering::Acquire);
            let available = shared.budget.saturating_sub(committed);
            return Err(LeaseError::TooLarge { needed: bytes, available });
        }
        shared.reserved.fetch_add(bytes, Ordering::AcqRel);
        Ok(Reservation { bytes, pool: self.clone() })
    }

    /// Gives all idle slabs back to the source and returns how many bytes that were.
    pub fn trim(&self) -> usize {
        let before = self.shared.held.load(Ordering::Acquire);
        while self.shared.give_back_one_idle() {}
        before.saturating_sub(self.shared.held.load(Ordering::Acquire))
    }

    /// The pool's state at this moment.
    pub fn statistics(&self) -> Statistics {
        let shared = &self.shared;
        Statistics {
            budget_bytes: shared.budget,
            held_bytes: shared.held.load(Ordering::Acquire),
            peak_held_bytes: shared.peak_held.load(Ordering::Acquire),
            leased_bytes: shared.leased.load(Ordering::Acquire),
            reserved_bytes: shared.reserved.load(Ordering::Acquire),
            warm_leases: shared.warm.load(Ordering::Relaxed),
            grown_leases: shared.grown.load(Ordering::Relaxed),
            refused_leases: shared.refused.load(Ordering::Relaxed),
        }
    }
}

impl<S: Source> Shared<S> {
    /// Takes `bytes` of the budget, if that much is left.
    fn commit(&self, bytes: usize) -> bool {
        let grow =
            |committed: usize| committed.checked_add(bytes).filter(|&total| total <= self.budget);
        self.committed.fetch_update(Ordering::AcqRel, Ordering::Acquire, grow).is_ok()
    }

    /// Drops one idle slab, the largest there is.
    fn give_back_one_idle(&self) -> bool {
        for class in (0..CLASSES).rev() {
            if let Some(block) = self.idle[class].pop() {
                drop(block);
                self.held.fetch_sub(class_bytes(class), Ordering::AcqRel);
                self.committed.fetch_sub(class_bytes(class), Ordering::AcqRel);
                return true;
            }
        }
        false
    }
}

/// The right to one slab. Dropping it returns the slab to the pool, also while unwinding.
#[derive(Debug)]
pub struct Lease<S: Source> {
    block: Option<S::Block>, // taken only by `drop`
    class: usize,
    pool: Pool<S>,
}

impl<S: Source> Lease<S> {
    /// The slab's memory.
    pub fn block_mut(&mut self) -> &mut S::Block {
        let Some(block) = &mut self.block else { unreachable!("the block leaves only in drop") };
        block
    }

    /// The slab's size, at least what was asked for.
    pub fn bytes(&self) -> usize {
        class_bytes(self.class)
    }
}

impl<S: Source> Drop for Lease<S> {
    fn drop(&mut self) {
        if let Some(mut block) = self.block.take() {
            let shared = &self.pool.shared;
            if cfg!(debug_assertions) {
                shared.source.poison(&mut block);
            }
            shared.leased.fetch_sub(class_bytes(self.class), Ordering::AcqRel);
            shared.idle[self.class].push(block);
        }
    }
}

/// A part of the budget set aside; dropping it frees that part again.
#[derive(Debug)]
pub struct Reservation<S: Source> {
    bytes: usize,
    pool: Pool<S>,
}

impl<S: Source> Drop for Reservation<S> {
    fn drop(&mut self) {
        self.pool.shared.reserved.fetch_sub(self.bytes, Ordering::AcqRel);
        self.pool.shared.committed.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
