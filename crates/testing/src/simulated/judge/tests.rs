//! That the judge is not blind: each kind of misuse is seen, and proper use is not.

use super::Violation;
use crate::simulated::{SimulatedBlock, SimulatedDevice};
use vecmill_memory::{Cause, Source};

const PAGE: usize = 2 << 20;

fn instant() -> SimulatedDevice {
    SimulatedDevice::new(1 << 30).instant()
}

fn block(device: &SimulatedDevice, pages: usize) -> SimulatedBlock {
    device.allocate(pages * PAGE).unwrap()
}

#[test]
fn sees_two_streams_on_the_same_memory() {
    let device = instant();
    let (one, other, memory) = (device.stream(), device.stream(), block(&device, 2));
    device.launch(&one, &memory, 0..1000, 100);
    device.launch(&other, &memory, 1000..2000, 100);
    assert_eq!(device.violations(), []);
    device.advance(50);
    device.launch(&other, &memory, 900..1000, 10); // behind its own work: begins at 100
    assert_eq!(device.violations(), []);
    device.launch(&one, &memory, 950..1500, 10); // begins at 100, as the other's second work
    let base = memory.address();
    let ungated = Violation::UngatedUse {
        addresses: base + 950..base + 1000,
        stream: 0,
        begins: 100,
        earlier_stream: 1,
        ends: 110,
    };
    assert_eq!(device.violations(), [ungated]);
}

#[test]
fn sees_work_that_overtakes_what_was_queued_before_it() {
    let device = instant();
    let (busy, idle, memory) = (device.stream(), device.stream(), block(&device, 2));
    device.launch(&busy, &memory, PAGE..2 * PAGE, 1_000);
    device.launch(&busy, &memory, 0..PAGE, 10); // from 1,000 to 1,010
    device.launch(&idle, &memory, 0..PAGE, 10); // from 0 to 10: never at the same time
    assert!(matches!(device.violations()[..], [Violation::UngatedUse { ends: 1_010, .. }]));
}

#[test]
fn work_counts_until_its_last_nanosecond() {
    for (waited, in_use) in [(99, true), (100, false)] {
        let device = instant();
        let (one, other, memory) = (device.stream(), device.stream(), block(&device, 1));
        device.launch(&one, &memory, 0..PAGE, 100);
        device.advance(waited);
        device.launch(&other, &memory, 0..PAGE, 1);
        assert_eq!(!device.violations().is_empty(), in_use);
    }
}

#[test]
fn remembers_work_that_later_work_of_the_stream_covers_in_part() {
    let device = instant();
    let (one, other, memory) = (device.stream(), device.stream(), block(&device, 2));
    device.launch(&one, &memory, 0..PAGE, 100);
    device.launch(&one, &memory, PAGE / 2..2 * PAGE, 100);
    device.launch(&other, &memory, 0..10, 1);
    assert!(matches!(device.violations()[..], [Violation::UngatedUse { ends: 100, .. }]));
}

#[test]
fn sees_memory_given_back_under_work() {
    type GiveBack = fn(&SimulatedDevice, SimulatedBlock);
    let ways: [GiveBack; 2] =
        [|device, memory| device.release(memory).unwrap(), |_, memory| drop(memory)];
    for give_back in ways {
        for (waited, in_use) in [(99, true), (100, false)] {
            let device = instant();
            let (stream, memory) = (device.stream(), block(&device, 1));
            let address = memory.address();
            device.launch(&stream, &memory, 0..10, 100);
            device.advance(waited);
            give_back(&device, memory);
            let expected = Violation::ReleasedInUse { address, at: waited, until: 100 };
            assert_eq!(device.violations(), Vec::from_iter(in_use.then_some(expected)));
            assert_eq!(device.taken_bytes(), 0);
        }
    }
}

#[test]
fn sees_memory_shrunk_under_work_that_uses_the_part() {
    let device = instant();
    let (stream, mut memory) = (device.stream(), block(&device, 4));
    device.launch(&stream, &memory, 0..2 * PAGE, 100);
    device.resize(&mut memory, 8 * PAGE).unwrap();
    device.resize(&mut memory, 2 * PAGE).unwrap();
    assert_eq!(device.violations(), []);
    device.resize(&mut memory, PAGE).unwrap();
    let address = memory.address();
    let shrunk = Violation::ShrunkInUse { address, bytes: PAGE, at: 0, until: 100 };
    assert_eq!(device.violations(), [shrunk]);
}

