//! Streams, events, and the small work that needs no kernel: filling and copying.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys;

use super::error::{DriverError, code};
use super::{Context, DeviceSpan, PinnedRange, check};

/// A `CUstream` that does not wait for the default one, destroyed when dropped; the driver first
/// finishes its work.
#[derive(Debug)]
pub(crate) struct Stream {
    context: Arc<Context>,
    handle: sys::CUstream,
}

// SAFETY: the driver locks its streams; the pointer is only a name for one.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

/// `Ok(false)` for the code that says that work is not done yet.
fn done(call: &'static str, result: u32) -> Result<bool, DriverError> {
    match result {
        code::NOT_READY => Ok(false),
        result => check(call, result).map(|()| true),
    }
}

impl Stream {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, DriverError> {
        context.bind()?;
        Ok(Self { context: Arc::clone(context), handle: context.create_stream()? })
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(super) fn handle(&self) -> sys::CUstream {
        self.handle
    }

    /// Waits until its work is done.
    pub(crate) fn synchronize(&self) -> Result<(), DriverError> {
        let api = self.context.bind()?;
        // SAFETY: the stream is live.
        check("cuStreamSynchronize", unsafe { (api.stream_synchronize)(self.handle) })
    }

    /// Whether its work is done.
    pub(crate) fn is_idle(&self) -> Result<bool, DriverError> {
        let api = self.context.bind()?;
        // SAFETY: the stream is live.
        done("cuStreamQuery", unsafe { (api.stream_query)(self.handle) })
    }

    /// Has later work wait for `event`. The event may be of another device.
    pub(crate) fn wait(&self, event: &Event) -> Result<(), DriverError> {
        let api = self.context.bind()?;
        // SAFETY: stream and event are live; the flags must be 0.
        check("cuStreamWaitEvent", unsafe { (api.stream_wait)(self.handle, event.handle, 0) })
    }

    /// Records `event` behind the work so far. Both must be of one device.
    pub(crate) fn record(&self, event: &Event) -> Result<(), DriverError> {
        let api = self.context.bind()?;
        // SAFETY: stream and event are live. The driver refuses an event of another context.
        check("cuEventRecord", unsafe { (api.event_record)(event.handle, self.handle) })
    }

    /// Writes `value` to each four bytes of `span`, which must be aligned to four.
    pub(crate) fn fill_u32(&self, span: DeviceSpan<'_>, value: u32) -> Result<(), DriverError> {
        const CALL: &str = "cuMemsetD32Async";
        if !span.address().is_multiple_of(4) || !span.bytes().is_multiple_of(4) {
            return Err(DriverError::invalid(CALL));
        }
        let api = self.context.bind()?;
        let (address, count) = (span.address(), span.bytes() / 4);
        // SAFETY: writes device memory only: the span is inside a block.
        check(CALL, unsafe { (api.fill_u32)(address, value, count, self.handle) })
    }

    /// Copies `span` to host memory of its length, behind the work so far, and waits for it.
    pub(crate) fn copy_to_host(
        &self,
        span: DeviceSpan<'_>,
        into: &mut [u8],
    ) -> Result<(), DriverError> {
        const CALL: &str = "cuMemcpyDtoHAsync";
        if span.bytes() != into.len() {
            return Err(DriverError::invalid(CALL));
        }
        let api = self.context.bind()?;
        let (target, address) = (into.as_mut_ptr().cast::<c_void>(), span.address());
        // SAFETY: writes as many bytes as `into` has. `into` is borrowed until this function
        // returns, which it does only after the stream is done, or is lost and does nothing more.
        let result = unsafe { (api.copy_to_host)(target, address, into.len(), self.handle) };
        let copied = check(CALL, result);
        self.synchronize().and(copied)
    }

    /// Copies host memory to `span`, of its length, behind the work so far, and waits for it.
    pub(crate) fn copy_from_host(
        &self,
        from: &[u8],
        span: DeviceSpan<'_>,
    ) -> Result<(), DriverError> {
        const CALL: &str = "cuMemcpyHtoDAsync";
        if span.bytes() != from.len() {
            return Err(DriverError::invalid(CALL));
        }
        let api = self.context.bind()?;
        let (source, address) = (from.as_ptr().cast::<c_void>(), span.address());
        // SAFETY: reads as many bytes as `from` has. `from` is borrowed until this function
        // returns, which it does only after the stream is done, or is lost and does nothing more.
        let result = unsafe { (api.copy_from_host)(address, source, from.len(), self.handle) };
        let copied = check(CALL, result);
        self.synchronize().and(copied)
    }

