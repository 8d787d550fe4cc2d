//! Pinned host memory, which the device copies from and to while the host goes on.
//!
//! - [`HostMemory`] is seen as a whole; `parts` has memory that is cut up.
//!
//! The choice behind it: memory knows the last copy that touches it ([`LastCopy`]), and whoever
//! wants to see its bytes waits for that copy. So no caller can see bytes change.

use std::ffi::c_void;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use super::DriverError;
use super::{Context, Event, Stream, check};

/// Memory from `cuMemHostAlloc`, freed when dropped. It doesn't show its bytes: who owns it knows
/// which copies are under way.
#[derive(Debug)]
pub(super) struct Pages {
    context: Arc<Context>,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it owns its memory like a `Box<[u8]>`, and the driver frees it from any thread.
unsafe impl Send for Pages {}
// SAFETY: through `&self` it gives an address and touches no bytes.
unsafe impl Sync for Pages {}

impl Pages {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, DriverError> {
        const CALL: &str = "cuMemHostAlloc";
        let api = context.bind()?;
        let mut start = std::ptr::null_mut();
        // SAFETY: writes one pointer, to which `start` has room; no flags.
        check(CALL, unsafe { (api.host_allocate)(&raw mut start, bytes, 0) })?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(DriverError::invalid(CALL))?;
        // SAFETY: the driver gave `bytes` bytes there, to nobody else. From here on they have
        // values.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self { context: Arc::clone(context), start, bytes })
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The address of the part `at`, if it is inside. All its bytes have values.
    pub(super) fn part(&self, at: &Range<usize>) -> Option<NonNull<u8>> {
        if at.start > at.end || at.end > self.bytes {
            return None;
        }
        // SAFETY: `at.start` is at most `self.bytes`: this stays inside the memory or at its end.
        Some(unsafe { self.start.add(at.start) })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if let Ok(api) = self.context.bind() {
            // SAFETY: from `cuMemHostAlloc` and freed once. No copy uses it: each owner drops its
            // `LastCopy` first, which waits.
            let _ = unsafe { (api.host_free)(self.start.as_ptr().cast()) };
        }
    }
}

/// The last copy that touches some memory, behind all earlier ones. Dropping it waits for it.
#[derive(Debug)]
pub(super) struct LastCopy {
    event: Event,
    /// Whether the event stands for a copy of which nobody knows yet that it's done.
    under_way: bool,
}

impl LastCopy {
    /// Of memory that no copy has touched.
    pub(super) fn none(context: &Arc<Context>) -> Result<Self, DriverError> {
        Ok(Self { event: Event::new(context)?, under_way: false })
    }

    /// Waits for it.
    pub(super) fn wait(&self) -> Result<(), DriverError> {
        if self.under_way { self.event.synchronize() } else { Ok(()) }
    }

    /// Waits for it, and remembers that it's done.
    pub(super) fn finish(&mut self) -> Result<(), DriverError> {
        self.wait()?;
        self.under_way = false;
        Ok(())
    }

    /// Whether it is done. Does not wait.
    pub(super) fn is_done(&mut self) -> Result<bool, DriverError> {
        self.under_way = self.under_way && !self.event.has_passed()?;
        Ok(!self.under_way)
    }

    /// Has `stream` do a `copy` behind this one, which becomes that. The stream must be of the same
    /// device.
    pub(super) fn enqueue(
        &mut self,
        stream: &Stream,
        copy: impl FnOnce() -> Result<(), DriverError>,
    ) -> Result<(), DriverError> {
        // An event speaks for its last recording only: so this copy comes behind the one before.
        if self.under_way {
            stream.wait(&self.event)?;
        }
        self.under_way = true;
        let copied = copy();
        // Without the event nobody would wait: so wait here, if the device still answers.
        stream.record(&self.event).or_else(|error| stream.synchronize().and(Err(error))).and(copied)
    }
}

impl Drop for LastCopy {
    fn drop(&mut self) {
        // If this fails then the device is lost and copies no more.
        let _ = self.wait();
    }
}

/// Pinned memory that a stream may copy from and to, with the place where that is remembered.
#[derive(Debug)]
pub(crate) struct PinnedRange<'memory> {
    start: NonNull<u8>,
    bytes: usize,
    copied: &'memory mut LastCopy,
}

impl<'memory> PinnedRange<'memory> {
    /// The part `at` of `pages`, if it is inside. Whoever sees its bytes or lets go of `pages` must
    /// wait for `copied` before.
    pub(super) fn new(
        pages: &Pages,
        at: &Range<usize>,
        copied: &'memory mut LastCopy,
    ) -> Option<Self> {
        Some(Self { start: pages.part(at)?, bytes: at.len(), copied })
    }

    /// Has `stream` do a `copy` of `bytes` bytes, as many as there must be here, with its address.
    pub(super) fn enqueue(
        self,
        call: &'static str,
        stream: &Stream,
        bytes: usize,
        copy: impl FnOnce(*mut c_void) -> Result<(), DriverError>,
    ) -> Result<(), DriverError> {
        if self.bytes != bytes {
            return Err(DriverError::invalid(call));
        }
        self.copied.enqueue(stream, || copy(self.start.as_ptr().cast()))
    }
}

/// Pinned memory with one account of its copies.
#[derive(Debug)]
pub(crate) struct HostMemory {
    // Fields are dropped in this order: the copies end, then the memory is freed.
    copied: LastCopy,
    pages: Pages,
}

impl HostMemory {
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, DriverError> {
        Ok(Self { copied: LastCopy::none(context)?, pages: Pages::new(context, bytes)? })
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        self.pages.context()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.pages.bytes
    }

    /// Its bytes, after the copies so far.
    pub(crate) fn as_slice(&self) -> Result<&[u8], DriverError> {
        self.copied.wait()?;
        // SAFETY: `bytes` bytes with values, alive as long as `self`. No copy writes them: those so
        // far were waited for, and another needs `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts(self.pages.start.as_ptr(), self.pages.bytes) })
    }

    /// Its bytes for writing, after the copies so far.
    pub(crate) fn as_mut_slice(&mut self) -> Result<&mut [u8], DriverError> {
        self.copied.wait()?;
        // SAFETY: as in `as_slice`; no copy reads them either, and `&mut self` is exclusive.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.pages.start.as_ptr(), self.pages.bytes) })
    }

    /// The bytes `at`, for a stream to copy; `None` if they are not inside.
    pub(crate) fn range(&mut self, at: &Range<usize>) -> Option<PinnedRange<'_>> {
        PinnedRange::new(&self.pages, at, &mut self.copied)
    }
}
