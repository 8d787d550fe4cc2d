//! The word and the ledger alone, and, by loom, every interleaving of what threads do to one slot: `just loom`.

use super::*;

/// Memory that is a number: what a slot's tests need of a source.
#[derive(Debug)]
struct Numbers;

impl Source for Numbers {
    type Block = usize;
    type Stream = ();
    type Event = ();

    fn name(&self) -> &str {
        "numbers"
    }

    fn allocate(&self, bytes: usize) -> Result<usize, SourceError> {
        Ok(bytes)
    }

    fn address(&self, _: &usize) -> u64 {
        0
    }

    fn event(&self) -> Result<(), SourceError> {
        Ok(())
    }

    fn record(&self, (): &mut (), (): &()) -> Result<(), SourceError> {
        Ok(())
    }

    fn wait(&self, (): &(), (): &()) -> Result<(), SourceError> {
        Ok(())
    }

    fn has_passed(&self, (): &()) -> Result<bool, SourceError> {
        Ok(true)
    }
}

/// A slot with an idle slab of two granules, whose block counts its uses.
fn idle() -> Slot<Numbers> {
    let slot = Slot::new(1);
    slot.put(Box::new(Slab { block: 0, event: (), stream: None }));
    slot.publish(State { status: Status::Idle, granules: 2, generation: 0 });
    slot
}

#[cfg(not(loom))]
#[test]
fn a_word_holds_what_was_put_in() {
    for status in
        [Status::Empty, Status::Idle, Status::Leased, Status::Claimed, Status::Quarantined]
    {
        for granules in [0, 1, 4096, (1 << 24) - 1] {
            for generation in [0, 7, u32::MAX] {
                let state = State { status, granules, generation };
                assert_eq!(State::unpack(state.pack()), state);
            }
        }
    }
}

#[cfg(not(loom))]
#[test]
fn a_stale_reading_claims_nothing() {
    let slot = idle();
    let seen = slot.state();
    let leased = slot.lease(seen).unwrap();
    assert!(slot.lease(seen).is_none() && slot.claim(seen).is_none());
    slot.publish(State { status: Status::Idle, ..leased });
    assert!(slot.lease(seen).is_none(), "it came and went in between");
    assert!(slot.lease(slot.state()).is_some());
}

#[cfg(not(loom))]
#[test]
fn each_lease_is_read_once_and_the_overwritten_ones_are_counted() {
    let ledger = SlotLedger::new(4);
    let mut read = 0;
    let mut seen = Vec::new();
    for lease in 1..=3 {
        ledger.begin(lease * 10, 100, 2, true);
        ledger.end(lease * 10 + 5);
    }
    assert_eq!(ledger.since(&mut read, |passed| seen.push(passed.leased_at)), 0);
    assert_eq!(seen, [10, 20, 30]);
    for lease in 4..=10 {
        ledger.begin(lease * 10, 100, 2, false);
        ledger.end(lease * 10 + 5);
    }
    seen.clear();
    let lost = ledger.since(&mut read, |passed| seen.push(passed.leased_at));
    assert_eq!(seen.len() as u64 + lost, 7);
    assert_eq!(seen.last(), Some(&100));
    assert_eq!(ledger.warm(), 3);
}

/// A forecast is made by what came back and what is out: a lease that is both counts twice.
#[cfg(not(loom))]
#[test]
fn a_lease_has_come_back_or_is_out_but_not_both() {
    let ledger = SlotLedger::new(4096);
    let rounds = if cfg!(miri) { 200 } else { 200_000 };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for lease in 1..=rounds {
                ledger.begin(lease, 1, 0, true);
                ledger.end(lease);
            }
        });
        let (mut read, mut last) = (0, 0);
        while last < rounds {
            ledger.since(&mut read, |passed| last = passed.leased_at);
            assert!(ledger.current().is_none_or(|current| current.leased_at > last));
        }
    });
}

#[cfg(loom)]
mod loom_tests {
    use loom::sync::Arc;

    use super::*;

    /// Uses the slab as its owner: another one would find it gone.
    fn own(slot: &Slot<Numbers>) {
        slot.with_slab(|slab| {
            slab.block += 1;
            loom::thread::yield_now();
        });
    }

    fn lease_and_return(slot: &Slot<Numbers>) -> usize {
        let seen = slot.state();
        let idle = (seen.status == Status::Idle).then_some(seen);
        let Some(state) = idle.and_then(|seen| slot.lease(seen)) else { return 0 };
        own(slot);
        slot.publish(State { status: Status::Idle, ..state });
        1
    }

    fn grow(slot: &Slot<Numbers>) {
        let seen = slot.state();
        if seen.status == Status::Idle
            && let Some(state) = slot.claim(seen)
        {
            own(slot);
            let granules = state.granules + 1;
            slot.publish(State { status: Status::Idle, granules, ..state });
        }
    }

    #[test]
    fn a_slot_has_one_owner_at_a_time() {
        loom::model(|| {
            let slot = Arc::new(idle());
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let slot = Arc::clone(&slot);
                    loom::thread::spawn(move || lease_and_return(&slot))
                })
                .collect();
            grow(&slot);
            let leases: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
            let last = slot.state();
            assert_eq!(last.status, Status::Idle, "whatever happened, it came back");
            assert_eq!(last.generation as usize, leases, "each lease is counted");
            let slab = slot.take().expect("it came back");
            assert_eq!(slab.block, leases + last.granules - 2);
        });
    }
}
