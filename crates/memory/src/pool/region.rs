//! Weights: memory that lives as long as the model, in a region of its own.
//!
//! Kept apart from slabs, because what never comes back would pin whatever lies around it.

use super::{LeaseError, Pool, Shared};
use crate::budget::{GRANULE, Reservation};
use crate::source::{Cause, Source};

/// A block for weights, and the part of a pool's budget that it takes.
#[derive(Debug)]
#[must_use = "dropping a region gives its memory back"]
pub struct Region<B> {
    // Before the reservation: what is held never exceeds the budget.
    block: B,
    bytes: usize,
    _reservation: Reservation,
}

impl<B> Region<B> {
    fn new(block: B, bytes: usize, reservation: Reservation) -> Self {
        Self { block, bytes, _reservation: reservation }
    }

    /// The region's memory.
    pub fn block(&self) -> &B {
        &self.block
    }

    /// The region's memory, for writing.
    pub fn block_mut(&mut self) -> &mut B {
        &mut self.block
    }

    /// Its size: that of its block, and of its part of the budget.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<S: Source> Pool<S> {
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
        let Shared { source, ledger, .. } = &*self.shared;
        let whole = self.shared.granules(bytes)? * GRANULE;
        let reservation = self.reserve(whole)?;
        let allocate = || source.allocate(whole).inspect_err(|error| ledger.failed(error));
        let block = allocate().or_else(|error| {
            if error.cause != Cause::Exhausted || self.trim() == 0 {
                return Err(error);
            }
            allocate()
        })?;
        Ok(Region::new(block, whole, reservation))
    }
}
