//! Pinned host memory in parts, each with its own last copy: one can be written or read while
//! copies to and from others are under way.
//!
//! The choice behind it: a part is a thing that one caller owns, and [`HostParts`] alone makes
//! them. The arguments beside the `unsafe` blocks are that
//!
//! - **parts don't overlap**: each is one live claim of one [`Ring`] over the memory, and a ring's
//!   live claims don't overlap;
//! - **a claim ends after the copies**: [`HostParts::release`] takes the part away, waits for its
//!   last copy, and only then releases the claim. A part that is dropped instead keeps its claim for
//!   good: that space is lost, not shared.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use vecmill_memory::ALIGNMENT;

use super::Context;
use super::DriverError;
use super::host::{LastCopy, Pages, PinnedRange};
use crate::staging::ring::{Claim, Ring, RingStatistics};

/// Pinned memory that is given out in parts, first in, first out.
#[derive(Debug)]
pub(crate) struct HostParts {
    pages: Arc<Pages>,
    ring: Ring,
    /// Of released parts: no copy is under way.
    spare: Vec<LastCopy>,
}

/// A part of a [`HostParts`], which it may outlive. To be released there; dropped, it waits for its
/// copies, and its space is lost.
#[derive(Debug)]
pub(crate) struct HostPart {
    // Fields are dropped in this order: the copies end, then the memory may be freed.
    copied: LastCopy,
    pages: Arc<Pages>,
    claim: Claim,
}

impl HostParts {
    /// `bytes` bytes of pinned memory, at least [`ALIGNMENT`].
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, DriverError> {
        if bytes < ALIGNMENT {
            return Err(DriverError::invalid("cuMemHostAlloc"));
        }
        let pages = Arc::new(Pages::new(context, bytes)?);
        Ok(Self { pages, ring: Ring::new(bytes), spare: Vec::new() })
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        self.pages.context()
    }

    pub(crate) fn statistics(&self) -> RingStatistics {
        self.ring.statistics()
    }

    /// A part of `bytes` bytes; `None` when there is no room. What it contains is left over.
    pub(crate) fn claim(&mut self, bytes: usize) -> Result<Option<HostPart>, DriverError> {
        let copied = match self.spare.pop() {
            Some(copied) => copied,
            None => LastCopy::none(self.context())?,
        };
        let Some(claim) = self.ring.claim(bytes) else {
            self.spare.push(copied);
            return Ok(None);
        };
        Ok(Some(HostPart { copied, pages: Arc::clone(&self.pages), claim }))
    }

    /// Takes a part back, after its copies. Its space is free once all older parts are back.
    pub(crate) fn release(&mut self, mut part: HostPart) -> Result<(), DriverError> {
        part.finish()?;
        // Refused only for a part of another memory, whose space is lost then.
        if self.ring.release(part.claim).is_ok() {
            self.spare.push(part.copied);
        }
        Ok(())
    }
}

impl HostPart {
    /// Writes all of it, after its copies so far.
    pub(crate) fn write(&mut self, from: &[u8]) -> Result<(), DriverError> {
        const CALL: &str = "write to pinned memory";
        let start = self.start(CALL, from.len())?;
        self.finish()?;
        // SAFETY: the part is inside the pages, which live as long as `self`, and has values. Only
        // its own copies touch it, because parts don't overlap and a claim ends after the copies
        // (see the module's head). Those so far were waited for; another needs `&mut self`, which
        // is here, so nobody else has a reference either.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), from.len()) };
        bytes.copy_from_slice(from);
        Ok(())
    }

    /// Reads all of it, after its copies so far.
    pub(crate) fn read(&self, into: &mut [u8]) -> Result<(), DriverError> {
        const CALL: &str = "read from pinned memory";
        let start = self.start(CALL, into.len())?;
        self.copied.wait()?;
        // SAFETY: as in `write`. The copies so far were waited for, and another needs `&mut self`,
        // as does writing: meanwhile the bytes are only read.
        let bytes = unsafe { std::slice::from_raw_parts(start.as_ptr(), into.len()) };
        into.copy_from_slice(bytes);
        Ok(())
    }

    pub(crate) fn bytes(&self) -> usize {
        self.claim.bytes()
    }

    /// Whether its copies are done. Does not wait.
    pub(crate) fn is_done(&mut self) -> Result<bool, DriverError> {
        self.copied.is_done()
    }

    /// Waits for its copies.
    pub(crate) fn finish(&mut self) -> Result<(), DriverError> {
        self.copied.finish()
    }

    /// All of it, for a stream to copy.
    pub(crate) fn range(&mut self) -> Option<PinnedRange<'_>> {
        let at = self.at();
        PinnedRange::new(&self.pages, &at, &mut self.copied)
    }

    fn at(&self) -> Range<usize> {
        self.claim.offset()..self.claim.offset() + self.claim.bytes()
    }

    /// Its address, if it is `bytes` long.
    fn start(&self, call: &'static str, bytes: usize) -> Result<NonNull<u8>, DriverError> {
        let start = self.pages.part(&self.at()).filter(|_| bytes == self.claim.bytes());
        start.ok_or(DriverError::invalid(call))
    }
}
