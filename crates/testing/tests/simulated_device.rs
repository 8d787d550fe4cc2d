//! The simulated device: its clocks, its memory, its faults and what they leave behind.
//!
//! That its judge is not blind is tested in `src/simulated/judge/tests.rs`, each kind of
//! fault in `faults/tests.rs` there.

#![expect(clippy::unwrap_used, reason = "a test says what must hold by panicking")]

use proptest::prelude::*;
use vecmill_memory::{Cause, Source, SourceError};
use vecmill_testing::simulated::{Fault, SimulatedBlock, SimulatedDevice};

const MIB: usize = 1 << 20;
const PAGE: usize = 2 * MIB;
const GIB: usize = 1 << 30;

fn instant(total: usize) -> SimulatedDevice {
    SimulatedDevice::new(total).instant()
}

fn block(device: &SimulatedDevice, pages: usize) -> SimulatedBlock {
    device.allocate(pages * PAGE).unwrap()
}

/// How often each kind of call succeeded.
fn counts(device: &SimulatedDevice) -> Vec<u64> {
    device.calls().into_iter().map(|(_, count)| count).collect()
}

/// What must hold between any two operations.
fn check_books(device: &SimulatedDevice, neighbour: usize, total: usize) {
    let blocks: usize = device.blocks().iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(device.taken_bytes(), blocks);
    assert_eq!(device.available(), Some(total - blocks - neighbour));
}

mod clocks {
    use super::*;

    #[test]
    fn work_runs_in_order_behind_the_host_and_the_stream() {
        let device = instant(GIB);
        let (stream, memory) = (device.stream(), block(&device, 1));
        assert_eq!(device.launch(&stream, &memory, 0..PAGE, 100), 0..100);
        assert_eq!(device.launch(&stream, &memory, 0..PAGE, 50), 100..150);
        assert_eq!((device.now(), device.stream_time(&stream)), (0, 150));
        device.advance(400);
        assert_eq!(device.launch(&stream, &memory, 0..PAGE, 5), 400..405);
        device.synchronize(&stream);
        assert_eq!(device.now(), 405);
        device.synchronize(&stream);
        assert_eq!(device.now(), 405);
    }

    #[test]
    fn streams_run_side_by_side_and_are_told_apart() {
        let device = instant(GIB);
        let (one, other, memory) = (device.stream(), device.stream(), block(&device, 2));
        assert_eq!(device.launch(&one, &memory, 0..PAGE, 100), 0..100);
        assert_eq!(device.launch(&other, &memory, PAGE..2 * PAGE, 30), 0..30);
        assert!(one == one.clone() && one != other);
        assert!(device.violations().is_empty());
    }

    #[test]
    fn an_event_passes_when_the_work_before_it_has_finished() {
        let device = instant(GIB);
        let (stream, memory) = (device.stream(), block(&device, 1));
        let mut event = device.event().unwrap();
        assert!(device.has_passed(&event).unwrap(), "an event that was not recorded has passed");
        device.launch(&stream, &memory, 0..PAGE, 100);
        device.record(&mut event, &stream).unwrap();
        device.launch(&stream, &memory, 0..PAGE, 100);
        device.advance(99);
        assert!(!device.has_passed(&event).unwrap());
        device.advance(1);
        assert!(device.has_passed(&event).unwrap());
        device.record(&mut event, &stream).unwrap();
        assert!(!device.has_passed(&event).unwrap(), "recorded again, it is a later point");
    }

    #[test]
    fn a_stream_waits_for_an_event_and_the_host_does_not() {
        let device = instant(GIB);
        let (one, other, memory) = (device.stream(), device.stream(), block(&device, 1));
        let mut event = device.event().unwrap();
        device.launch(&one, &memory, 0..PAGE, 100);
        device.record(&mut event, &one).unwrap();
        device.wait(&other, &event).unwrap();
        assert_eq!(device.now(), 0);
        assert_eq!(device.launch(&other, &memory, 0..PAGE, 10), 100..110);
        assert!(device.violations().is_empty());
    }

