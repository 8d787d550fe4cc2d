//! Weights: memory that lives as long as the model, in a region of its own.
//!
//! Kept apart from slabs, because what never comes back would pin whatever lies around it.

use crate::budget::Reservation;

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
    pub(crate) fn new(block: B, bytes: usize, reservation: Reservation) -> Self {
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