    /// Copies `span` to pinned memory of its length. Does not wait: whoever reads that will.
    pub(crate) fn copy_to_pinned(
        &self,
        span: DeviceSpan<'_>,
        into: PinnedRange<'_>,
    ) -> Result<(), DriverError> {
        const CALL: &str = "cuMemcpyDtoHAsync";
        let api = self.context.bind()?;
        into.enqueue(CALL, self, span.bytes(), |target| {
            // SAFETY: writes as many bytes as there are at `target`. A `PinnedRange` is exclusive,
            // and `enqueue` remembers this copy for its memory's owner, who waits for it before
            // anybody sees these bytes or they are freed.
            let result =
                unsafe { (api.copy_to_host)(target, span.address(), span.bytes(), self.handle) };
            check(CALL, result)
        })
    }

    /// Copies pinned memory to `span`, of its length. Does not wait: whoever writes that will.
    pub(crate) fn copy_from_pinned(
        &self,
        from: PinnedRange<'_>,
        span: DeviceSpan<'_>,
    ) -> Result<(), DriverError> {
        const CALL: &str = "cuMemcpyHtoDAsync";
        let api = self.context.bind()?;
        from.enqueue(CALL, self, span.bytes(), |source| {
            // SAFETY: reads as many bytes as there are at `source`. A `PinnedRange` is exclusive,
            // and `enqueue` remembers this copy for its memory's owner, who waits for it before
            // anybody changes these bytes or they are freed.
            let result =
                unsafe { (api.copy_from_host)(span.address(), source, span.bytes(), self.handle) };
            check(CALL, result)
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(api) = self.context.bind() {
            // SAFETY: created once and destroyed once.
            let _ = unsafe { (api.stream_destroy)(self.handle) };
        }
    }
}

/// A `CUevent`, destroyed when dropped.
#[derive(Debug)]
pub(crate) struct Event {
    context: Arc<Context>,
    handle: sys::CUevent,
}

// SAFETY: the driver locks its events; the pointer is only a name for one.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// One without a time, which costs the device less.
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, DriverError> {
        Self::create(context, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// One that remembers when the device passed it.
    pub(crate) fn timed(context: &Arc<Context>) -> Result<Self, DriverError> {
        Self::create(context, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn create(context: &Arc<Context>, flags: sys::CUevent_flags) -> Result<Self, DriverError> {
        let api = context.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one pointer, to which `handle` has room.
        let result = unsafe { (api.event_create)(&raw mut handle, flags as u32) };
        check("cuEventCreate", result)?;
        Ok(Self { context: Arc::clone(context), handle })
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Whether the device has passed it; so it has if it was never recorded.
    pub(crate) fn has_passed(&self) -> Result<bool, DriverError> {
        let api = self.context.bind()?;
        // SAFETY: the event is live.
        done("cuEventQuery", unsafe { (api.event_query)(self.handle) })
    }

    /// Waits until the device has passed it.
    pub(crate) fn synchronize(&self) -> Result<(), DriverError> {
        let api = self.context.bind()?;
        // SAFETY: the event is live.
        check("cuEventSynchronize", unsafe { (api.event_synchronize)(self.handle) })
    }

    /// Milliseconds from `earlier` to this one. Both must be timed, and passed.
    pub(crate) fn milliseconds_since(&self, earlier: &Self) -> Result<f32, DriverError> {
        let api = self.context.bind()?;
        let mut milliseconds = 0.0;
        // SAFETY: both events are live; writes one number, to which `milliseconds` has room. The
        // driver refuses events without a time, or not passed yet.
        let result =
            unsafe { (api.event_elapsed)(&raw mut milliseconds, earlier.handle, self.handle) };
        check("cuEventElapsedTime", result)?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(api) = self.context.bind() {
            // SAFETY: created once and destroyed once; the driver keeps what waits for it.
            let _ = unsafe { (api.event_destroy)(self.handle) };
        }
    }
}
