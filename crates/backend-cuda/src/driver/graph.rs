//! Work that is captured once and launched again and again, for the price of one launch.

use std::sync::Arc;

use cudarc::driver::sys;

use super::{Context, Stream, check};
use crate::error::DriverError;

/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`: other threads may go on calling the driver.
const THREAD_LOCAL: u32 = 1;

/// Captured work, ready to launch; destroyed when dropped, after which launches still finish.
#[derive(Debug)]
pub(crate) struct Graph {
    context: Arc<Context>,
    handle: sys::CUgraphExec,
}

// SAFETY: the pointer is only a name for what the driver has; launching takes `&mut self`, because
// the driver wants no two threads in one graph.
unsafe impl Send for Graph {}

impl Stream {
    /// Captures what `work` gives to this stream, instead of running it. An error of `work` comes
    /// out as it is, and nothing is left captured.
    pub(crate) fn capture<E: From<DriverError>>(
        &self,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<Graph, E> {
        let api = self.context().bind()?;
        // SAFETY: the stream is live.
        let result = unsafe { (api.capture_begin)(self.handle(), THREAD_LOCAL) };
        check("cuStreamBeginCapture", result)?;
        let worked = work();
        let captured = self.end_capture();
        worked?;
        Ok(Graph::new(self.context(), &captured?)?)
    }

    fn end_capture(&self) -> Result<Template, DriverError> {
        let api = self.context().bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the stream is live; writes one pointer, to which `handle` has room.
        let result = unsafe { (api.capture_end)(self.handle(), &raw mut handle) };
        let template = Template { context: Arc::clone(self.context()), handle };
        check("cuStreamEndCapture", result).map(|()| template)
    }

    /// Runs a graph behind the work so far.
    pub(crate) fn launch(&self, graph: &mut Graph) -> Result<(), DriverError> {
        let api = self.context().bind()?;
        // SAFETY: graph and stream are live. Its work touches device memory only.
        let result = unsafe { (api.graph_launch)(graph.handle, self.handle()) };
        check("cuGraphLaunch", result)
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

impl Graph {
    fn new(context: &Arc<Context>, template: &Template) -> Result<Self, DriverError> {
        let api = context.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one pointer, to which `handle` has room; the template is live.
        let result = unsafe { (api.graph_instantiate)(&raw mut handle, template.handle, 0) };
        check("cuGraphInstantiate", result)?;
        Ok(Self { context: Arc::clone(context), handle })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(api) = self.context.bind() {
            // SAFETY: instantiated once, destroyed once; the driver keeps what still runs.
            let _ = unsafe { (api.graph_exec_destroy)(self.handle) };
        }
    }
}