#[test]
fn a_shrink_after_the_work_is_fine() {
    let device = instant();
    let (stream, mut memory) = (device.stream(), block(&device, 4));
    device.launch(&stream, &memory, 0..4 * PAGE, 100);
    device.synchronize(&stream);
    device.resize(&mut memory, PAGE).unwrap();
    assert_eq!(device.violations(), []);
}

#[test]
fn sees_work_beyond_a_block() {
    let device = instant();
    let (stream, mut memory) = (device.stream(), block(&device, 2));
    device.launch(&stream, &memory, 0..2 * PAGE, 1);
    device.resize(&mut memory, 3 * PAGE).unwrap();
    device.launch(&stream, &memory, 2 * PAGE..3 * PAGE, 1);
    assert_eq!(device.violations(), []);
    device.synchronize(&stream);
    device.resize(&mut memory, PAGE).unwrap();
    device.launch(&stream, &memory, 10..PAGE + 1, 1);
    let (address, page) = (memory.address(), PAGE as u64);
    let beyond = Violation::BeyondBlock { address, bytes: page, used: 10..page + 1, stream: 0 };
    assert_eq!(device.violations(), std::slice::from_ref(&beyond));
    device.launch_at(&stream, address + 10..address + page + 1, 1);
    assert_eq!(device.violations(), [beyond.clone(), beyond]);
}

#[test]
fn sees_work_on_released_memory() {
    for device in [instant(), instant().in_place(false)] {
        let (stream, before) = (device.stream(), block(&device, 1));
        let (memory, _after) = (block(&device, 1), block(&device, 1));
        let (start, old) = (memory.address(), before.address());
        device.launch_at(&stream, start..start + 10, 1);
        assert_eq!(device.violations(), []);
        drop((memory, before));
        let mut expected = vec![Violation::ReleasedInUse { address: start, at: 0, until: 1 }];
        for address in [start, old] {
            device.launch_at(&stream, address + 5..address + 10, 1);
            let addresses = address + 5..address + 10;
            expected.push(Violation::UseAfterRelease { addresses, stream: 0 });
        }
        assert_eq!(device.violations(), expected);
    }
}

#[test]
fn sees_a_second_release() {
    let device = instant();
    let (stream, memory) = (device.stream(), block(&device, 1));
    let address = memory.address();
    device.release_at(address).unwrap();
    assert_eq!(device.violations(), []);
    device.launch(&stream, &memory, 3..4, 1);
    let stale = Violation::UseAfterRelease { addresses: address + 3..address + 4, stream: 0 };
    assert_eq!(device.violations(), std::slice::from_ref(&stale));
    assert_eq!(device.release(memory).unwrap_err().cause, Cause::Failed);
    assert_eq!(device.violations(), [stale, Violation::DoubleRelease { address, at: 0 }]);
    assert_eq!(device.taken_bytes(), 0);
}

#[test]
fn says_what_happened() {
    let ungated = Violation::UngatedUse {
        addresses: 0x1000..0x2000,
        stream: 1,
        begins: 5,
        earlier_stream: 0,
        ends: 9,
    };
    let text = "stream 1 uses 0x1000..0x2000 from 5 on, but stream 0 is not done with it \
                before 9";
    assert_eq!(ungated.to_string(), text);
    let double = Violation::DoubleRelease { address: 0x1000, at: 7 };
    assert_eq!(double.to_string(), "block 0x1000 is released at 7, but there is no such block");
}

#[test]
fn many_launches_in_flight_on_one_block() {
    let device = instant();
    let (one, other, memory) = (device.stream(), device.stream(), block(&device, 1));
    let mut event = device.event().unwrap();
    let rounds = if cfg!(miri) { 100 } else { 100_000 };
    for _ in 0..rounds {
        for (now, next) in [(&one, &other), (&other, &one)] {
            device.launch(now, &memory, 0..PAGE, 10);
            device.record(&mut event, now).unwrap();
            device.wait(next, &event).unwrap();
        }
    }
    assert_eq!((device.violations(), device.stream_time(&one)), (vec![], 20 * rounds));
}
