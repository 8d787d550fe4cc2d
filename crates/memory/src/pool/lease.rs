//! The right to a slab until its work is done.

use std::fmt;

use super::Shared;
use super::error::StaleLease;
use super::fallback::Extra;
use super::slot::Slab;
use super::state::{State, Status};
use crate::LeaseError;
use crate::class::GRANULE;
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

/// Names a lease across threads and callbacks.
///
/// A name is good for one use: a lease that has been returned, or taken up elsewhere, is told from
/// the one that has the same slab now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId {
    slot: usize,
    generation: u32,
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

    /// Its name, by which another thread can [`attach`](crate::Pool::attach) it once detached.
    pub fn id(&self) -> LeaseId {
        LeaseId { slot: self.slot, generation: self.state.generation }
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

    /// Memory beside the slab for what the plan did not foresee: counted as spilled.
    ///
    /// # Errors
    /// As for [`Pool::lease`](crate::Pool::lease).
    pub fn spill(&self, bytes: usize) -> Result<Extra<'a, S>, LeaseError> {
        let stream = self.slab().stream.clone();
        let extra = self.pool.extra(bytes, stream.map(|(stream, _)| stream))?;
        self.pool.counts.spilled();
        Ok(extra)
    }

    /// Parks the lease in the pool, still leased, until its name is attached again.
    pub fn detach(mut self) -> LeaseId {
        let id = self.id();
        if let Some(slab) = self.slab.take() {
            let slot = &self.pool.slots[self.slot];
            slot.put(slab);
            slot.word.publish(State { status: Status::Detached, ..self.state });
        }
        id
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

impl<S: Source> Shared<S> {
    pub(super) fn attach(&self, id: LeaseId) -> Result<Lease<'_, S>, StaleLease> {
        let LeaseId { slot, generation } = id;
        let stale = StaleLease { slot, generation };
        let place = self.slots.get(slot).ok_or(stale)?;
        let seen = place.word.read();
        if seen.status != Status::Detached || seen.generation != generation {
            return Err(stale);
        }
        // Under the next generation: of two who have the name, one gets the slab.
        let state = place.word.lease(seen).ok_or(stale)?;
        let Some(slab) = place.take() else { unreachable!("a detached slot has its slab") };
        Ok(Lease::new(self, slot, state, slab, place.tally.bytes()))
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
            .field("id", &self.id())
            .field("bytes", &self.bytes())
            .field("planned", &self.planned)
            .finish_non_exhaustive()
    }
}