    #[test]
    fn memory_calls_move_the_clock_and_event_calls_do_not() {
        let device = SimulatedDevice::new(4 * GIB);
        // Reserve, create, map, set access.
        let small = device.allocate(PAGE).unwrap();
        assert_eq!(device.now(), 3_000 + 15_000 + 3_000 + 80_000);
        let start = device.now();
        let large = device.allocate(GIB).unwrap();
        assert_eq!(device.now() - start, 3_000 + 100_000 + 3_000 + 80_000);
        let start = device.now();
        device.release(small).unwrap();
        assert_eq!(device.now() - start, 40_000 + 13_000 + 3_000);
        let start = device.now();
        device.release(large).unwrap();
        assert_eq!(device.now() - start, 40_000 + 468_000 + 3_000);
        assert_eq!(device.simulated_driver_nanoseconds(), device.now());

        let start = device.now();
        let (stream, mut event) = (device.stream(), device.event().unwrap());
        device.record(&mut event, &stream).unwrap();
        device.wait(&stream, &event).unwrap();
        assert!(device.has_passed(&event).unwrap());
        assert_eq!(device.now(), start);
        assert_eq!(device.simulated_driver_nanoseconds(), start + 4 * 500);
    }
}

mod memory {
    use super::*;

    #[test]
    fn blocks_have_addresses_of_their_own() {
        for device in [instant(GIB), instant(GIB).in_place(false)] {
            let mut seen: Vec<std::ops::Range<u64>> = Vec::new();
            for pages in 1..20 {
                let memory = block(&device, pages);
                assert_eq!(device.address(&memory), memory.address());
                assert_eq!(memory.address() % 256, 0);
                let range = memory.address()..memory.address() + memory.bytes() as u64;
                assert!(seen.iter().all(|old| old.end <= range.start || range.end <= old.start));
                seen.push(range);
            }
        }
    }

    #[test]
    fn a_block_resizes_without_moving() {
        let device = instant(GIB);
        let (mut memory, next) = (block(&device, 1), block(&device, 1));
        let address = memory.address();
        for pages in [300, 7, 0, 511] {
            device.resize(&mut memory, pages * PAGE).unwrap();
            assert_eq!((memory.address(), memory.bytes()), (address, pages * PAGE));
            check_books(&device, 0, GIB);
        }
        assert!(address + GIB as u64 <= next.address(), "there is room for it to grow");
        assert_eq!(device.blocks(), [(address, 511 * PAGE), (next.address(), PAGE)]);
    }

    #[test]
    fn a_block_without_mapping_does_not_resize() {
        let device = instant(GIB).in_place(false);
        assert!(!device.resizes_in_place() && instant(GIB).resizes_in_place());
        let mut memory = block(&device, 1);
        let error = device.resize(&mut memory, 2 * PAGE).unwrap_err();
        assert_eq!((error.cause, memory.bytes()), (Cause::Unsupported, PAGE));
    }

    #[test]
    fn more_than_is_left_is_refused() {
        for device in [instant(10 * PAGE), instant(10 * PAGE).in_place(false)] {
            let held = block(&device, 6);
            let error = device.allocate(5 * PAGE).unwrap_err();
            assert_eq!((error.cause, error.bytes), (Cause::Exhausted, 5 * PAGE));
            check_books(&device, 0, 10 * PAGE);
            let rest = block(&device, 4);
            assert_eq!(device.available(), Some(0));
            drop((held, rest));
            assert_eq!((device.clone().available(), device.blocks()), (Some(10 * PAGE), vec![]));
        }
    }

    #[test]
    fn a_neighbour_takes_from_the_same_memory() {
        let device = instant(10 * PAGE);
        let mut memory = block(&device, 4);
        assert!(!device.neighbour_takes(7 * PAGE));
        assert!(device.neighbour_takes(5 * PAGE));
        check_books(&device, 5 * PAGE, 10 * PAGE);
        let error = device.resize(&mut memory, 6 * PAGE).unwrap_err();
        assert_eq!((error.cause, memory.bytes()), (Cause::Exhausted, 4 * PAGE));
        device.neighbour_gives(PAGE);
        device.resize(&mut memory, 6 * PAGE).unwrap();
        device.neighbour_gives(GIB);
        check_books(&device, 0, 10 * PAGE);
    }

