//! Pinned host memory, which the device copies from and to while the host goes on.
//!
//! The choice behind it: a buffer knows the last copy that touches it, and whoever wants to see its
//! bytes waits for that copy. So no caller can see bytes change.

use std::ffi::c_void;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use super::{Context, Event, Stream, check};
use crate::error::DriverError;

/// Memory from `cuMemHostAlloc`, freed when dropped.
#[derive(Debug)]
pub(crate) struct HostMemory {
    context: Arc<Context>,
    start: NonNull<u8>,
    bytes: usize,
    /// Passed when no copy touches it any more.
    copied: Event,
}

// SAFETY: it owns its memory like a `Box<[u8]>`, and the driver frees it from any thread.
unsafe impl Send for HostMemory {}
// SAFETY: through `&self` its bytes are only read, after the device has stopped writing them.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, DriverError> {
        const CALL: &str = "cuMemHostAlloc";
        let copied = Event::new(context)?;
        let api = context.bind()?;
        let mut start = std::ptr::null_mut();
        // SAFETY: writes one pointer, to which `start` has room; no flags.
        check(CALL, unsafe { (api.host_allocate)(&raw mut start, bytes, 0) })?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(DriverError::invalid(CALL))?;
        // SAFETY: the driver gave `bytes` bytes there, to nobody else. From here on they have
        // values.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self { context: Arc::clone(context), start, bytes, copied })
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its bytes, after the copies so far.
    pub(crate) fn as_slice(&self) -> Result<&[u8], DriverError> {
        self.wait()?;
        // SAFETY: `bytes` bytes with values, alive as long as `self`. No copy writes them: those so
        // far were waited for, and another needs `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) })
    }

    /// Its bytes for writing, after the copies so far.
    pub(crate) fn as_mut_slice(&mut self) -> Result<&mut [u8], DriverError> {
        self.wait()?;
        // SAFETY: as in `as_slice`; no copy reads them either, and `&mut self` is exclusive.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) })
    }

    fn wait(&self) -> Result<(), DriverError> {
        self.copied.synchronize()
    }

    /// The address of the part `at`, if it is inside and `bytes` long.
    pub(super) fn part(
        &self,
        call: &'static str,
        at: &Range<usize>,
        bytes: usize,
    ) -> Result<*mut c_void, DriverError> {
        if at.start > at.end || at.end > self.bytes || at.len() != bytes {
            return Err(DriverError::invalid(call));
        }
        // SAFETY: `at.start` is at most `self.bytes`: this stays inside the memory or at its end.
        let start = unsafe { self.start.add(at.start) };
        Ok(start.as_ptr().cast())
    }

    /// Has `stream` do a `copy` with this memory, behind earlier ones, and remembers it. The stream
    /// must be of the same device.
    pub(super) fn enqueue(
        &mut self,
        stream: &Stream,
        copy: impl FnOnce(&Self) -> Result<(), DriverError>,
    ) -> Result<(), DriverError> {
        // An event speaks for its last recording only: so this copy comes behind the one before.
        stream.wait(&self.copied)?;
        let copied = copy(self);
        // Without the event nobody would wait: so wait here, if the device still answers.
        stream
            .record(&self.copied)
            .or_else(|error| stream.synchronize().and(Err(error)))
            .and(copied)
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // If this fails then the device is lost and copies no more.
        let _ = self.wait();
        if let Ok(api) = self.context.bind() {
            // SAFETY: from `cuMemHostAlloc`, freed once, and no copy uses it.
            let _ = unsafe { (api.host_free)(self.start.as_ptr().cast()) };
        }
    }
}
