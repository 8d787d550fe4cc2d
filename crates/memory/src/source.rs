//! Where a pool gets its memory.

use std::fmt::Debug;

/// Memory that can be taken and given back in blocks.
///
/// A block is given back by dropping it. Implementations must be cheap to share between threads;
/// the pool calls [`allocate`](Source::allocate) only when no idle slab fits.
pub trait Source: Debug + Send + Sync + 'static {
    /// One contiguous piece of memory, at least 64-byte aligned.
    type Block: Debug + Send + 'static;

    /// Takes `bytes` of memory, a multiple of 2 MiB.
    ///
    /// # Errors
    /// [`SourceError`] when the memory can't be had, for example because another process took it.
    fn allocate(&self, bytes: usize) -> Result<Self::Block, SourceError>;

    /// Overwrites a block that was just returned, so that debug builds show a read of stale memory
    /// as NaN. The default does nothing.
    fn poison(&self, block: &mut Self::Block) {
        let _ = block;
    }
}

/// A source could not provide memory.
#[derive(Debug, thiserror::Error)]
#[error("{bytes} bytes could not be had from {from}: {reason}")]
pub struct SourceError {
    /// Bytes asked for.
    pub bytes: usize,
    /// The source's name, for example `host memory`.
    pub from: &'static str,
    /// What the system said.
    pub reason: String,
}