    #[test]
    fn sizes_between_pages_are_refused() {
        let device = instant(GIB);
        assert_eq!(device.allocate(PAGE + 1).unwrap_err().cause, Cause::Failed);
        let mut memory = block(&device, 1);
        assert_eq!(device.resize(&mut memory, PAGE / 2).unwrap_err().cause, Cause::Failed);
        check_books(&device, 0, GIB);
    }

    #[test]
    fn calls_are_counted_by_kind() {
        let device = instant(GIB);
        let mut memory = block(&device, 1);
        device.resize(&mut memory, 2 * PAGE).unwrap();
        device.resize(&mut memory, PAGE).unwrap();
        device.release(memory).unwrap();
        let expected = [
            ("address_reserve", 1),
            ("create", 2),
            ("map", 2),
            ("set_access", 2),
            ("unmap", 2),
            ("release", 2),
            ("address_free", 1),
        ];
        assert_eq!(device.calls(), expected);
        assert_eq!(device.call_count(), 12);
        device.event().unwrap();
        assert_eq!((device.calls(), device.call_count()), (expected.to_vec(), 13));

        let plain = instant(GIB).in_place(false);
        drop(block(&plain, 1));
        assert_eq!(plain.calls(), [("allocate", 1), ("free", 1)]);
    }
}

mod faults {
    use super::*;

    type Kept = Option<SimulatedBlock>;
    type Scenario = fn(&SimulatedDevice, &mut SimulatedBlock) -> Result<Kept, SourceError>;

    fn nth(n: u64) -> Fault {
        Fault::Nth { n, of: None, cause: Cause::Failed }
    }

    /// Fails each call of `scenario` in turn, on fresh devices, and checks what is left behind.
    /// Returns how many calls there were.
    fn fail_each(in_place: bool, cause: Cause, scenario: Scenario) -> u64 {
        for n in 0.. {
            let device = instant(GIB).in_place(in_place);
            let mut memory = block(&device, 4);
            let before = (device.blocks(), device.taken_bytes());
            let made = device.call_count();
            device.inject(Fault::Nth { n, of: None, cause });
            let outcome = scenario(&device, &mut memory);
            if outcome.is_ok() {
                assert_eq!(device.call_count() - made, n, "the fault waits for a later call");
                return n;
            }
            let error = outcome.unwrap_err();
            assert_eq!(error.cause, cause);
            assert_eq!((device.blocks(), device.taken_bytes()), before, "failing call {n}");
            assert_eq!(memory.bytes(), 4 * PAGE);
            device.revive();
            let kept = scenario(&device, &mut memory).unwrap();
            check_books(&device, 0, GIB);
            let allocates = kept.is_some();
            drop((kept, memory));
            check_books(&device, 0, GIB);
            // An allocation's calls are undone one by one. (A resize has no calls of its own to
            // give back with: the block's serve it too.)
            if let ([reserve, create, map, _, unmap, release, free], true) =
                (&counts(&device)[..], allocates)
            {
                assert_eq!([reserve, create, map], [free, release, unmap], "failing call {n}");
            }
        }
        unreachable!("a scenario makes few calls")
    }

    #[test]
    fn any_failing_call_leaves_everything_as_it_was() {
        let allocate: Scenario = |device, _| device.allocate(3 * PAGE).map(Some);
        let grow: Scenario = |device, block| device.resize(block, 9 * PAGE).map(|()| None);
        let shrink: Scenario = |device, block| device.resize(block, PAGE).map(|()| None);
        let empty: Scenario = |device, block| device.resize(block, 0).map(|()| None);
        for cause in [Cause::Failed, Cause::Exhausted, Cause::Lost] {
            assert_eq!(fail_each(true, cause, allocate), 4);
            assert_eq!(fail_each(false, cause, allocate), 1);
            assert_eq!(fail_each(true, cause, grow), 3);
            assert_eq!(fail_each(true, cause, shrink), 2);
            assert_eq!(fail_each(true, cause, empty), 2);
        }
    }

    #[test]
    fn a_failed_shrink_maps_again_what_it_had_unmapped() {
        let device = instant(GIB);
        let mut memory = block(&device, 4);
        device.inject(nth(1));
        assert_eq!(device.resize(&mut memory, PAGE).unwrap_err().operation, "release");
        // Reserve, create, map, set access, unmap, release, free.
        assert_eq!(counts(&device), [1, 1, 2, 2, 1, 0, 0]);
    }

