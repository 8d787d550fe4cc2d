//! A small ring of pinned host memory, through which token ids go to a device and vectors come back
//! while earlier copies are under way.
//!
//! - [`StagingRing`] faces the device's thread; `queue` has the logic, over two small traits, so
//!   that it is tested on copies that end when a test says so, without a GPU.
//!
//! The choice behind it: one pinned allocation per device for all batches. Pinning memory is slow
//! and can hold the device up, and a [`PinnedBuffer`](crate::PinnedBuffer) makes the host wait for
//! its last copy; a ring of a few megabytes takes many batches' ids and vectors in, and the host
//! waits only when it's full. Its space is a [`Ring`](ring::Ring)'s, used again when the event
//! behind its copy has passed.

mod queue;
pub(crate) mod ring;
#[cfg(test)]
mod tests;

use vecmill_memory::{Cause, SourceError};

use crate::driver::DriverError;
use crate::driver::{DeviceSpan, HostPart, HostParts};
use crate::gpu::Gpu;
use crate::stream::CudaStream;
use queue::{Part, Parts, Pieces, Queue};

/// Pinned memory of a device for copies in and out that don't make the host wait.
///
/// Space comes back in the order of its use: what was copied out should be read or dropped in the
/// order in which it was asked for. Dropping the ring waits for its copies.
///
/// ```no_run
/// use vecmill_backend_cuda::{CudaSource, Gpu, StagingRing};
/// use vecmill_memory::Source;
///
/// let device = Gpu::open(0)?;
/// let (source, stream) = (CudaSource::new(&device)?, device.stream()?);
/// let block = source.allocate(2 << 20)?;
/// let mut ring = StagingRing::new(&device, StagingRing::DEFAULT_BYTES)?;
///
/// ring.copy_in(&stream, &[1, 2, 3, 4], block.span(0..4)?)?; // the host goes on
/// let staged = ring.copy_out(&stream, block.span(0..4)?)?; // here, too
/// let mut back = [0; 4];
/// ring.read(staged, &mut back)?; // waits for this copy
/// assert_eq!(back, [1, 2, 3, 4]);
/// # source.release(block)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct StagingRing(Queue<HostParts>);

/// Bytes on their way out of a device, to be read by the [`StagingRing`] that copies them. Dropped
/// unread, its space goes back when the copy is done and the ring is next used.
#[derive(Debug)]
pub struct Staged(Pieces<HostPart>);

/// A [`StagingRing`]'s state, and its counts since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StagingStatistics {
    /// The bytes that can be used: the ring's, rounded down to 64.
    pub capacity_bytes: usize,
    /// Bytes that can't be used now: each piece rounded up to 64, also those done since the ring
    /// was last used, and what was skipped at the ring's end.
    pub used_bytes: usize,
    /// The highest value that `used_bytes` has had.
    pub peak_used_bytes: usize,
    /// How often the host waited for a copy because there was no room.
    pub waits: u64,
}

impl StagingRing {
    /// A size that is enough for many batches: 8 MiB.
    pub const DEFAULT_BYTES: usize = 8 << 20;

    /// A ring of `bytes` bytes, at least 64, for copies on the streams of `device`.
    ///
    /// # Errors
    /// [`SourceError`] when `bytes` is less or the host has no more, or the device is lost.
    pub fn new(device: &Gpu, bytes: usize) -> Result<Self, SourceError> {
        let parts = HostParts::new(device.context(), bytes);
        parts.map(|parts| Self(Queue::new(parts))).map_err(|e| e.of(device.name(), bytes))
    }

