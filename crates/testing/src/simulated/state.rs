//! What the device's handles share: how much memory is taken, and what each call does to it.
//!
//! An operation is a list of driver calls, one of each kind however large the memory: a block that
//! has grown counts as one piece, where a real source would give back several. When a call fails,
//! those before it are undone in reverse. What undoes is counted and takes time like any call but
//! is not made to fail: the contract of `Source` has the block as it was, and leaves nothing to
//! report a second failure with.

use std::ops::Range;

use super::GRANULARITY;
use super::call::{ByCall, Costs, DriverCall};
use super::clock::Clock;
use super::faults::{Fault, Faults};
use super::judge::Judge;
use vecmill_memory::{Cause, SourceError};

/// What errors call the device.
pub(super) const NAME: &str = "simulated device";

/// The first block's address: not 0, and easy to spot.
const FIRST_ADDRESS: u64 = 1 << 40;

/// The device.
#[derive(Debug)]
pub(super) struct State {
    pub(super) clock: Clock,
    pub(super) judge: Judge,
    pub(super) costs: Costs,
    pub(super) in_place: bool,
    faults: Faults,
    total: usize,
    taken: usize,
    neighbour: usize,
    next_address: u64,
    made: ByCall<u64>,
    succeeded: ByCall<u64>,
}

impl State {
    pub(super) fn new(total: usize) -> Self {
        Self {
            clock: Clock::default(),
            judge: Judge::default(),
            costs: Costs::measured(),
            in_place: true,
            faults: Faults::default(),
            total,
            taken: 0,
            neighbour: 0,
            next_address: FIRST_ADDRESS,
            made: ByCall::default(),
            succeeded: ByCall::default(),
        }
    }

    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    pub(super) fn available(&self) -> usize {
        self.total.saturating_sub(self.taken).saturating_sub(self.neighbour)
    }

    pub(super) fn neighbour_takes(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.available();
        if fits {
            self.neighbour += bytes;
        }
        fits
    }

    pub(super) fn neighbour_gives(&mut self, bytes: usize) {
        self.neighbour = self.neighbour.saturating_sub(bytes);
    }

    pub(super) fn inject(&mut self, fault: Fault) {
        self.faults.inject(fault);
        self.notice_loss();
    }

    pub(super) fn clear_faults(&mut self) {
        self.faults.clear();
    }

    pub(super) fn revive(&mut self) {
        self.faults.revive();
    }

    /// A lost device does nothing more.
    fn notice_loss(&mut self) {
        if self.faults.is_lost() {
            self.clock.empty_queues();
            self.judge.forget_work();
        }
    }

    pub(super) fn event_delay(&self) -> u64 {
        self.faults.delay()
    }

    /// All calls made, failed ones too.
    pub(super) fn call_count(&self) -> u64 {
        DriverCall::ALL.into_iter().map(|call| self.made.get(call)).sum()
    }

    /// Calls about memory that succeeded, by kind.
    pub(super) fn memory_calls(&self) -> Vec<(&'static str, u64)> {
        let of_memory = |call: &DriverCall| call.is_of_memory(self.in_place);
        let calls = DriverCall::ALL.into_iter().filter(of_memory);
        calls.map(|call| (call.name(), self.succeeded.get(call))).collect()
    }

    /// Makes one call: it takes its time, then it fails or has its effect on what is taken.
    pub(super) fn call(&mut self, call: DriverCall, bytes: usize) -> Result<(), SourceError> {
        self.spend(call, bytes);
        let error = |cause, reason: &str| SourceError::new(NAME, call.name(), bytes, cause, reason);
        if let Some(cause) = self.faults.strike(call) {
            self.notice_loss();
            let reason = if cause == Cause::Lost { "the device is lost" } else { "injected fault" };
            return Err(error(cause, reason));
        }
        let takes = matches!(call, DriverCall::Create | DriverCall::Allocate);
        if takes && bytes > self.available() {
            let reason = format!("{} bytes are left", self.available());
            return Err(error(Cause::Exhausted, &reason));
        }
        self.succeed(call, bytes);
        Ok(())
    }

    fn spend(&mut self, call: DriverCall, bytes: usize) {
        *self.made.get_mut(call) += 1;
        let cost = self.costs.of(call, bytes);
        if call.is_of_events() {
            self.clock.spend_aside(cost);
        } else {
            self.clock.spend(cost);
        }
    }

