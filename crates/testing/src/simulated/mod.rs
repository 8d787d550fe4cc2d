//! A device that exists only as numbers: a GPU for tests, for CI and for experiments.
//!
//! - [`SimulatedDevice`] is the [`Source`], with [`SimulatedBlock`], [`SimulatedStream`] and
//!   [`SimulatedEvent`]. `state` has the memory and the calls that take and give it, [`DriverCall`]
//!   the kinds of call and what each costs.
//! - `clock` has the time, which moves only when told to.
//! - [`Fault`] makes calls fail, events late and the device disappear.
//! - [`Violation`] is what the judge writes down: memory that was unmapped under queued work, used
//!   by two streams at once, used where there is none, given back twice.
//!
//! The choice behind it: the device never stops a program that misuses it, as a real one would not,
//! or not at once. It keeps a list, and a test asserts at its end that the list is empty.

mod call;
mod clock;
mod faults;
mod judge;
mod state;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use call::DriverCall;
pub use faults::Fault;
pub use judge::Violation;

use state::State;
use vecmill_memory::{Source, SourceError};

/// The smallest piece of memory that can be mapped.
const GRANULARITY: usize = 2 << 20;

/// A simulated device. Clones are the same device.
///
/// ```
/// use vecmill_memory::Source;
/// use vecmill_testing::simulated::SimulatedDevice;
///
/// # fn main() -> Result<(), vecmill_memory::SourceError> {
/// let device = SimulatedDevice::new(1 << 30);
/// let stream = device.stream();
/// let block = device.allocate(16 << 20)?;
/// device.launch(&stream, &block, 0..4096, 1_000_000); // a millisecond of work
/// let mut event = device.event()?;
/// device.record(&mut event, &stream)?;
/// assert!(!device.has_passed(&event)?);
///
/// device.advance(1_000_000);
/// assert!(device.has_passed(&event)?);
/// device.release(block)?; // a millisecond earlier, this would have been a violation
/// assert!(device.violations().is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct SimulatedDevice(Arc<Mutex<State>>);

/// Memory of a simulated device: an address range with nothing in it.
pub struct SimulatedBlock {
    device: SimulatedDevice,
    address: u64,
    bytes: usize,
    given_back: bool,
}

/// A queue of work of a simulated device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulatedStream(usize);

/// A point in a simulated stream.
#[derive(Debug)]
pub struct SimulatedEvent {
    /// When it passes.
    at: u64,
}

impl SimulatedBlock {
    /// The first address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl fmt::Debug for SimulatedBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimulatedBlock({:#x}, {} bytes)", self.address, self.bytes)
    }
}

impl Drop for SimulatedBlock {
    fn drop(&mut self) {
        if !self.given_back {
            // Whoever drops a block has nobody to tell.
            let _ = self.device.state().give_back(self.address);
        }
    }
}

impl SimulatedDevice {
    /// A device with `total_bytes` of memory, all of it free, whose blocks resize in place.
    pub fn new(total_bytes: usize) -> Self {
        Self(Arc::new(Mutex::new(State::new(total_bytes))))
    }

    /// Whether blocks resize in place, as mapped memory does (the default), or not at all, as
    /// `cuMemAlloc` has it. To be said before the first block is taken.
    #[must_use]
    pub fn in_place(self, in_place: bool) -> Self {
        self.state().in_place = in_place;
        self
    }

    /// Calls take no time, so that a test sees only the times that it states.
    #[must_use]
    pub fn instant(self) -> Self {
        DriverCall::ALL.into_iter().fold(self, |device, call| device.costing(call, 0, 0))
    }

    /// What `call` costs in nanoseconds: at 2 MiB and, where it grows with size, at 1 GiB. Other
    /// sizes lie on the line through both. The defaults were measured on an H200.
    #[must_use]
    pub fn costing(self, call: DriverCall, smallest: u64, gibibyte: u64) -> Self {
        self.state().costs.set(call, smallest, gibibyte);
        self
    }

    /// A new stream with nothing to do.
    pub fn stream(&self) -> SimulatedStream {
        SimulatedStream(self.state().clock.stream())
    }

    /// Moves the clock by so many nanoseconds.
    pub fn advance(&self, nanoseconds: u64) {
        self.state().clock.advance(nanoseconds);
    }

    /// Queues `duration` nanoseconds of work on `stream` that writes `bytes` of `block`, and says
    /// from when to when it runs: behind all that the stream has to do, and not before now. The
    /// host goes on at once.
    pub fn launch(
        &self,
        stream: &SimulatedStream,
        block: &SimulatedBlock,
        bytes: Range<usize>,
        duration: u64,
    ) -> Range<u64> {
        let used = bytes.start as u64..bytes.end as u64;
        self.state().launch(stream.0, duration, |judge, time, now| {
            judge.work(block.address, used, stream.0, time, now);
        })
    }

    /// Like [`launch`](Self::launch), on bare addresses, as a kernel or a replayed graph has them:
    /// they may be stale.
    pub fn launch_at(
        &self,
        stream: &SimulatedStream,
        addresses: Range<u64>,
        duration: u64,
    ) -> Range<u64> {
        self.state().launch(stream.0, duration, |judge, time, now| {
            judge.work_at(addresses, stream.0, time, now);
        })
    }