    /// Copies `from` to a `span` of the same length, behind all work of `stream` so far. `from` can
    /// be used again at once, and the host goes on; when the ring is full it waits for the oldest
    /// copy, or, where that is unread, for this one. More than a quarter of the ring is copied in
    /// pieces.
    ///
    /// # Errors
    /// [`SourceError`] when lengths differ, the stream is another device's, or the device is lost. A
    /// part may have been copied then.
    pub fn copy_in(
        &mut self,
        stream: &CudaStream,
        from: &[u8],
        span: DeviceSpan<'_>,
    ) -> Result<(), SourceError> {
        const CALL: &str = "copy_in";
        self.same_length(CALL, from.len(), span.bytes())?;
        let invalid = DriverError::invalid(CALL);
        let send = |part: &mut HostPart, at| {
            let (part, span) = part.range().zip(span.part(at)).ok_or(invalid)?;
            stream.raw().copy_from_pinned(part, span)
        };
        let send_now =
            |from: &[u8], at| stream.raw().copy_from_host(from, span.part(at).ok_or(invalid)?);
        self.0.copy_in(from, send, send_now).map_err(|error| self.failed(error, span.bytes()))
    }

    /// Begins to copy `span` out, behind all work of `stream` so far, to be read later. The host
    /// goes on; when the ring is full it waits for the oldest copy. More than a quarter of the ring
    /// is copied in pieces, and what the ring has no room for is brought at once.
    ///
    /// # Errors
    /// [`SourceError`] when the stream is another device's, or the device is lost.
    pub fn copy_out(
        &mut self,
        stream: &CudaStream,
        span: DeviceSpan<'_>,
    ) -> Result<Staged, SourceError> {
        let invalid = DriverError::invalid("copy_out");
        let fetch = |part: &mut HostPart, at| {
            let (part, span) = part.range().zip(span.part(at)).ok_or(invalid)?;
            stream.raw().copy_to_pinned(span, part)
        };
        let fetch_now =
            |into: &mut [u8], at| stream.raw().copy_to_host(span.part(at).ok_or(invalid)?, into);
        let staged = self.0.copy_out(span.bytes(), fetch, fetch_now);
        staged.map(Staged).map_err(|error| self.failed(error, span.bytes()))
    }

    /// Waits for what is `staged`, and for nothing behind it, writes it to `into` of the same
    /// length, and frees its space.
    ///
    /// # Errors
    /// [`SourceError`] when lengths differ, or the device is lost. The bytes are gone then.
    pub fn read(&mut self, staged: Staged, into: &mut [u8]) -> Result<(), SourceError> {
        const CALL: &str = "read";
        self.same_length(CALL, into.len(), staged.bytes())?;
        let read = self.0.read(staged.0, into);
        read.map_err(|error| self.failed(error, into.len()))
    }

    /// The ring's state and counts.
    pub fn statistics(&self) -> StagingStatistics {
        let ring = self.0.buffer().statistics();
        StagingStatistics {
            capacity_bytes: ring.capacity_bytes,
            used_bytes: ring.used_bytes,
            peak_used_bytes: ring.peak_used_bytes,
            waits: self.0.waits(),
        }
    }

    fn device_name(&self) -> &str {
        self.0.buffer().context().name()
    }

    fn same_length(
        &self,
        call: &'static str,
        host: usize,
        device: usize,
    ) -> Result<(), SourceError> {
        if host == device {
            return Ok(());
        }
        let reason = format!("{host} bytes on the host and {device} on the device");
        Err(SourceError::new(self.device_name(), call, device, Cause::Failed, reason))
    }

    fn failed(&self, error: DriverError, bytes: usize) -> SourceError {
        error.of(self.device_name(), bytes)
    }
}

impl Staged {
    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

impl Parts for HostParts {
    type Part = HostPart;

    fn capacity(&self) -> usize {
        self.statistics().capacity_bytes
    }

    fn claim(&mut self, bytes: usize) -> Result<Option<HostPart>, DriverError> {
        self.claim(bytes)
    }

    fn release(&mut self, part: HostPart) -> Result<(), DriverError> {
        self.release(part)
    }
}

impl Part for HostPart {
    fn bytes(&self) -> usize {
        self.bytes()
    }

    fn write(&mut self, from: &[u8]) -> Result<(), DriverError> {
        self.write(from)
    }

    fn read(&self, into: &mut [u8]) -> Result<(), DriverError> {
        self.read(into)
    }

    fn is_done(&mut self) -> Result<bool, DriverError> {
        self.is_done()
    }

    fn finish(&mut self) -> Result<(), DriverError> {
        self.finish()
    }
}
