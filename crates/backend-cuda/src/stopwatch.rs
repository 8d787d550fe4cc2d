//! Timing what is given to a stream, by the device's clock.
//!
//! The choice behind it: the device begins when all of it is enqueued, so that the time is the
//! device's and not the host's.

use std::time::Duration;

use vecmill_memory::SourceError;

use crate::device::Device;
use crate::stream::{CudaEvent, CudaStream, HeldStream};

/// Running from [`start`](Self::start) to [`stop`](Self::stop); what the stream is given in between
/// waits until then.
#[derive(Debug)]
pub(crate) struct Stopwatch<'a> {
    stream: &'a CudaStream,
    held: HeldStream,
    begin: CudaEvent,
    end: CudaEvent,
}

impl<'a> Stopwatch<'a> {
    pub(crate) fn start(device: &Device, stream: &'a CudaStream) -> Result<Self, SourceError> {
        let (mut begin, end) = (device.timed_event()?, device.timed_event()?);
        let held = stream.hold()?;
        stream.record(&mut begin)?;
        Ok(Self { stream, held, begin, end })
    }

    /// Lets the device begin, waits for it and returns its time.
    pub(crate) fn stop(self) -> Result<Duration, SourceError> {
        let Self { stream, held, begin, mut end } = self;
        stream.record(&mut end)?;
        drop(held);
        end.synchronize()?;
        end.time_since(&begin)
    }
}
