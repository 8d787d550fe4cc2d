//! The right to a slab until its work is done: how one that is there is handed out, and taken back.
//!
//! A lease is one compare-and-swap of a slot's word, a return one exchange.

use std::cell::Cell;
use std::fmt;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::slot::{MOST_GRANULES, Owned, Slab, State, Status};
use super::{LeaseError, Shared};
use crate::budget::GRANULE;
use crate::source::{Source, SourceError};

thread_local! {
    /// The slot that this thread had last: its words are in this core's cache.
    static LAST: Cell<usize> = const { Cell::new(0) };
}

/// The right to one slab. Dropping it returns the slab to the pool, also while unwinding.
///
/// On a device that works while the host goes on, a lease may be returned as soon as its last work
/// is in the stream: [`record`](Self::record) marks that point (dropping does it otherwise), and
/// whoever gets the slab next has its stream wait for it.
#[must_use = "dropping a lease gives the slab back"]
pub struct Lease<'a, S: Source> {
    pool: &'a Shared<S>,
    slot: usize,
    state: State,
    slab: Option<Box<Slab<S>>>, // taken only when it ends
    planned: usize,
    recorded: bool,
}

impl<S: Source> Lease<'_, S> {
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
            self.pool.ledger.overrun();
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
    fn take_back(&mut self, mut slab: Box<Slab<S>>) {
        let mut status = Status::Idle;
        if !self.recorded
            && let Some((stream, _)) = &slab.stream
            && let Err(error) = self.pool.source.record(&mut slab.event, stream)
        {
            // Nobody can tell when the device is done with it.
            self.pool.ledger.failed(&error);
            status = Status::Quarantined;
        }
        if cfg!(debug_assertions) {
            self.pool.source.poison(&mut slab.block);
        }
        let slot = &self.pool.slots[self.slot];
        slot.ledger.end(self.pool.source.now());
        slot.put(slab);
        slot.publish(State { status, ..self.state });
        self.pool.waiting.wake();
    }
}

impl<S: Source> Shared<S> {
    /// A lease that is there, or one that is grown.
    pub(super) fn lease(
        &self,
        bytes: usize,
        stream: &S::Stream,
    ) -> Result<Lease<'_, S>, LeaseError> {
        let timed = self.ledger.should_time().then(|| self.source.now());
        let granules = self.granules(bytes)?;
        let owned = match self.claim_warm(granules) {
            Some(owned) => self.heed_recall(owned, granules),
            None => self.grow(granules * GRANULE)?,
        };
        let lease = self.hand_out(owned, bytes, stream)?;
        if let Some(started) = timed {
            self.ledger.took(self.source.now().saturating_sub(started));
        }
        Ok(lease)
    }

    /// `bytes` in granules, at least one.
    #[inline]
    pub(super) fn granules(&self, bytes: usize) -> Result<usize, LeaseError> {
        let granules = bytes.div_ceil(GRANULE).max(1);
        if granules > MOST_GRANULES {
            return Err(LeaseError::TooLarge { needed: bytes, available: self.budget.available() });
        }
        Ok(granules)
    }

    /// The smallest idle slab of at least `granules`.
    #[inline]
    pub(super) fn claim_warm(&self, granules: usize) -> Option<Owned> {
        let used = self.used.load(Ordering::Acquire);
        let last = LAST.get();
        if last < used {
            let slot = &self.slots[last];
            let seen = slot.state();
            let snug = granules..=granules + granules / 8;
            if seen.status == Status::Idle
                && snug.contains(&seen.granules)
                && let Some(state) = slot.lease(seen)
            {
                return Some(Owned { slot: last, state, warm: true });
            }
        }
        loop {
            let mut best: Option<(usize, State)> = None;
            for step in 0..used {
                // From its own slot on, so that threads do not all try the same one.
                let index = (last + step) % used;
                let seen = self.slots[index].state();
                if seen.status == Status::Idle
                    && seen.granules >= granules
                    && best.is_none_or(|(_, best)| seen.granules < best.granules)
                {
                    best = Some((index, seen));
                }
            }
            let (index, seen) = best?;
            if let Some(state) = self.slots[index].lease(seen) {
                LAST.set(index);
                return Some(Owned { slot: index, state, warm: true });
            }
        }
    }

    /// Makes a lease of a slot that this thread has in the leased state.
    #[inline]
    fn hand_out(
        &self,
        owned: Owned,
        bytes: usize,
        stream: &S::Stream,
    ) -> Result<Lease<'_, S>, LeaseError> {
        let Owned { slot: index, state, warm } = owned;
        let slot = &self.slots[index];
        let Some(mut slab) = slot.take() else {
            unreachable!("a slot in the leased state has a slab")
        };
        let number = match &slab.stream {
            Some((last, number)) if last == stream => *number,
            last => {
                if last.is_some()
                    && let Err(error) = self.source.wait(stream, &slab.event)
                {
                    self.ledger.failed(&error);
                    slot.put(slab);
                    slot.publish(State { status: Status::Quarantined, ..state });
                    return Err(error.into());
                }
                let number = self.number_of(stream);
                slab.stream = Some((stream.clone(), number));
                number
            }
        };
        slot.ledger.begin(self.source.now(), bytes.max(1), number, warm);
        if !warm {
            self.ledger.grown();
        }
        let planned = bytes;
        Ok(Lease { pool: self, slot: index, state, slab: Some(slab), planned, recorded: false })
    }

    /// The number that recordings call a stream by.
    pub(super) fn number_of(&self, stream: &S::Stream) -> u32 {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let index = streams.iter().position(|known| known == stream).unwrap_or_else(|| {
            streams.push(stream.clone());
            streams.len() - 1
        });
        u32::try_from(index).unwrap_or(u32::MAX)
    }
}

impl<S: Source> Drop for Lease<'_, S> {
    fn drop(&mut self) {
        if let Some(slab) = self.slab.take() {
            self.take_back(slab);
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
