//! Timing what is given to a stream, by the device's clock.
//!
//! - [`Stopwatch`], and [`each`] and [`lasting`], which time repeated work with it.
//!
//! The choice behind it: the device begins when all of it is enqueued, so that the time is the
//! device's and not the host's. Work that takes long is timed when it has gone on for a while: power
//! then limits the clocks, by a quarter on an H200, and not all kernels need as much of it.

use std::time::Duration;

use vecmill_memory::SourceError;

use crate::gpu::Gpu;
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

/// Runs between two looks at the clock.
const REPEATS: u32 = 8;
/// Of so many looks the shortest time counts.
const ROUNDS: usize = 3;
/// What takes longer than this is long, and goes on for as long as clocks take to follow power.
const LONG: Duration = Duration::from_micros(50);
const SETTLED: Duration = Duration::from_millis(40);

/// The time of one of several runs of `work`, which gives something to the stream.
pub(crate) fn each<E>(
    device: &Gpu,
    stream: &CudaStream,
    error: impl Fn(SourceError) -> E,
    mut work: impl FnMut() -> Result<(), E>,
) -> Result<Duration, E> {
    let stopwatch = Stopwatch::start(device, stream).map_err(&error)?;
    for _ in 0..REPEATS {
        work()?;
    }
    Ok(stopwatch.stop().map_err(error)? / REPEATS)
}

/// The same where it goes on and on; the first run, which may compile and choose, does not count.
pub(crate) fn lasting<E>(
    device: &Gpu,
    stream: &CudaStream,
    error: impl Fn(SourceError) -> E,
    mut work: impl FnMut() -> Result<(), E>,
) -> Result<Duration, E> {
    work()?;
    let mut rounds = Vec::new();
    let mut all = Duration::ZERO;
    while rounds.len() < ROUNDS || rounds.last() > Some(&LONG) && all < SETTLED {
        let round = each(device, stream, &error, &mut work)?;
        all += round * REPEATS;
        rounds.push(round);
    }
    Ok(rounds.iter().rev().take(ROUNDS).min().copied().unwrap_or(all))
}

impl<'a> Stopwatch<'a> {
    pub(crate) fn start(device: &Gpu, stream: &'a CudaStream) -> Result<Self, SourceError> {
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
