//! What a heap says: its statistics and its errors.

use super::Heap;

/// A heap's figures at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeapStatistics {
    /// The range's bytes: what is live and what is free.
    pub capacity_bytes: usize,
    /// Bytes in live spans, each rounded up to the granule.
    pub live_bytes: usize,
    /// Bytes asked for by the owners of the live spans. The difference to `live_bytes` is the
    /// internal fragmentation.
    pub requested_bytes: usize,
    /// Bytes in no live span.
    pub free_bytes: usize,
    /// The largest contiguous free range in bytes.
    pub largest_free_bytes: usize,
    /// The number of contiguous free ranges.
    pub holes: usize,
}

impl HeapStatistics {
    /// The part of the free bytes that is outside the largest hole, from 0 to 1: how far the heap
    /// is from serving one request for all that's free. 0 when nothing is free.
    pub fn external_fragmentation(&self) -> f64 {
        if self.free_bytes == 0 {
            return 0.0;
        }
        1.0 - self.largest_free_bytes as f64 / self.free_bytes as f64
    }
}

/// A span was freed that its heap doesn't have out: a mistake of the caller. The heap is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the {bytes} bytes at offset {offset} aren't live in this heap: they were freed before or \
     belong to another heap; free each span once, where it was allocated"
)]
pub struct StaleSpan {
    /// The span's offset.
    pub offset: usize,
    /// The span's size.
    pub bytes: usize,
}

/// A heap couldn't change its capacity. It's unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResizeError {
    /// The change isn't a whole number of granules.
    #[error("capacity changes by multiples of {} bytes, not by {bytes}", Heap::GRANULE)]
    Uneven {
        /// The change asked for.
        bytes: usize,
    },
    /// The range would be larger than offsets can express.
    #[error(
        "{bytes} bytes more make {capacity} bytes exceed a heap's limit of {}",
        Heap::MAX_CAPACITY
    )]
    TooLarge {
        /// The growth asked for.
        bytes: usize,
        /// The capacity before it.
        capacity: usize,
    },
    /// The end of the range isn't free as far as it should go.
    #[error("{bytes} bytes can't go: only the last {trimmable} bytes of the heap are free")]
    InUse {
        /// The reduction asked for.
        bytes: usize,
        /// What could go now.
        trimmable: usize,
    },
}
