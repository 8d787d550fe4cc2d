//! Memory that no plan foresaw: an allocator of offsets.
//!
//! - [`Heap`] divides a range of offsets, which grows and shrinks at its end. It never touches the
//!   memory behind it, so it serves a device's as well as the host's.
//! - [`Span`] is what it hands out: an offset, a size, and proof that it's still live.
//! - `nodes` holds the records of the blocks, `bins` the lists of the free ones, `report` the
//!   statistics and errors.
//!
//! The choice behind it is two-level segregated fit (Masmano et al., "TLSF: a New Dynamic Memory
//! Allocator for Real-Time Systems", ECRTS 2004): allocating and freeing take a constant number of
//! steps whatever the number of holes, and the hole chosen is the best fit for the request rounded
//! up by at most a thirty-second. Unlike the original, the records lie outside the blocks, because
//! the blocks may be memory that this processor can't reach.

mod bins;
mod nodes;
mod report;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use bins::Bins;
use nodes::{EDGE, Node, Nodes, State};
pub use report::{HeapStatistics, ResizeError, StaleSpan};

/// A live range of a [`Heap`].
///
/// It's plain data: dropping it frees nothing, and a copy goes stale when the range is freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    start: u32,
    granules: u32,
    node: u32,
    generation: u32,
    heap: u32,
}

impl Span {
    /// The distance in bytes from the start of the heap, a multiple of [`Heap::GRANULE`].
    pub fn offset(&self) -> usize {
        bytes_of(self.start)
    }

    /// The size in bytes, rounded up to a multiple of [`Heap::GRANULE`].
    pub fn bytes(&self) -> usize {
        bytes_of(self.granules)
    }
}

/// An allocator of offsets by two-level segregated fit.
///
/// Allocating and freeing take constant time and no memory of the host, except that the table of
/// blocks doubles when there are more blocks than ever before.
///
/// ```
/// use vecmill_memory::Heap;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut heap = Heap::new();
/// heap.extend(2 << 20)?;
/// let scores = heap.allocate(1000).ok_or("full")?;
/// assert_eq!((scores.offset(), scores.bytes()), (0, 1024));
///
/// // A request that finds no room: grow by what the free end lacks.
/// let lacks = (3 << 20) - heap.trimmable();
/// assert!(heap.allocate(3 << 20).is_none());
/// heap.extend(lacks)?;
/// let hidden = heap.allocate(3 << 20).ok_or("full")?;
///
/// heap.free(hidden)?;
/// assert!(heap.free(hidden).is_err(), "caught, and nothing happened");
/// heap.shrink(heap.trimmable())?;
/// assert_eq!(heap.statistics().capacity_bytes, 1024);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Heap {
    /// Tells this heap's spans from another's.
    id: u32,
    nodes: Nodes,
    bins: Bins,
    /// In granules, as is `live`.
    capacity: u32,
    live: u32,
    /// Bytes that rounding added to the live requests.
    slack: usize,
    holes: usize,
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

impl Heap {
    /// Offsets and sizes are multiples of this many bytes: what CUDA's own allocations are aligned
    /// to.
    pub const GRANULE: usize = 256;

    /// The most bytes that a heap can range over: a granule less than 1 TiB, or what `usize` counts.
    pub const MAX_CAPACITY: usize = {
        let granules = usize::MAX / Self::GRANULE;
        let limit = u32::MAX as usize;
        (if granules < limit { granules } else { limit }) * Self::GRANULE
    };

