//! Work that is captured once and launched again and again, for the price of one launch.

use std::sync::Arc;

use cudarc::driver::sys;

use super::DriverError;
use super::{Context, Stream, check};

/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`: other threads may go on calling the driver.
const THREAD_LOCAL: u32 = 1;

/// Captured work, ready to launch; destroyed when dropped, after which launches still finish.
#[derive(Debug)]
pub(crate) struct CapturedGraph {
    context: Arc<Context>,
    handle: sys::CUgraphExec,
}

// SAFETY: the pointer is only a name for what the driver has; launching takes `&mut self`, because
// the driver wants no two threads in one graph.
unsafe impl Send for CapturedGraph {}

impl Stream {
    /// Captures what `work` gives to this stream, instead of running it. An error of `work` comes
    /// out as it is, and nothing is left captured. Meanwhile this thread may call nothing that
    /// waits or allocates, or the capture fails; no other thread may use the stream.
    pub(crate) fn capture<E: From<DriverError>>(
        &self,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<CapturedGraph, E> {
        let capture = Capture::begin(self)?;
        work()?;
        Ok(CapturedGraph::new(self.context(), &capture.end()?)?)
    }

    /// Runs a graph behind the work so far.
    pub(crate) fn launch(&self, graph: &mut CapturedGraph) -> Result<(), DriverError> {
        let api = self.context().bind()?;
        // SAFETY: graph and stream are live. Its kernels are loaded as long as the context, and
        // touch device memory only.
        let result = unsafe { (api.graph_launch)(graph.handle, self.handle()) };
        check("cuGraphLaunch", result)
    }
}

/// A capture under way. Dropped, also by a panic, it ends, and what was captured is gone.
struct Capture<'stream> {
    stream: &'stream Stream,
    ended: bool,
}

impl<'stream> Capture<'stream> {
    fn begin(stream: &'stream Stream) -> Result<Self, DriverError> {
        let api = stream.context().bind()?;
        // SAFETY: the stream is live.
        let result = unsafe { (api.capture_begin)(stream.handle(), THREAD_LOCAL) };
        check("cuStreamBeginCapture", result)?;
        Ok(Self { stream, ended: false })
    }

    fn end(mut self) -> Result<Template, DriverError> {
        self.end_once()
    }

    fn end_once(&mut self) -> Result<Template, DriverError> {
        self.ended = true;
        let context = self.stream.context();
        let api = context.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the stream is live; writes one pointer, to which `handle` has room.
        let result = unsafe { (api.capture_end)(self.stream.handle(), &raw mut handle) };
        let template = Template { context: Arc::clone(context), handle };
        check("cuStreamEndCapture", result).map(|()| template)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // Whatever kept the capture from its end has been reported.
            let _ = self.end_once();
        }
    }
}

/// A `CUgraph`: a description, from which what runs is made.
struct Template {
    context: Arc<Context>,
    handle: sys::CUgraph,
}

impl Drop for Template {
    fn drop(&mut self) {
        if let (false, Ok(api)) = (self.handle.is_null(), self.context.bind()) {
            // SAFETY: from a capture that ended, destroyed once.
            let _ = unsafe { (api.graph_destroy)(self.handle) };
        }
    }
}

impl CapturedGraph {
    fn new(context: &Arc<Context>, template: &Template) -> Result<Self, DriverError> {
        let api = context.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one pointer, to which `handle` has room; the template is live.
        let result = unsafe { (api.graph_instantiate)(&raw mut handle, template.handle, 0) };
        check("cuGraphInstantiate", result)?;
        Ok(Self { context: Arc::clone(context), handle })
    }
}

impl Drop for CapturedGraph {
    fn drop(&mut self) {
        if let Ok(api) = self.context.bind() {
            // SAFETY: instantiated once, destroyed once; the driver keeps what still runs.
            let _ = unsafe { (api.graph_exec_destroy)(self.handle) };
        }
    }
}
