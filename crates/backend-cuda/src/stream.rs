//! Streams and events: what a device does, and in which order.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use vecmill_memory::SourceError;

use crate::driver::DriverError;
use crate::driver::{Context, DeviceSpan, Event, Hold, Stream};
use crate::pinned::PinnedBuffer;

/// A queue of work that a device does in order, beside its other streams. Clones are the same
/// stream, and equal; the last one to be dropped destroys it, and its work is still done.
#[derive(Debug, Clone)]
pub struct CudaStream(Arc<Stream>);

impl PartialEq for CudaStream {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for CudaStream {}

impl CudaStream {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, SourceError> {
        let stream = Stream::new(context).map_err(|e| e.of(context.name(), 0))?;
        Ok(Self(Arc::new(stream)))
    }

    pub(crate) fn raw(&self) -> &Arc<Stream> {
        &self.0
    }

    fn error(&self, bytes: usize) -> impl FnOnce(DriverError) -> SourceError {
        move |error| error.of(self.0.context().name(), bytes)
    }

    /// Waits until all its work is done.
    ///
    /// # Errors
    /// [`SourceError`] when the device is lost, also by work that was given to it before.
    pub fn synchronize(&self) -> Result<(), SourceError> {
        self.0.synchronize().map_err(self.error(0))
    }

    /// Whether all its work is done. Does not wait.
    ///
    /// # Errors
    /// [`SourceError`] when the device is lost.
    pub fn is_idle(&self) -> Result<bool, SourceError> {
        self.0.is_idle().map_err(self.error(0))
    }

    /// Records `event` behind all work so far.
    ///
    /// # Errors
    /// [`SourceError`] when the event is of another device or the device is lost.
    pub fn record(&self, event: &mut CudaEvent) -> Result<(), SourceError> {
        self.0.record(&event.0).map_err(self.error(0))
    }

    /// Has later work wait for `event`, which may be of another device. The host goes on.
    ///
    /// # Errors
    /// [`SourceError`] when the device is lost.
    pub fn wait(&self, event: &CudaEvent) -> Result<(), SourceError> {
        self.0.wait(&event.0).map_err(self.error(0))
    }

    /// Holds back what is enqueued from now on, until the returned value is dropped, but for at
    /// most a fifth of a second. To measure how fast the device is where the host is slower.
    ///
    /// # Errors
    /// [`SourceError`] when the device is lost.
    pub fn hold(&self) -> Result<HeldStream, SourceError> {
        self.0.hold().map(HeldStream).map_err(self.error(0))
    }

    /// Writes `value` to each four bytes of `span`. The host goes on.
    ///
    /// # Errors
    /// [`SourceError`] when the span is not aligned to four bytes, or the device is lost.
    pub fn fill_u32(&self, span: DeviceSpan<'_>, value: u32) -> Result<(), SourceError> {
        self.0.fill_u32(span, value).map_err(self.error(span.bytes()))
    }

    /// Copies `span` to host memory of the same length, behind all work so far, and waits for it.
    ///
    /// # Errors
    /// [`SourceError`] when lengths differ, or the device is lost.
    pub fn copy_to_host(&self, span: DeviceSpan<'_>, into: &mut [u8]) -> Result<(), SourceError> {
        self.0.copy_to_host(span, into).map_err(self.error(span.bytes()))
    }

    /// Copies host memory to a `span` of the same length, behind all work so far, and waits for it.
    ///
    /// # Errors
    /// [`SourceError`] when lengths differ, or the device is lost.
    pub fn copy_from_host(&self, from: &[u8], span: DeviceSpan<'_>) -> Result<(), SourceError> {
        self.0.copy_from_host(from, span).map_err(self.error(span.bytes()))
    }

    /// Copies `span` to the bytes `at` of a pinned buffer. The host goes on, until it looks at the
    /// buffer.
    ///
    /// # Errors
    /// [`SourceError`] when lengths differ, `at` is not inside the buffer, the buffer is another
    /// device's, or the device is lost.
    pub fn copy_to_pinned(
        &self,
        span: DeviceSpan<'_>,
        into: &mut PinnedBuffer,
        at: Range<usize>,
    ) -> Result<(), SourceError> {
        let range = into.range(&at);
        range.and_then(|range| self.0.copy_to_pinned(span, range)).map_err(self.error(span.bytes()))
    }

    /// Copies the bytes `at` of a pinned buffer to `span`. The host goes on, until it looks at the
    /// buffer.
    ///
    /// # Errors
    /// [`SourceError`] when lengths differ, `at` is not inside the buffer, the buffer is another
    /// device's, or the device is lost.
    pub fn copy_from_pinned(
        &self,
        from: &mut PinnedBuffer,
        at: Range<usize>,
        span: DeviceSpan<'_>,
    ) -> Result<(), SourceError> {
        let range = from.range(&at);
        range
            .and_then(|range| self.0.copy_from_pinned(range, span))
            .map_err(self.error(span.bytes()))
    }
}

/// A stream whose new work waits until this is dropped: see [`CudaStream::hold`].
#[derive(Debug)]
pub struct HeldStream(#[expect(dead_code, reason = "its drop is what counts")] Hold);

/// A point in a stream that the device passes. Destroyed when dropped.
#[derive(Debug)]
pub struct CudaEvent(Event);

impl CudaEvent {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, SourceError> {
        Event::new(context).map(Self).map_err(|e| e.of(context.name(), 0))
    }

    pub(crate) fn timed(context: &Arc<Context>) -> Result<Self, SourceError> {
        Event::timed(context).map(Self).map_err(|e| e.of(context.name(), 0))
    }

    /// The time between the device's passing of `earlier` and of this one, by its own clock.
    ///
    /// # Errors
    /// [`SourceError`] when one of them is not timed or not passed yet, or the device is lost.
    pub fn time_since(&self, earlier: &Self) -> Result<Duration, SourceError> {
        let milliseconds = self.0.milliseconds_since(&earlier.0);
        let milliseconds = milliseconds.map_err(|e| e.of(self.0.context().name(), 0))?;
        Ok(Duration::from_secs_f32(milliseconds.max(0.0) / 1e3))
    }

    /// Whether the device has passed it; so it has if it was never recorded. Does not wait.
    ///
    /// # Errors
    /// [`SourceError`] when the device is lost.
    pub fn has_passed(&self) -> Result<bool, SourceError> {
        self.0.has_passed().map_err(|e| e.of(self.0.context().name(), 0))
    }

    /// Waits until the device has passed it.
    ///
    /// # Errors
    /// [`SourceError`] when the device is lost.
    pub fn synchronize(&self) -> Result<(), SourceError> {
        self.0.synchronize().map_err(|e| e.of(self.0.context().name(), 0))
    }
}