    /// A heap without capacity.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self {
            id: NEXT.fetch_add(1, Relaxed),
            nodes: Nodes::new(),
            bins: Bins::new(),
            capacity: 0,
            live: 0,
            slack: 0,
            holes: 0,
        }
    }

    /// Adds `bytes` at the end of the range.
    ///
    /// If that makes [`trimmable`](Self::trimmable) as large as the next request, it succeeds.
    ///
    /// # Errors
    ///
    /// `bytes` isn't a multiple of [`GRANULE`](Self::GRANULE), or the capacity would exceed
    /// [`MAX_CAPACITY`](Self::MAX_CAPACITY).
    pub fn extend(&mut self, bytes: usize) -> Result<(), ResizeError> {
        let capacity = bytes_of(self.capacity);
        let added = whole_granules(bytes)?;
        if bytes > Self::MAX_CAPACITY - capacity {
            return Err(ResizeError::TooLarge { bytes, capacity });
        }
        if added == 0 {
            return Ok(());
        }
        let last = self.nodes.last();
        if self.is_free(last) {
            // At the front of its list, so that a request for just this much finds it.
            self.bins.remove(&mut self.nodes, last);
            self.nodes[last].granules += added as u32;
            self.bins.insert(&mut self.nodes, last);
        } else {
            let index = self.nodes.insert_before(EDGE, self.capacity, added as u32);
            self.bins.insert(&mut self.nodes, index);
            self.holes += 1;
        }
        self.capacity += added as u32;
        Ok(())
    }

    /// Hands out a range of at least `bytes`, and of at least one granule, at the start of a hole.
    ///
    /// `None` when no hole is large enough. A hole that exceeds the request by less than a
    /// thirty-second may be missed when there are several such.
    pub fn allocate(&mut self, bytes: usize) -> Option<Span> {
        let granules = u32::try_from(bytes.div_ceil(Self::GRANULE).max(1)).ok()?;
        let hole = self.bins.find(&self.nodes, granules)?;
        let index = self.take(hole, granules);
        let slack = bytes_of(granules) - bytes;
        self.live += granules;
        self.slack += slack;
        let node = &mut self.nodes[index];
        node.generation = node.generation.wrapping_add(1);
        node.state = State::Live { slack: slack as u16 }; // at most a granule
        Some(Span {
            start: node.start,
            granules,
            node: index,
            generation: node.generation,
            heap: self.id,
        })
    }

    /// Takes a range back and merges it with the free ranges beside it.
    ///
    /// # Errors
    ///
    /// The span isn't live in this heap: it was freed before, or another heap handed it out. (A
    /// span kept until its record has been handed out 2³² times more is not told apart. Even then
    /// the heap stays consistent.)
    pub fn free(&mut self, span: Span) -> Result<(), StaleSpan> {
        let node = self.nodes.get(span.node).filter(|node| {
            self.id == span.heap && node.generation == span.generation && node.start == span.start
        });
        let Some(&Node { granules, state: State::Live { slack }, .. }) = node else {
            return Err(StaleSpan { offset: span.offset(), bytes: span.bytes() });
        };
        self.live -= granules;
        self.slack -= usize::from(slack);
        self.put_back(span.node);
        Ok(())
    }

    /// The free bytes at the end of the range: what [`shrink`](Self::shrink) could remove.
    pub fn trimmable(&self) -> usize {
        let last = self.nodes.last();
        if self.is_free(last) { bytes_of(self.nodes[last].granules) } else { 0 }
    }

    /// Removes `bytes` free bytes from the end of the range.
    ///
    /// # Errors
    ///
    /// `bytes` isn't a multiple of [`GRANULE`](Self::GRANULE), or exceeds
    /// [`trimmable`](Self::trimmable).
    pub fn shrink(&mut self, bytes: usize) -> Result<(), ResizeError> {
        let removed = whole_granules(bytes)?;
        let trimmable = self.trimmable();
        if bytes > trimmable {
            return Err(ResizeError::InUse { bytes, trimmable });
        }
        if bytes == 0 {
            return Ok(());
        }
        let last = self.nodes.last();
        if bytes == trimmable {
            self.bins.remove(&mut self.nodes, last);
            self.nodes.remove(last);
            self.holes -= 1;
        } else {
            let kept = self.nodes[last].granules - removed as u32;
            self.bins.resize(&mut self.nodes, last, kept);
        }
        self.capacity -= removed as u32;
        Ok(())
    }

    /// The heap's figures.
    ///
    /// All are kept except the largest hole, which is looked for among those of the highest list
    /// that has any: at worst in all of them. Ask when figures are collected, not per request.
    pub fn statistics(&self) -> HeapStatistics {
        let live_bytes = bytes_of(self.live);
        HeapStatistics {
            capacity_bytes: bytes_of(self.capacity),
            live_bytes,
            requested_bytes: live_bytes - self.slack,
            free_bytes: bytes_of(self.capacity - self.live),
            largest_free_bytes: bytes_of(self.bins.largest(&self.nodes)),
            holes: self.holes,
        }
    }

    fn is_free(&self, index: u32) -> bool {
        self.nodes[index].state == State::Free
    }

    /// Takes the first `granules` of a hole out of the lists; returns their block.
    fn take(&mut self, hole: u32, granules: u32) -> u32 {
        let Node { start, granules: available, .. } = self.nodes[hole];
        if available == granules {
            self.bins.remove(&mut self.nodes, hole);
            self.holes -= 1;
            return hole;
        }
        // The rest keeps its record: it often stays in its list.
        let index = self.nodes.insert_before(hole, start, granules);
        self.nodes[hole].start += granules;
        self.bins.resize(&mut self.nodes, hole, available - granules);
        index
    }

    /// Makes a live block free. A free neighbour keeps its record and takes the block in.
    fn put_back(&mut self, index: u32) {
        let Node { start, granules, before, after, .. } = self.nodes[index];
        match (self.is_free(before), self.is_free(after)) {
            (false, false) => {
                self.nodes[index].state = State::Free;
                self.bins.insert(&mut self.nodes, index);
                self.holes += 1;
            }
            (true, false) => {
                self.nodes.remove(index);
                let merged = self.nodes[before].granules + granules;
                self.bins.resize(&mut self.nodes, before, merged);
            }
            (false, true) => {
                self.nodes.remove(index);
                self.nodes[after].start = start;
                let merged = granules + self.nodes[after].granules;
                self.bins.resize(&mut self.nodes, after, merged);
            }
            (true, true) => {
                self.nodes.remove(index);
                self.bins.remove(&mut self.nodes, after);
                let merged = granules + self.nodes[before].granules + self.nodes[after].granules;
                self.nodes.remove(after);
                self.bins.resize(&mut self.nodes, before, merged);
                self.holes -= 1;
            }
        }
    }
}

/// The bytes of a heap's granules; no overflow, because capacity is limited.
fn bytes_of(granules: u32) -> usize {
    granules as usize * Heap::GRANULE
}

fn whole_granules(bytes: usize) -> Result<usize, ResizeError> {
    if bytes.is_multiple_of(Heap::GRANULE) {
        Ok(bytes / Heap::GRANULE)
    } else {
        Err(ResizeError::Uneven { bytes })
    }
}
