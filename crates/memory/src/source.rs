//! Where a pool gets its memory, and how it learns that work on that memory has finished.
//!
//! - [`Source`] is the contract. This machine's main memory is one ([`HostSource`](crate::HostSource));
//!   everything about pools is tested on a device that exists only as numbers, in the crate `testing`.
//! - [`SourceError`] says what the source refused and whether trying again can help.
//!
//! The choice behind it: a source is mechanism, the pool is policy. A source never caches, and the
//! pool never waits: it asks whether an event has passed, or has the device wait for it.

use std::fmt::Debug;
use std::sync::LazyLock;

#[cfg(not(miri))]
use quanta::Clock;

/// Memory that can be taken and given back in blocks, on a device that works through streams.
///
/// On a device that works while the host goes on, a block that has been returned may still be in
/// use. Events tell when it no longer is: one per slab, recorded behind the batch that used it. A
/// source whose work is done when a call returns has `()` for streams and events.
pub trait Source: Debug + Send + Sync + 'static {
    /// One contiguous piece of memory, at least 256-byte aligned. Dropping it gives it back as far
    /// as that can be done without an error to report; [`release`](Source::release) reports.
    type Block: Debug + Send + 'static;

    /// A queue of work that the device does in order.
    type Stream: Debug + Clone + PartialEq + Send + Sync + 'static;

    /// A point in a stream that the device passes. It can be recorded again.
    type Event: Debug + Send + 'static;

    /// What errors and metrics call it, for example `host memory`.
    fn name(&self) -> &str;

    /// Takes `bytes` of memory, a multiple of 2 MiB.
    ///
    /// # Errors
    /// [`SourceError`] when the memory can't be had, for example because another process took it.
    /// Nothing is taken then.
    fn allocate(&self, bytes: usize) -> Result<Self::Block, SourceError>;

    /// Whether [`resize`](Source::resize) works here.
    fn resizes_in_place(&self) -> bool {
        false
    }

    /// Makes a block larger or smaller, a multiple of 2 MiB, without moving it: what lies in the
    /// part that remains stays there, at the same address. Growing is safe while the device uses
    /// the block; before shrinking, its work must have finished.
    ///
    /// # Errors
    /// [`SourceError`] when memory can't be had or given back. The block is then as it was.
    fn resize(&self, block: &mut Self::Block, bytes: usize) -> Result<(), SourceError> {
        let _ = block;
        Err(SourceError::new(self.name(), "resize", bytes, Cause::Unsupported, "it can't"))
    }

    /// Gives a block back. Its work must have finished.
    ///
    /// # Errors
    /// [`SourceError`] when the device objects; the block is gone either way.
    fn release(&self, block: Self::Block) -> Result<(), SourceError> {
        drop(block);
        Ok(())
    }

    /// The block's first address, by which recordings and pictures name it.
    fn address(&self, block: &Self::Block) -> u64;

    /// A new event that counts as passed until it is recorded.
    ///
    /// # Errors
    /// [`SourceError`] when the device has no more.
    fn event(&self) -> Result<Self::Event, SourceError>;

    /// Records `event` behind all work that `stream` has been given so far.
    ///
    /// # Errors
    /// [`SourceError`] when the device is lost. The event is then useless.
    fn record(&self, event: &mut Self::Event, stream: &Self::Stream) -> Result<(), SourceError>;

    /// Makes `stream` wait for `event`. The host goes on.
    ///
    /// # Errors
    /// [`SourceError`] when the device is lost.
    fn wait(&self, stream: &Self::Stream, event: &Self::Event) -> Result<(), SourceError>;

    /// Whether `event` has been passed. Never waits.
    ///
    /// # Errors
    /// [`SourceError`] when the device is lost.
    fn has_passed(&self, event: &Self::Event) -> Result<bool, SourceError>;

    /// Waits until `event` has been passed. Only a pool that ends does this.
    ///
    /// # Errors
    /// [`SourceError`] when the device is lost.
    fn wait_on_host(&self, event: &Self::Event) -> Result<(), SourceError> {
        while !self.has_passed(event)? {
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Nanoseconds since some moment before the first call; never goes back.
    #[inline]
    fn now(&self) -> u64 {
        monotonic_nanoseconds()
    }

    /// Bytes that the device could still give, where it can tell: other processes take from it too.
    fn available(&self) -> Option<usize> {
        None
    }

    /// Calls made to the system or driver that take or give memory, by kind.
    fn calls(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Overwrites a block that was just returned, so that debug builds show a read of stale memory
    /// as NaN. The default does nothing.
    fn poison(&self, block: &mut Self::Block) {
        let _ = block;
    }
}

/// A source could not do what the pool asked of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation} of {bytes} bytes failed in {source_name}: {reason}{}", advice(*cause))]
pub struct SourceError {
    /// The source's name, for example `host memory`.
    pub source_name: String,
    /// The call that failed, for example `map`.
    pub operation: &'static str,
    /// Bytes that it was about.
    pub bytes: usize,
    /// What follows from it.
    pub cause: Cause,
    /// What the system said.
    pub reason: String,
}

/// Why a source failed, as far as that changes what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// There is not that much memory now: give some back and try again.
    Exhausted,
    /// The device is gone, with all its memory.
    Lost,
    /// The source never does this.
    Unsupported,
    /// Anything else; trying again may help.
    Failed,
}

impl SourceError {
    /// An error of `operation` on `bytes`.
    pub fn new(
        source_name: &str,
        operation: &'static str,
        bytes: usize,
        cause: Cause,
        reason: impl Into<String>,
    ) -> Self {
        let (source_name, reason) = (source_name.to_owned(), reason.into());
        Self { source_name, operation, bytes, cause, reason }
    }
}

fn advice(cause: Cause) -> &'static str {
    match cause {
        Cause::Exhausted => "; others may be using the device's memory: lower the budget or wait",
        Cause::Lost => "; the device must be started anew",
        Cause::Unsupported | Cause::Failed => "",
    }
}

/// Nanoseconds since the first call in this process.
#[cfg(not(miri))]
#[inline]
fn monotonic_nanoseconds() -> u64 {
    static CLOCK: LazyLock<(Clock, u64)> = LazyLock::new(|| {
        let clock = Clock::new();
        let start = clock.raw();
        (clock, start)
    });
    let (clock, start) = &*CLOCK;
    clock.delta_as_nanos(*start, clock.raw())
}

/// The same for Miri, which does not know the instructions that `quanta` uses.
#[cfg(miri)]
fn monotonic_nanoseconds() -> u64 {
    static START: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
