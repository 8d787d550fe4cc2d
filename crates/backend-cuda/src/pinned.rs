//! Host memory for copies that don't make the host wait.

use std::ops::Range;
use std::sync::Arc;

use vecmill_memory::SourceError;

use crate::driver::DriverError;
use crate::driver::{Context, HostMemory, PinnedRange};

/// Bytes of host memory that the system does not move, so that a device can copy from and to them
/// by itself. Made by [`Gpu::pinned`](crate::Gpu::pinned), freed when dropped.
///
/// [`CudaStream`](crate::CudaStream) copies in the background; looking at the bytes waits for the
/// copies that were asked for, so no copy is ever seen half done.
#[derive(Debug)]
pub struct PinnedBuffer(HostMemory);

impl PinnedBuffer {
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, SourceError> {
        HostMemory::new(context, bytes).map(Self).map_err(|e| e.of(context.name(), bytes))
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// Its bytes, after waiting for copies to and from it.
    ///
    /// # Errors
    /// [`SourceError`] when the device is lost: then what a copy brought can't be told.
    pub fn as_slice(&self) -> Result<&[u8], SourceError> {
        self.0.as_slice().map_err(|e| e.of(self.0.context().name(), self.bytes()))
    }

    /// Its bytes for writing, after waiting for copies to and from it.
    ///
    /// # Errors
    /// [`SourceError`] when the device is lost: a copy may not be over.
    pub fn as_mut_slice(&mut self) -> Result<&mut [u8], SourceError> {
        let (context, bytes) = (Arc::clone(self.0.context()), self.bytes());
        self.0.as_mut_slice().map_err(|e| e.of(context.name(), bytes))
    }

    /// The bytes `at`, for a stream to copy.
    pub(crate) fn range(&mut self, at: &Range<usize>) -> Result<PinnedRange<'_>, DriverError> {
        self.0.range(at).ok_or(DriverError::invalid("a copy of pinned memory"))
    }
}
