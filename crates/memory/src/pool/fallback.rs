//! Small pieces of memory that no plan foresaw, out of a heap over one block that grows at its end.
//!
//! Where the source can't grow a block in place, and where the heap has no room left to grow, an
//! extra gets a slab of its own.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{MutexGuard, PoisonError};

use super::lease::Lease;
use super::{LeaseError, Shared};
use crate::class::GRANULE;
use crate::heap::{Heap, HeapStatistics, Span};
use crate::source::{Cause, Source, SourceError};

/// The heap grows by at least this much at once.
const STEP: usize = 16 * GRANULE;

/// The heap of a pool and the block behind it.
pub(super) struct Fallback<S: Source> {
    heap: Heap,
    block: Option<S::Block>,
    /// Pieces that came back while the device may still have been using them.
    in_use: VecDeque<(Span, S::Event)>,
    /// Pieces whose end has not been marked in the stream that used them: it failed, and is tried
    /// again.
    unmarked: Vec<(Span, S::Stream)>,
    spare_events: Vec<S::Event>,
    last_used: u64,
}

/// A piece of memory beside the plans. Dropping it gives it back once the device is done with it.
pub struct Extra<'a, S: Source> {
    pool: &'a Shared<S>,
    address: u64,
    bytes: usize,
    stream: Option<S::Stream>,
    place: Place<'a, S>,
}

enum Place<'a, S: Source> {
    Heap(Span),
    Slab { _held: Lease<'a, S> },
}

impl<S: Source> Extra<'_, S> {
    /// Its first address on the device, a multiple of 256.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size, at least what was asked for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<S: Source> Fallback<S> {
    pub(super) fn new() -> Self {
        Self {
            heap: Heap::new(),
            block: None,
            in_use: VecDeque::new(),
            unmarked: Vec::new(),
            spare_events: Vec::new(),
            last_used: 0,
        }
    }

    /// The heap's figures.
    pub(super) fn statistics(&self) -> HeapStatistics {
        self.heap.statistics()
    }

    /// When a piece was last asked for.
    pub(super) fn last_used(&self) -> u64 {
        self.last_used
    }

    /// Takes pieces back that the device has finished with, oldest first.
    fn collect(&mut self, source: &S) {
        self.mark(source);
        while let Some((span, event)) = self.in_use.pop_front() {
            let passed = source.has_passed(&event);
            if !passed.unwrap_or_else(|error| is_lost(&error)) {
                self.in_use.push_front((span, event));
                return;
            }
            self.free(span);
            self.spare_events.push(event);
        }
    }

    /// Marks where the work on pieces that came back ends.
    fn mark(&mut self, source: &S) {
        for (span, stream) in std::mem::take(&mut self.unmarked) {
            match self.end_of_work(&stream, source) {
                Ok(event) => self.in_use.push_back((span, event)),
                Err(error) if is_lost(&error) => self.free(span),
                Err(_) => self.unmarked.push((span, stream)),
            }
        }
    }

    fn end_of_work(&mut self, stream: &S::Stream, source: &S) -> Result<S::Event, SourceError> {
        let mut event = self.spare_events.pop().map_or_else(|| source.event(), Ok)?;
        source.record(&mut event, stream)?;
        Ok(event)
    }

    fn free(&mut self, span: Span) {
        let freed = self.heap.free(span);
        debug_assert!(freed.is_ok(), "each extra frees its own span, once: {freed:?}");
    }

    fn give_back(&mut self, span: Span, stream: Option<S::Stream>, source: &S) {
        match stream {
            Some(stream) => self.unmarked.push((span, stream)),
            None => self.free(span),
        }
        self.collect(source);
    }

    /// Waits for the device and hands the block out, for a pool that ends.
    pub(super) fn close(&mut self, source: &S) -> Option<S::Block> {
        self.mark(source);
        for (_, event) in self.in_use.drain(..) {
            let _ = source.wait_on_host(&event); // a lost device runs nothing
        }
        self.block.take()
    }
}

/// On a lost device nothing runs any more.
fn is_lost(error: &SourceError) -> bool {
    error.cause == Cause::Lost
}

