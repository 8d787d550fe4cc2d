//! A device's memory as sources for the pool.
//!
//! - [`CudaSource`] is what an engine uses: one type, that maps memory where the device can
//!   ([`MappedSource`]) and allocates it plainly where it can't ([`PlainSource`]).
//! - [`StreamOrderedSource`] is the driver's own pool, to measure ours against.
//!
//! None overwrites returned blocks (`Source::poison`): the device may still be working on them.
//!
//! The choice behind it: mapping comes first, because a slab that grows keeps its address and takes
//! only the difference; the driver's other calls must have old and new slab at the same time.

mod mapped;
mod ordered;
mod plain;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use vecmill_memory::{Cause, Source, SourceError};

pub use mapped::{MappedBlock, MappedSource};
pub use ordered::{OrderedBlock, StreamOrderedSource};
pub use plain::{PlainBlock, PlainSource};

use crate::driver::DeviceSpan;
use crate::gpu::Gpu;
use crate::stream::{CudaEvent, CudaStream};

/// The methods of [`Source`] about the device's streams and events, the same for all of its memory.
macro_rules! device_queues {
    () => {
        type Stream = CudaStream;
        type Event = CudaEvent;

        fn name(&self) -> &str {
            self.device().name()
        }

        fn event(&self) -> Result<CudaEvent, SourceError> {
            self.device().event()
        }

        fn record(&self, event: &mut CudaEvent, stream: &CudaStream) -> Result<(), SourceError> {
            stream.record(event)
        }

        fn wait(&self, stream: &CudaStream, event: &CudaEvent) -> Result<(), SourceError> {
            stream.wait(event)
        }

        fn has_passed(&self, event: &CudaEvent) -> Result<bool, SourceError> {
            event.has_passed()
        }

        fn wait_on_host(&self, event: &CudaEvent) -> Result<(), SourceError> {
            event.synchronize()
        }

        fn available(&self) -> Option<usize> {
            self.device().memory_info().ok().map(|memory| memory.free)
        }
    };
}
use device_queues;

/// Calls to the driver by kind, failed ones too.
#[derive(Debug)]
struct Calls<const KINDS: usize> {
    names: [&'static str; KINDS],
    counts: [AtomicU64; KINDS],
}

impl<const KINDS: usize> Calls<KINDS> {
    fn new(names: [&'static str; KINDS]) -> Self {
        Self { names, counts: [const { AtomicU64::new(0) }; KINDS] }
    }

    fn count(&self, kind: usize) {
        self.counts[kind].fetch_add(1, Ordering::Relaxed);
    }

    fn all(&self) -> Vec<(&'static str, u64)> {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        self.names.into_iter().zip(counts).collect()
    }
}

/// The error of a part that is not inside its block.
fn outside(range: &Range<usize>, bytes: usize) -> SourceError {
    let reason = format!("bytes {}..{} of a block of {bytes}", range.start, range.end);
    SourceError::new("a CUDA block", "span", range.len(), Cause::Failed, reason)
}

/// A device's memory, taken in the best way that it supports.
///
/// ```no_run
/// use vecmill_backend_cuda::{CudaSource, Gpu};
/// use vecmill_memory::Source;
///
/// let device = Gpu::open(0)?;
/// let source = CudaSource::new(&device)?;
/// let stream = device.stream()?;
/// let block = source.allocate(2 << 20)?;
/// stream.fill_u32(block.span(0..1024)?, 7)?;
/// stream.synchronize()?;
/// source.release(block)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub enum CudaSource {
    /// Blocks grow and shrink in place.
    Mapped(MappedSource),
    /// Blocks keep their size.
    Plain(PlainSource),
}

/// Memory of a [`CudaSource`].
#[derive(Debug)]
pub enum CudaBlock {
    /// Of [`CudaSource::Mapped`].
    Mapped(MappedBlock),
    /// Of [`CudaSource::Plain`].
    Plain(PlainBlock),
}

impl CudaSource {
    /// The source of `device`: mapped if the device and the driver can, else plain.
    ///
    /// # Errors
    /// [`SourceError`] when the device is lost.
    pub fn new(device: &Gpu) -> Result<Self, SourceError> {
        match MappedSource::new(device) {
            Ok(source) => Ok(Self::Mapped(source)),
            Err(error) if error.cause == Cause::Unsupported => {
                Ok(Self::Plain(PlainSource::new(device)))
            }
            Err(error) => Err(error),
        }
    }

    /// The device whose memory it is.
    pub fn device(&self) -> &Gpu {
        match self {
            Self::Mapped(source) => source.device(),
            Self::Plain(source) => source.device(),
        }
    }

    fn stranger(&self, operation: &'static str, bytes: usize) -> SourceError {
        let reason = "the block is another source's";
        SourceError::new(self.name(), operation, bytes, Cause::Failed, reason)
    }
}

impl CudaBlock {
    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Mapped(block) => block.bytes(),
            Self::Plain(block) => block.bytes(),
        }
    }

    /// A part of it, for streams to work on.
    ///
    /// # Errors
    /// [`SourceError`] when `range` is not inside the block.
    pub fn span(&self, range: Range<usize>) -> Result<DeviceSpan<'_>, SourceError> {
        match self {
            Self::Mapped(block) => block.span(range),
            Self::Plain(block) => block.span(range),
        }
    }
}

impl Source for CudaSource {
    type Block = CudaBlock;

    device_queues!();

    fn allocate(&self, bytes: usize) -> Result<CudaBlock, SourceError> {
        match self {
            Self::Mapped(source) => source.allocate(bytes).map(CudaBlock::Mapped),
            Self::Plain(source) => source.allocate(bytes).map(CudaBlock::Plain),
        }
    }

    fn resizes_in_place(&self) -> bool {
        match self {
            Self::Mapped(source) => source.resizes_in_place(),
            Self::Plain(source) => source.resizes_in_place(),
        }
    }

    fn resize(&self, block: &mut CudaBlock, bytes: usize) -> Result<(), SourceError> {
        match (self, block) {
            (Self::Mapped(source), CudaBlock::Mapped(block)) => source.resize(block, bytes),
            (Self::Plain(source), CudaBlock::Plain(block)) => source.resize(block, bytes),
            _ => Err(self.stranger("resize", bytes)),
        }
    }

    fn release(&self, block: CudaBlock) -> Result<(), SourceError> {
        match (self, block) {
            (Self::Mapped(source), CudaBlock::Mapped(block)) => source.release(block),
            (Self::Plain(source), CudaBlock::Plain(block)) => source.release(block),
            (_, block) => Err(self.stranger("release", block.bytes())),
        }
    }

    fn address(&self, block: &CudaBlock) -> u64 {
        match block {
            CudaBlock::Mapped(block) => block.address(),
            CudaBlock::Plain(block) => block.address(),
        }
    }

    fn calls(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::Mapped(source) => source.calls(),
            Self::Plain(source) => source.calls(),
        }
    }
}
