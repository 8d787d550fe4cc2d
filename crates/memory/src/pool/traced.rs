//! The pool's rings as a trace.

use super::{Pool, Shared};
use crate::source::Source;
use crate::trace::{Event, Trace, What};

/// Leases of one slot are numbered on from a start of its own.
const SLOT_SHIFT: u32 = 40;

impl<S: Source> Pool<S> {
    /// What the pool's rings remember: the last leases of each slab, those that are still out, and
    /// the last refusals.
    pub fn trace(&self) -> Trace {
        self.shared.trace()
    }
}

impl<S: Source> Shared<S> {
    fn trace(&self) -> Trace {
        let mut events = Vec::new();
        let mut lost = 0;
        for (index, slot) in self.live_slots().enumerate() {
            let (mut read, mut id) = (0, (index as u64) << SLOT_SHIFT);
            lost += slot.tally.since(&mut read, |lease| {
                let (stream, bytes) = (lease.stream, lease.bytes);
                events.push((lease.leased_at, What::Lease { id, stream, bytes }));
                // A lease ends after it begins, also where the clock is too coarse to tell.
                let returned_at = lease.returned_at.max(lease.leased_at + 1);
                events.push((returned_at, What::Return { id }));
                id += 1;
            });
            if let Some(lease) = slot.tally.current() {
                let (stream, bytes) = (lease.stream, lease.bytes);
                events.push((lease.leased_at, What::Lease { id, stream, bytes }));
            }
        }
        for refused in self.counts.refusals() {
            let (stream, bytes) = (refused.stream, refused.bytes);
            events.push((refused.at, What::Refuse { stream, bytes }));
        }
        // Of what happened at the same moment, returns come first: they made room for the rest.
        events.sort_by_key(|(at, what)| (*at, !matches!(what, What::Return { .. })));
        let event = |(nanoseconds, what)| Event { nanoseconds, what };
        Trace { events: events.into_iter().map(event).collect(), lost }
    }
}
