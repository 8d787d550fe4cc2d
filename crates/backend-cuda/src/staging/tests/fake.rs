//! A buffer and a device that exist only as bytes, where a copy ends when a test, or a wait, says
//! so.
//!
//! [`World`] panics on what would be a race with a real device: writing or giving back a part whose
//! copy is under way, reading one before its copy is done.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::driver::error::{DriverError, code};
use crate::staging::queue::{Part, Parts};
use crate::staging::ring::{Claim, Ring};

pub(super) const LOST: DriverError =
    DriverError { call: "cuEventSynchronize", code: code::LOST[0] };

#[derive(Debug, Clone)]
pub(super) struct Copy {
    pub(super) number: u64,
    pub(super) host: Range<usize>,
    pub(super) device: Range<usize>,
    pub(super) out: bool,
}

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) host: Vec<u8>,
    pub(super) device: Vec<u8>,
    /// Copies under way on each stream, oldest first.
    pub(super) streams: [VecDeque<Copy>; 2],
    pub(super) begun: u64,
    pub(super) lost: bool,
}

impl World {
    /// Does the oldest copy of `stream`, if there is one.
    pub(super) fn step(&mut self, stream: usize) -> Option<u64> {
        let Copy { number, host, device, out } = self.streams[stream].pop_front()?;
        if out {
            self.host[host].copy_from_slice(&self.device[device]);
        } else {
            self.device[device].copy_from_slice(&self.host[host]);
        }
        Some(number)
    }

    /// Does all copies.
    pub(super) fn run(&mut self) {
        for stream in 0..2 {
            while self.step(stream).is_some() {}
        }
    }

    /// Does all copies of `stream`, before one that the host waits for.
    pub(super) fn now(&mut self, stream: usize) -> Result<&mut Self, DriverError> {
        if self.lost {
            return Err(LOST);
        }
        while self.step(stream).is_some() {}
        Ok(self)
    }

    fn under_way(&self, number: Option<u64>) -> bool {
        self.streams.iter().flatten().any(|copy| Some(copy.number) == number)
    }

    /// Does the copy `number` and what comes before it on its stream.
    fn wait(&mut self, number: Option<u64>) -> Result<(), DriverError> {
        if self.lost {
            return Err(LOST);
        }
        let is_on = |stream: &VecDeque<Copy>| stream.iter().any(|copy| Some(copy.number) == number);
        if let Some(stream) = self.streams.iter().position(is_on) {
            while self.step(stream) != number {}
        }
        Ok(())
    }

    fn assert_untouched(&self, range: &Range<usize>) {
        for copy in self.streams.iter().flatten() {
            let apart = copy.host.end <= range.start || range.end <= copy.host.start;
            assert!(apart, "{range:?} is used by {copy:?}");
        }
    }
}

pub(super) type Shared = Arc<Mutex<World>>;

#[derive(Debug)]
pub(super) struct FakeParts {
    pub(super) world: Shared,
    pub(super) ring: Ring,
}

#[derive(Debug)]
pub(super) struct FakePart {
    pub(super) world: Shared,
    claim: Claim,
    pub(super) copy: Option<u64>,
}

impl FakePart {
    pub(super) fn at(&self) -> Range<usize> {
        self.claim.offset()..self.claim.offset() + self.claim.bytes()
    }
}

impl Parts for FakeParts {
    type Part = FakePart;

    fn capacity(&self) -> usize {
        self.ring.statistics().capacity_bytes
    }

    fn claim(&mut self, bytes: usize) -> Result<Option<FakePart>, DriverError> {
        let claim = self.ring.claim(bytes);
        Ok(claim.map(|claim| FakePart { world: Arc::clone(&self.world), claim, copy: None }))
    }

    fn release(&mut self, part: FakePart) -> Result<(), DriverError> {
        self.world.lock().unwrap().assert_untouched(&part.at());
        self.ring.release(part.claim).unwrap();
        Ok(())
    }
}

impl Part for FakePart {
    fn bytes(&self) -> usize {
        self.claim.bytes()
    }

    fn write(&mut self, from: &[u8]) -> Result<(), DriverError> {
        let mut world = self.world.lock().unwrap();
        world.assert_untouched(&self.at());
        world.host[self.at()].copy_from_slice(from);
        Ok(())
    }

    fn read(&self, into: &mut [u8]) -> Result<(), DriverError> {
        let mut world = self.world.lock().unwrap();
        world.wait(self.copy)?;
        world.assert_untouched(&self.at());
        into.copy_from_slice(&world.host[self.at()]);
        Ok(())
    }

    fn is_done(&mut self) -> Result<bool, DriverError> {
        let world = self.world.lock().unwrap();
        if world.lost { Err(LOST) } else { Ok(!world.under_way(self.copy)) }
    }

    fn finish(&mut self) -> Result<(), DriverError> {
        self.world.lock().unwrap().wait(self.copy)
    }
}
