//! One GPU, ready for work.

use std::sync::Arc;

use vecmill_memory::SourceError;

use crate::driver::{self, Context};
use crate::error::Unavailable;
use crate::pinned::PinnedBuffer;
use crate::probe::GpuInfo;
use crate::stream::{CudaEvent, CudaStream};

/// A GPU with its context. Clones are the same device; when the last is gone, with all streams and
/// memory made from it, the context is given back.
///
/// All methods may be called from any thread.
#[derive(Debug, Clone)]
pub struct Gpu(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    context: Arc<Context>,
    info: GpuInfo,
}

/// A device's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// What nobody uses now, other processes included.
    pub free: usize,
    /// What there is.
    pub total: usize,
}

impl Gpu {
    /// The GPU of that number. The first opening in a process takes some tenths of a second and
    /// some hundred megabytes of the device's memory.
    ///
    /// # Errors
    /// [`Unavailable`] when there is no driver or no such device, or no context can be made.
    pub fn open(ordinal: usize) -> Result<Self, Unavailable> {
        let mut info = driver::device_info(ordinal)?;
        let context = Arc::new(Context::retain(ordinal)?);
        info.free_memory = context.memory_info().ok().map(|(free, _)| free);
        Ok(Self(Arc::new(Inner { context, info })))
    }

    /// A part of the GPU of that number, with memory and kernels of its own: at least
    /// `multiprocessors` of them, which no other part of this process has. Memory bandwidth, copy
    /// engines and clocks are shared. Needs a driver that supports CUDA 12.5.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Unavailable::NoPart`] when other parts leave too little.
    pub fn open_part(ordinal: usize, multiprocessors: u32) -> Result<Self, Unavailable> {
        let mut info = driver::device_info(ordinal)?;
        // What a generation keeps together, as the driver's documentation says.
        let least = if info.compute_capability.0 >= 9 { 8 } else { 2 };
        let context = Context::retain(ordinal)?.part(multiprocessors, least)?;
        info.multiprocessors = context.multiprocessors().unwrap_or(info.multiprocessors);
        info.free_memory = context.memory_info().ok().map(|(free, _)| free);
        Ok(Self(Arc::new(Inner { context: Arc::new(context), info })))
    }

    /// Its name in errors and metrics, for example `cuda:0`.
    pub fn name(&self) -> &str {
        self.0.context.name()
    }

    /// What the driver said about it when it was opened.
    pub fn info(&self) -> &GpuInfo {
        &self.0.info
    }

    /// Its memory now.
    ///
    /// # Errors
    /// [`SourceError`] when the device is lost.
    pub fn memory_info(&self) -> Result<MemoryInfo, SourceError> {
        let (free, total) = self.context().memory_info().map_err(|e| e.of(self.name(), 0))?;
        Ok(MemoryInfo { free, total })
    }

    /// A new stream, which waits for no other.
    ///
    /// # Errors
    /// [`SourceError`] when the device has no more, or is lost.
    pub fn stream(&self) -> Result<CudaStream, SourceError> {
        CudaStream::new(self.context())
    }

    /// A new event, which counts as passed until it is recorded.
    ///
    /// # Errors
    /// [`SourceError`] when the device has no more, or is lost.
    pub fn event(&self) -> Result<CudaEvent, SourceError> {
        CudaEvent::new(self.context())
    }

    /// A new event that remembers when the device passed it, to measure with.
    ///
    /// # Errors
    /// [`SourceError`] when the device has no more, or is lost.
    pub fn timed_event(&self) -> Result<CudaEvent, SourceError> {
        CudaEvent::timed(self.context())
    }

    /// `bytes` bytes of pinned host memory, all zero, for copies on this device's streams.
    ///
    /// # Errors
    /// [`SourceError`] when `bytes` is 0 or the host has no more, or the device is lost.
    pub fn pinned(&self, bytes: usize) -> Result<PinnedBuffer, SourceError> {
        PinnedBuffer::new(self.context(), bytes)
    }

    /// Waits until all work of this process on the device is done.
    ///
    /// # Errors
    /// [`SourceError`] when the device is lost.
    pub fn synchronize(&self) -> Result<(), SourceError> {
        self.context().synchronize().map_err(|e| e.of(self.name(), 0))
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.0.context
    }
}
