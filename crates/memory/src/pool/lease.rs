//! The right to a slab until its work is done.

use std::fmt;

use super::Shared;
use super::slot::Slab;
use super::state::{State, Status};
use crate::budget::GRANULE;
use crate::source::{Source, SourceError};

/// The right to one slab. Dropping it returns the slab to the pool, also while unwinding.
///
/// On a device that works while the host goes on, a lease may be returned as soon as its last work
/// is in the stream: [`record`](Self::record) marks that point (dropping does it otherwise), and
/// whoever gets the slab next has its stream wait for it.
pub struct Lease<'a, S: Source> {
    pool: &'a Shared<S>,
    slot: usize,
    state: State,
    slab: Option<Box<Slab<S>>>, // taken only when it ends
    planned: usize,
    recorded: bool,
}

impl<'a, S: Source> Lease<'a, S> {
    pub(super) fn new(
        pool: &'a Shared<S>,
        slot: usize,
        state: State,
        slab: Box<Slab<S>>,
        planned: usize,
    ) -> Self {
        Self { pool, slot, state, slab: Some(slab), planned, recorded: false }
    }

    fn slab(&self) -> &Slab<S> {
        let Some(slab) = &self.slab else { unreachable!("the slab leaves only at the end") };
        slab
    }

    /// The slab's memory.
    pub fn block(&self) -> &S::Block {
        &self.slab().block
    }

    /// The slab's memory, for writing.
    pub fn block_mut(&mut self) -> &mut S::Block {
        let Some(slab) = &mut self.slab else { unreachable!("the slab leaves only at the end") };
        &mut slab.block
    }

    /// The slab's size, at least what was asked for.
    pub fn bytes(&self) -> usize {
        self.state.granules * GRANULE
    }

    /// What was asked for: the plan's peak.
    pub fn planned_bytes(&self) -> usize {
        self.planned
    }

    /// Checks that the work stays inside what was planned: `end` is the furthest byte it uses.
    /// An overrun is counted, and stops debug builds.
    ///
    /// # Panics
    /// In debug builds, when the plan was wrong.
    pub fn check_use(&self, end: usize) {
        if end > self.planned {
            self.pool.counts.overrun();
            debug_assert!(end <= self.planned, "{end} bytes used of {} planned", self.planned);
        }
    }

    /// Marks the end of this lease's work: all that its stream has been given so far. The event
    /// tells when that is done.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn record(&mut self) -> Result<&S::Event, SourceError> {
        let Some(slab) = &mut self.slab else { unreachable!("the slab leaves only at the end") };
        self.recorded = false; // an event that fails to be recorded has forgotten what it marked
        if let Some((stream, _)) = &slab.stream {
            self.pool.source.record(&mut slab.event, stream)?;
        }
        self.recorded = true;
        Ok(&slab.event)
    }

    #[inline]
    fn finish(&mut self, mut slab: Box<Slab<S>>) {
        let mut status = Status::Idle;
        if !self.recorded
            && let Some((stream, _)) = &slab.stream
            && let Err(error) = self.pool.source.record(&mut slab.event, stream)
        {
            // Nobody can tell when the device is done with it.
            self.pool.counts.failed(&error);
            status = Status::Quarantined;
        }
        if cfg!(debug_assertions) {
            self.pool.source.poison(&mut slab.block);
        }
        let slot = &self.pool.slots[self.slot];
        slot.tally.end(self.pool.source.now());
        slot.put(slab);
        slot.word.publish(State { status, ..self.state });
        self.pool.waiting.wake();
    }
}

impl<S: Source> Drop for Lease<'_, S> {
    fn drop(&mut self) {
        if let Some(slab) = self.slab.take() {
            self.finish(slab);
        }
    }
}

impl<S: Source> fmt::Debug for Lease<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("slot", &self.slot)
            .field("bytes", &self.bytes())
            .field("planned", &self.planned)
            .finish_non_exhaustive()
    }
}