    /// Waits for all work of `stream`: moves the clock to when it has finished.
    pub fn synchronize(&self, stream: &SimulatedStream) {
        self.state().clock.synchronize(stream.0);
    }

    /// When `stream` has done all that it was given so far; a moment in the past when it has.
    pub fn stream_time(&self, stream: &SimulatedStream) -> u64 {
        self.state().clock.stream_time(stream.0)
    }

    /// Gives back the block at `address`, as a driver lets a program do that kept the address. The
    /// block's owner will give it back again.
    ///
    /// # Errors
    /// [`SourceError`] when there is no such block, which is a violation too, or when a driver call
    /// fails.
    pub fn release_at(&self, address: u64) -> Result<(), SourceError> {
        self.state().give_back(address)
    }

    /// Another process takes memory, if there is that much.
    pub fn neighbour_takes(&self, bytes: usize) -> bool {
        self.state().neighbour_takes(bytes)
    }

    /// Another process gives memory back, at most what it took.
    pub fn neighbour_gives(&self, bytes: usize) {
        self.state().neighbour_gives(bytes);
    }

    /// Physical memory that this process holds. It is the sum of [`blocks`](Self::blocks) unless
    /// this module leaks.
    pub fn taken_bytes(&self) -> usize {
        self.state().taken()
    }

    /// First address and size of each block, in order of address.
    pub fn blocks(&self) -> Vec<(u64, usize)> {
        self.state().judge.blocks().collect()
    }

    /// Has something go wrong. Faults add up; each is as if it were the only one.
    pub fn inject(&self, fault: Fault) {
        self.state().inject(fault);
    }

    /// Forgets all faults that are still to come. A lost device stays lost.
    pub fn clear_faults(&self) {
        self.state().clear_faults();
    }

    /// Makes a lost device work again. Blocks from before are still there, the work is not.
    pub fn revive(&self) {
        self.state().revive();
    }

    /// Calls made so far that could have failed, those that did and those about events among them:
    /// a test fails each in turn, until its scenario makes fewer calls than that.
    pub fn call_count(&self) -> u64 {
        self.state().call_count()
    }

    /// Time spent in driver calls. Those about memory have moved the clock by as much; those about
    /// events, which threads make side by side, have not.
    pub fn simulated_driver_nanoseconds(&self) -> u64 {
        self.state().clock.in_driver()
    }

    /// What was done wrong so far, earliest first.
    pub fn violations(&self) -> Vec<Violation> {
        self.state().judge.violations().to_vec()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code under the lock calls out: the state is whole even if a thread died.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for SimulatedDevice {
    type Block = SimulatedBlock;
    type Stream = SimulatedStream;
    type Event = SimulatedEvent;

    fn name(&self) -> &str {
        state::NAME
    }

    fn allocate(&self, bytes: usize) -> Result<SimulatedBlock, SourceError> {
        let address = self.state().allocate(bytes)?;
        Ok(SimulatedBlock { device: self.clone(), address, bytes, given_back: false })
    }

    fn resizes_in_place(&self) -> bool {
        self.state().in_place
    }

    fn resize(&self, block: &mut SimulatedBlock, bytes: usize) -> Result<(), SourceError> {
        self.state().resize(block.address, bytes)?;
        block.bytes = bytes;
        Ok(())
    }

    fn release(&self, mut block: SimulatedBlock) -> Result<(), SourceError> {
        block.given_back = true;
        block.device.state().give_back(block.address)
    }

    fn address(&self, block: &SimulatedBlock) -> u64 {
        block.address
    }

    fn event(&self) -> Result<SimulatedEvent, SourceError> {
        self.state().call(DriverCall::Event, 0)?;
        Ok(SimulatedEvent { at: 0 })
    }

    fn record(
        &self,
        event: &mut SimulatedEvent,
        stream: &SimulatedStream,
    ) -> Result<(), SourceError> {
        let mut state = self.state();
        state.call(DriverCall::Record, 0)?;
        let reached = state.clock.stream_time(stream.0).max(state.clock.now());
        event.at = reached.saturating_add(state.event_delay());
        Ok(())
    }

    fn wait(&self, stream: &SimulatedStream, event: &SimulatedEvent) -> Result<(), SourceError> {
        let mut state = self.state();
        state.call(DriverCall::Wait, 0)?;
        state.clock.hold(stream.0, event.at);
        Ok(())
    }

    fn has_passed(&self, event: &SimulatedEvent) -> Result<bool, SourceError> {
        let mut state = self.state();
        state.call(DriverCall::Query, 0)?;
        Ok(event.at <= state.clock.now())
    }

    /// Moves the clock to when the event passes.
    fn wait_on_host(&self, event: &SimulatedEvent) -> Result<(), SourceError> {
        let mut state = self.state();
        state.call(DriverCall::Query, 0)?;
        let left = event.at.saturating_sub(state.clock.now());
        state.clock.advance(left);
        Ok(())
    }

    fn now(&self) -> u64 {
        self.state().clock.now()
    }

    fn available(&self) -> Option<usize> {
        Some(self.state().available())
    }

    fn calls(&self) -> Vec<(&'static str, u64)> {
        self.state().memory_calls()
    }
}
