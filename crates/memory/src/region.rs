//! Weights: memory that lives as long as the model, in a region of its own.
//!
//! Kept apart from slabs, because what never comes back would pin whatever lies around it.

use crate::budget::Reservation;
use crate::source::Source;

/// A block for weights, filled from its start on.
#[derive(Debug)]
pub struct Region<S: Source> {
    block: S::Block,
    bytes: usize,
    used: usize,
    _reservation: Reservation,
}

/// A region has less room than asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes do not fit the {left} that are left of the region: it was made too small")]
pub struct RegionFull {
    /// Bytes asked for.
    pub bytes: usize,
    /// Bytes left.
    pub left: usize,
}

impl<S: Source> Region<S> {
    /// Tensors start at multiples of this many bytes: what matrix multiplication on GPUs wants.
    pub const ALIGNMENT: usize = 256;

    pub(crate) fn new(block: S::Block, bytes: usize, reservation: Reservation) -> Self {
        Self { block, bytes, used: 0, _reservation: reservation }
    }

    /// Places `bytes` behind what was placed before, and returns their offset in the block.
    ///
    /// # Errors
    /// [`RegionFull`] when they don't fit.
    pub fn place(&mut self, bytes: usize) -> Result<usize, RegionFull> {
        let left = self.bytes - self.used;
        let taken = bytes.checked_next_multiple_of(Self::ALIGNMENT).filter(|&taken| taken <= left);
        let offset = self.used;
        self.used += taken.ok_or(RegionFull { bytes, left })?;
        Ok(offset)
    }

    /// The region's memory.
    pub fn block(&self) -> &S::Block {
        &self.block
    }

    /// The region's memory, for writing.
    pub fn block_mut(&mut self) -> &mut S::Block {
        &mut self.block
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