impl<S: Source> Shared<S> {
    pub(super) fn fallback(&self) -> MutexGuard<'_, Fallback<S>> {
        self.fallback.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn extra(
        &self,
        bytes: usize,
        stream: Option<S::Stream>,
    ) -> Result<Extra<'_, S>, LeaseError> {
        if let Some((span, address)) = self.extra_from_heap(bytes) {
            self.counts.fallback();
            let (bytes, place) = (span.bytes(), Place::Heap(span));
            return Ok(Extra { pool: self, address, bytes, stream, place });
        }
        let Some(of) = &stream else {
            let available = self.budget.available();
            return Err(LeaseError::TooLarge { needed: bytes, available });
        };
        let lease = self.lease(bytes, of).inspect_err(|error| self.refused(bytes, of, error))?;
        self.counts.fallback();
        let (address, bytes) = (self.source.address(lease.block()), lease.bytes());
        Ok(Extra { pool: self, address, bytes, stream: None, place: Place::Slab { _held: lease } })
    }

    fn extra_from_heap(&self, bytes: usize) -> Option<(Span, u64)> {
        let mut fallback = self.fallback();
        fallback.last_used = self.source.now();
        fallback.collect(&self.source);
        let mut span = fallback.heap.allocate(bytes);
        if span.is_none() && self.grow_fallback(&mut fallback, bytes) {
            span = fallback.heap.allocate(bytes);
        }
        let base = self.source.address(fallback.block.as_ref()?);
        span.map(|span| (span, base + span.offset() as u64))
    }

    /// Grows the heap so that `bytes` fit at its end.
    fn grow_fallback(&self, fallback: &mut Fallback<S>, bytes: usize) -> bool {
        let capacity = fallback.heap.statistics().capacity_bytes;
        let lacking = bytes.saturating_sub(fallback.heap.trimmable());
        let more = lacking.checked_next_multiple_of(GRANULE).map(|more| more.max(STEP));
        let Some(more) = more.filter(|&more| more <= Heap::MAX_CAPACITY - capacity) else {
            return false;
        };
        if fallback.block.is_some() && !self.source.resizes_in_place() {
            return false;
        }
        if !self.budget.commit(more) {
            return false;
        }
        let grown = match &mut fallback.block {
            Some(block) => self.source.resize(block, capacity + more),
            none => self.source.allocate(more).map(|block| *none = Some(block)),
        };
        match grown {
            Ok(()) => {
                self.budget.held_grew();
                fallback.heap.extend(more).is_ok()
            }
            Err(error) => {
                self.budget.free(more);
                self.counts.failed(&error);
                false
            }
        }
    }

    /// Gives the heap's unused end back and returns its bytes.
    pub(super) fn trim_fallback(&self) -> usize {
        let mut fallback = self.fallback();
        fallback.collect(&self.source);
        let statistics = fallback.heap.statistics();
        let unused = fallback.heap.trimmable() / GRANULE * GRANULE;
        let rest = statistics.capacity_bytes - unused;
        let given_back = match (&mut fallback.block, rest) {
            _ if unused == 0 => return 0,
            (None, _) => return 0,
            (Some(block), 1..) if self.source.resizes_in_place() => self.source.resize(block, rest),
            (Some(_), 1..) => return 0,
            (block, 0) => block.take().map_or(Ok(()), |block| self.source.release(block)),
        };
        if let Err(error) = given_back {
            self.counts.failed(&error);
            if rest > 0 {
                return 0;
            }
        }
        let shrunk = fallback.heap.shrink(unused);
        debug_assert!(shrunk.is_ok(), "what was free under the lock still is: {shrunk:?}");
        self.budget.free(unused);
        self.counts.given_back(unused);
        unused
    }
}

impl<S: Source> Drop for Extra<'_, S> {
    fn drop(&mut self) {
        if let Place::Heap(span) = &self.place {
            self.pool.fallback().give_back(*span, self.stream.take(), &self.pool.source);
        }
    }
}

impl<S: Source> fmt::Debug for Extra<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, bytes, .. } = self;
        f.debug_struct("Extra")
            .field("address", address)
            .field("bytes", bytes)
            .finish_non_exhaustive()
    }
}