    fn succeed(&mut self, call: DriverCall, bytes: usize) {
        *self.succeeded.get_mut(call) += 1;
        match call {
            DriverCall::Create | DriverCall::Allocate => self.taken += bytes,
            DriverCall::Release | DriverCall::Free => self.taken -= bytes,
            _ => {}
        }
    }

    /// Makes all `calls`, or none.
    fn transact(&mut self, calls: &[DriverCall], bytes: usize) -> Result<(), SourceError> {
        for (done, call) in calls.iter().enumerate() {
            if let Err(error) = self.call(*call, bytes) {
                for undo in calls[..done].iter().rev().flat_map(|call| call.undone_by()) {
                    self.spend(*undo, bytes);
                    self.succeed(*undo, bytes);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes a block and says its address.
    pub(super) fn allocate(&mut self, bytes: usize) -> Result<u64, SourceError> {
        use DriverCall::{AddressReserve, Allocate, Create, Map, SetAccess};
        check_size("allocate", bytes)?;
        // A block that can grow may become as large as the device.
        let reserved = if self.in_place { self.total.max(bytes) } else { bytes };
        let reserved = reserved.next_multiple_of(GRANULARITY) as u64;
        let address = self.next_address;
        let Some(next_address) = address.checked_add(reserved) else {
            let reason = "all addresses have been used";
            return Err(SourceError::new(NAME, "allocate", bytes, Cause::Exhausted, reason));
        };
        match (self.in_place, bytes) {
            (false, _) => self.transact(&[Allocate], bytes)?,
            (true, 0) => self.transact(&[AddressReserve], bytes)?,
            (true, _) => self.transact(&[AddressReserve, Create, Map, SetAccess], bytes)?,
        }
        self.next_address = next_address;
        self.judge.taken(address, bytes, reserved);
        Ok(address)
    }

    /// Makes the block at `address` `bytes` large.
    pub(super) fn resize(&mut self, address: u64, bytes: usize) -> Result<(), SourceError> {
        use DriverCall::{Create, Map, Release, SetAccess, Unmap};
        let error = |cause, reason| Err(SourceError::new(NAME, "resize", bytes, cause, reason));
        if !self.in_place {
            return error(Cause::Unsupported, "it can't");
        }
        check_size("resize", bytes)?;
        let Some(present) = self.judge.block_bytes(address) else {
            return error(Cause::Failed, "there is no such block");
        };
        if bytes > present {
            self.transact(&[Create, Map, SetAccess], bytes - present)?;
        } else if bytes < present {
            self.judge.shrinks(address, bytes, self.clock.now());
            self.transact(&[Unmap, Release], present - bytes)?;
        }
        self.judge.resized(address, bytes);
        Ok(())
    }

    /// Gives the block at `address` back. A call that fails is reported, and the memory is back
    /// all the same: that a block is gone either way is the contract.
    pub(super) fn give_back(&mut self, address: u64) -> Result<(), SourceError> {
        use DriverCall::{AddressFree, Free, Release, Unmap};
        let Some(bytes) = self.judge.released(address, self.clock.now()) else {
            let reason = "there is no such block";
            return Err(SourceError::new(NAME, "release", 0, Cause::Failed, reason));
        };
        let calls: &[DriverCall] = match (self.in_place, bytes) {
            (false, _) => &[Free],
            (true, 0) => &[AddressFree],
            (true, _) => &[Unmap, Release, AddressFree],
        };
        let mut outcome = Ok(());
        for call in calls {
            if let Err(error) = self.call(*call, bytes) {
                if matches!(call, Release | Free) {
                    self.taken -= bytes;
                }
                outcome = outcome.and(Err(error));
            }
        }
        outcome
    }

    /// Queues work that uses what `uses` says to the judge. A lost device takes none.
    pub(super) fn launch(
        &mut self,
        stream: usize,
        duration: u64,
        uses: impl FnOnce(&mut Judge, Range<u64>, u64),
    ) -> Range<u64> {
        let now = self.clock.now();
        if self.faults.is_lost() {
            return now..now;
        }
        let time = self.clock.enqueue(stream, duration);
        uses(&mut self.judge, time.clone(), now);
        time
    }
}

/// Drivers refuse sizes between pages.
fn check_size(operation: &'static str, bytes: usize) -> Result<(), SourceError> {
    if bytes.is_multiple_of(GRANULARITY) {
        return Ok(());
    }
    let reason = format!("sizes are multiples of {GRANULARITY}");
    Err(SourceError::new(NAME, operation, bytes, Cause::Failed, reason))
}
