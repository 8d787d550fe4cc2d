//! Regions over a memory that exists only as numbers, and refuses calls on demand.
//!
//! `Fake` panics on what the driver could not undo: mapping over a mapping, releasing or freeing
//! twice. A refused call changes nothing, as with the driver.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use proptest::prelude::*;

use super::region::{Refused, Region, Vmm};
use crate::driver::error::{DriverError, code};

/// Chunks of at most this, for regions of some tens.
const LARGEST: usize = 8;
const REACH: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refuse {
    Nothing,
    /// The call of this number, counted from 0.
    One(usize),
    /// That call and all behind it.
    From(usize),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapping {
    at: Range<usize>,
    chunk: usize,
    accessible: bool,
}

#[derive(Debug)]
struct State {
    refuse: Refuse,
    capacity: usize,
    calls: usize,
    refused: Option<&'static str>,
    reserved: BTreeSet<usize>,
    /// Memory that has a handle or is mapped, by number: its bytes and whether it has a handle.
    chunks: BTreeMap<usize, (usize, bool)>,
    mappings: Vec<Mapping>,
    next: usize,
}

#[derive(Debug)]
struct Fake(Mutex<State>);

impl Fake {
    fn new(refuse: Refuse, capacity: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            refuse,
            capacity,
            calls: 0,
            refused: None,
            reserved: BTreeSet::new(),
            chunks: BTreeMap::new(),
            mappings: Vec::new(),
            next: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Begins a call, or refuses it.
    fn call(&self, call: &'static str) -> Result<MutexGuard<'_, State>, DriverError> {
        let mut state = self.state();
        let number = state.calls;
        state.calls += 1;
        let refuse = match state.refuse {
            Refuse::Nothing => false,
            Refuse::One(refused) => number == refused,
            Refuse::From(first) => number >= first,
        };
        if refuse {
            state.refused.get_or_insert(call);
            return Err(DriverError { call, code: 999 });
        }
        Ok(state)
    }

    /// What is mapped, in order of addresses.
    fn mappings(&self) -> Vec<Mapping> {
        let mut mappings = self.state().mappings.clone();
        mappings.sort_by_key(|mapping| mapping.at.start);
        mappings
    }

    /// Bytes of memory taken.
    fn taken(&self) -> usize {
        self.state().chunks.values().map(|(bytes, _)| bytes).sum()
    }

    fn is_empty(&self) -> bool {
        let state = self.state();
        state.reserved.is_empty() && state.chunks.is_empty() && state.mappings.is_empty()
    }
}

impl State {
    fn number(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    fn drop_unused(&mut self) {
        let mapped: BTreeSet<_> = self.mappings.iter().map(|mapping| mapping.chunk).collect();
        self.chunks.retain(|chunk, (_, has_handle)| *has_handle || mapped.contains(chunk));
    }
}

impl Vmm for Fake {
    type Addresses = usize;
    type Chunk = usize;

    fn reserve(&self, _bytes: usize) -> Result<usize, DriverError> {
        let mut state = self.call("reserve")?;
        let number = state.number();
        state.reserved.insert(number);
        Ok(number)
    }

    fn create(&self, bytes: usize) -> Result<usize, DriverError> {
        assert!(0 < bytes && bytes <= LARGEST, "a chunk of {bytes}");
        let mut state = self.call("create")?;
        if state.chunks.values().map(|(bytes, _)| bytes).sum::<usize>() + bytes > state.capacity {
            return Err(DriverError { call: "create", code: code::OUT_OF_MEMORY });
        }
        let number = state.number();
        state.chunks.insert(number, (bytes, true));
        Ok(number)
    }

    fn map(&self, on: &usize, at: &Range<usize>, chunk: &usize) -> Result<(), DriverError> {
        let mut state = self.call("map")?;
        assert!(state.reserved.contains(on), "addresses that are not reserved");
        assert_eq!(state.chunks.get(chunk), Some(&(at.len(), true)), "a chunk that is not there");
        assert!(at.end <= REACH, "beyond the addresses");
        let overlaps = |other: &Mapping| other.at.start < at.end && at.start < other.at.end;
        assert!(!state.mappings.iter().any(overlaps), "mapped over a mapping");
        state.mappings.push(Mapping { at: at.clone(), chunk: *chunk, accessible: false });
        Ok(())
    }

    fn set_access(&self, _on: &usize, at: &Range<usize>) -> Result<(), DriverError> {
        let mut state = self.call("set_access")?;
        let inside =
            |mapping: &&mut Mapping| at.start <= mapping.at.start && mapping.at.end <= at.end;
        let mut covered = 0;
        for mapping in state.mappings.iter_mut().filter(inside) {
            mapping.accessible = true;
            covered += mapping.at.len();
        }
        assert_eq!(covered, at.len(), "access to what is not mapped");
        Ok(())
    }

    fn unmap(&self, _on: &usize, at: &Range<usize>) -> Result<(), DriverError> {
        let mut state = self.call("unmap")?;
        let Some(index) = state.mappings.iter().position(|mapping| mapping.at == *at) else {
            return Err(DriverError::invalid("unmap"));
        };
        state.mappings.swap_remove(index);
        state.drop_unused();
        Ok(())
    }

    fn release(&self, chunk: usize) -> Result<(), (usize, DriverError)> {
        let mut state = self.call("release").map_err(|error| (chunk, error))?;
        let (_, has_handle) = state.chunks.get_mut(&chunk).expect("released twice");
        assert!(*has_handle, "released twice");
        *has_handle = false;
        state.drop_unused();
        Ok(())
    }

    fn free(&self, addresses: usize) -> Result<(), DriverError> {
        let mut state = self.call("free")?;
        if !state.mappings.is_empty() {
            return Err(DriverError::invalid("free"));
        }
        assert!(state.reserved.remove(&addresses), "freed twice");
        Ok(())
    }
}

/// The first `bytes` are mapped and the device can use them. Behind them there is nothing, unless
/// undoing was refused.
fn assert_usable(fake: &Fake, bytes: usize) {
    let (block, behind): (Vec<_>, Vec<_>) =
        fake.mappings().into_iter().partition(|mapping| mapping.at.start < bytes);
    let mut end = 0;
    for mapping in block {
        assert_eq!(mapping.at.start, end, "a hole or an overlap");
        assert!(mapping.accessible, "{mapping:?}");
        end = mapping.at.end;
    }
    assert_eq!(end, bytes);
    assert!(behind.is_empty() || fake.state().refused.is_some(), "{behind:?}");
}

/// Takes a region, resizes it to each of `sizes` in turn and releases it, checking all along that a
/// call either does what it should or changes nothing.
fn run(fake: &Arc<Fake>, sizes: &[usize]) {
    let Ok(mut region) = Region::new(fake, REACH, sizes[0], LARGEST) else {
        assert!(fake.is_empty() || fake.state().refuse != Refuse::Nothing);
        return;
    };
    assert_usable(fake, sizes[0]);
    for &size in &sizes[1..] {
        let bytes = region.bytes();
        let mut before = fake.mappings();
        before.retain(|mapping| mapping.at.start < bytes);
        match region.resize(size) {
            Ok(()) => {
                assert_eq!(region.bytes(), size);
                assert_usable(fake, size);
                let after = fake.mappings();
                for old in before.iter().filter(|mapping| mapping.at.end <= size) {
                    assert!(after.contains(old), "a whole chunk was moved or replaced");
                }
            }
            Err(Refused { broken: true, .. }) => break,
            Err(Refused { broken: false, .. }) => {
                assert_eq!(region.bytes(), bytes);
                assert_usable(fake, bytes);
                let after = fake.mappings();
                assert!(before.iter().all(|old| after.contains(old)), "the block is as it was");
            }
        }
    }
    let released = region.release();
    if fake.state().refuse == Refuse::Nothing {
        released.unwrap();
    }
}

const SIZES: &[usize] = &[6, 16, 40, 21, 21, 2, 8, 30, 16, 0, 5];

#[test]
fn sizes_are_as_asked_for_and_all_is_given_back() {
    let fake = Fake::new(Refuse::Nothing, REACH);
    run(&fake, SIZES);
    assert!(fake.is_empty());
}

#[test]
fn a_region_grows_by_what_is_missing_and_shrinks_by_whole_chunks() {
    let fake = Fake::new(Refuse::Nothing, REACH);
    let mut region = Region::new(&fake, REACH, 20, LARGEST).unwrap();
    let lengths = |fake: &Fake| -> Vec<usize> {
        fake.mappings().iter().map(|mapping| mapping.at.len()).collect()
    };
    assert_eq!(lengths(&fake), [8, 8, 4]);
    region.resize(30).unwrap();
    assert_eq!(lengths(&fake), [8, 8, 4, 8, 2]);
    region.resize(20).unwrap();
    assert_eq!(lengths(&fake), [8, 8, 4]);
    region.resize(11).unwrap();
    assert_eq!(lengths(&fake), [8, 3]);
    assert_eq!(fake.taken(), 11);
    region.release().unwrap();
}

#[test]
fn each_call_refused_in_turn_is_undone() {
    let plain = Fake::new(Refuse::Nothing, REACH);
    run(&plain, SIZES);
    let calls = plain.state().calls;
    let mut seen = BTreeSet::new();
    for refused in 0..calls {
        let fake = Fake::new(Refuse::One(refused), REACH);
        run(&fake, SIZES);
        let call = fake.state().refused.expect("a call of the run");
        seen.insert(call);
        // Only what the last release could not give back may be left: the one thing whose call
        // was refused, and the addresses under it.
        let left = fake.taken();
        assert!(left == 0 || left <= LARGEST && matches!(call, "unmap" | "release"), "{call}");
        if !fake.is_empty() {
            assert!(matches!(call, "unmap" | "release" | "free"), "{call}");
            assert!(refused + 20 > calls, "{call} was refused long before the release");
        }
    }
    let all = ["create", "free", "map", "release", "reserve", "set_access", "unmap"];
    assert_eq!(Vec::from_iter(seen), all);
}

#[test]
fn a_device_that_is_lost_at_any_call_is_reported_and_nothing_is_given_back_twice() {
    let plain = Fake::new(Refuse::Nothing, REACH);
    run(&plain, SIZES);
    for first in 0..plain.state().calls {
        run(&Fake::new(Refuse::From(first), REACH), SIZES);
    }
}

#[test]
fn undoing_that_fails_is_reported_as_broken() {
    // Two chunks; the second can be unmapped, the first can't, and nothing can be mapped again.
    let fake = Fake::new(Refuse::Nothing, REACH);
    let mut region = Region::new(&fake, REACH, 16, LARGEST).unwrap();
    let next = fake.state().calls;
    fake.state().refuse = Refuse::From(next + 1);
    let refused = region.resize(0).unwrap_err();
    assert!(refused.broken);
    assert_eq!(refused.error.call, "unmap", "the first error is the one that counts");
    fake.state().refuse = Refuse::Nothing;
    assert!(region.release().is_err());
    assert_eq!(fake.taken(), 0);
}

#[test]
fn what_could_not_be_given_back_is_offered_again() {
    let fake = Fake::new(Refuse::Nothing, REACH);
    let mut region = Region::new(&fake, REACH, 16, LARGEST).unwrap();
    // Unmap is fine, releasing is refused: the block is smaller all the same.
    let next = fake.state().calls;
    fake.state().refuse = Refuse::One(next + 1);
    region.resize(8).unwrap();
    assert_eq!((region.bytes(), fake.taken()), (8, 16));
    region.resize(8).unwrap();
    assert_eq!((region.bytes(), fake.taken()), (8, 8));
    region.release().unwrap();
    assert!(fake.is_empty());
}

#[test]
fn what_undoing_left_mapped_is_taken_away_before_the_next_growth() {
    let fake = Fake::new(Refuse::Nothing, 12);
    let mut region = Region::new(&fake, REACH, 4, LARGEST).unwrap();
    // Creates and maps a chunk, has no memory for the next, and can't unmap the first.
    let next = fake.state().calls;
    fake.state().refuse = Refuse::One(next + 3);
    assert_eq!(region.resize(20).unwrap_err().error.code, code::OUT_OF_MEMORY);
    assert_eq!((region.bytes(), fake.taken()), (4, 12));
    region.resize(9).unwrap();
    assert_usable(&fake, 9);
    assert_eq!(fake.taken(), 9);
    region.release().unwrap();
    assert!(fake.is_empty());
}

#[test]
fn memory_that_is_not_there_is_exhausted_and_nothing_is_kept() {
    let fake = Fake::new(Refuse::Nothing, 20);
    let error = Region::new(&fake, REACH, 21, LARGEST).unwrap_err();
    assert_eq!(error.code, code::OUT_OF_MEMORY);
    assert!(fake.is_empty());

    let mut region = Region::new(&fake, REACH, 20, LARGEST).unwrap();
    let refused = region.resize(21).unwrap_err();
    assert_eq!((refused.error.code, refused.broken), (code::OUT_OF_MEMORY, false));
    assert_eq!(fake.taken(), 20);
    // A cut at a chunk's end needs nothing; one inside a chunk needs the new one first.
    assert!(region.resize(15).is_err());
    assert_eq!(region.bytes(), 20);
    region.resize(16).unwrap();
    region.resize(12).unwrap();
    assert_eq!(fake.taken(), 12);
    region.release().unwrap();
}

proptest! {
    #[test]
    fn any_sizes_and_any_refusal(
        sizes in prop::collection::vec(0..=REACH, 1..12),
        refused in 0_usize..200,
        capacity in 16_usize..=80,
        lost: bool,
    ) {
        let refuse = if lost { Refuse::From(refused) } else { Refuse::One(refused) };
        run(&Fake::new(refuse, capacity), &sizes);
        let fake = Fake::new(Refuse::Nothing, capacity);
        run(&fake, &sizes);
        prop_assert!(fake.is_empty());
    }
}