    #[test]
    fn a_failing_release_is_reported_and_the_block_is_gone() {
        for (in_place, made) in [(true, 3), (false, 1)] {
            for n in 0..made {
                let device = instant(GIB).in_place(in_place);
                let (memory, other) = (block(&device, 4), block(&device, 1));
                device.inject(nth(n));
                assert_eq!(device.release(memory).unwrap_err().cause, Cause::Failed);
                check_books(&device, 0, GIB);
                device.inject(nth(n));
                drop(other); // nobody to tell
                assert_eq!(device.available(), Some(GIB));
            }
        }
    }
}

/// What a random user does.
#[derive(Debug, Clone)]
enum Action {
    Allocate { pages: usize },
    Resize { block: usize, pages: usize },
    Release { block: usize },
    Work { stream: usize, block: usize, duration: u64 },
    Neighbour { takes: bool, pages: usize },
    Fail { n: u64 },
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        (0..6_usize).prop_map(|pages| Action::Allocate { pages }),
        (0..8_usize, 0..9_usize).prop_map(|(block, pages)| Action::Resize { block, pages }),
        (0..8_usize).prop_map(|block| Action::Release { block }),
        (0..3_usize, 0..8_usize, 0..200_000_u64)
            .prop_map(|(stream, block, duration)| Action::Work { stream, block, duration }),
        (any::<bool>(), 0..9_usize).prop_map(|(takes, pages)| Action::Neighbour { takes, pages }),
        (0..6_u64).prop_map(|n| Action::Fail { n }),
    ];
    proptest::collection::vec(action, 1..80)
}

proptest! {
    /// A careful user keeps an event per block, has each stream wait for it, and waits before
    /// giving memory back. Whatever fails meanwhile, the books balance and the judge is content.
    #[test]
    fn careful_use_is_never_a_violation(actions in actions()) {
        const TOTAL: usize = 20 * PAGE;
        let device = SimulatedDevice::new(TOTAL);
        let streams: Vec<_> = (0..3).map(|_| device.stream()).collect();
        let mut held = Vec::new();
        let mut neighbour = 0;
        for action in actions {
            let count = held.len().max(1);
            match action {
                Action::Allocate { pages } => {
                    let taken = device.allocate(pages * PAGE);
                    held.extend(taken.ok().map(|memory| (memory, 0_usize)));
                }
                Action::Resize { block, pages } => {
                    if let Some((memory, last)) = held.get_mut(block % count) {
                        device.synchronize(&streams[*last]);
                        let (size, outcome) = (memory.bytes(), device.resize(memory, pages * PAGE));
                        let expected = if outcome.is_ok() { pages * PAGE } else { size };
                        prop_assert_eq!(memory.bytes(), expected);
                    }
                }
                Action::Release { block } if !held.is_empty() => {
                    let (memory, last) = held.swap_remove(block % count);
                    device.synchronize(&streams[last]);
                    let _ = device.release(memory);
                }
                Action::Work { stream, block, duration } => {
                    if let Some((memory, last)) = held.get_mut(block % count) {
                        let Ok(mut event) = device.event() else { continue };
                        let gated = device
                            .record(&mut event, &streams[*last])
                            .and_then(|()| device.wait(&streams[stream], &event));
                        if gated.is_ok() {
                            let all = 0..memory.bytes();
                            device.launch(&streams[stream], memory, all, duration);
                            *last = stream;
                        }
                    }
                }
                Action::Neighbour { takes: true, pages } => {
                    if device.neighbour_takes(pages * PAGE) {
                        neighbour += pages * PAGE;
                    }
                }
                Action::Neighbour { takes: false, pages } => {
                    device.neighbour_gives(pages * PAGE);
                    neighbour = neighbour.saturating_sub(pages * PAGE);
                }
                Action::Fail { n } => {
                    device.inject(Fault::Nth { n, of: None, cause: Cause::Failed });
                }
                Action::Release { .. } => {}
            }
            check_books(&device, neighbour, TOTAL);
        }
        prop_assert_eq!(device.violations().len(), 0);
    }
}
