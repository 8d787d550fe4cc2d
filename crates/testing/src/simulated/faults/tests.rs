//! Each fault strikes the calls that it is meant for, when it is meant to.

use super::Fault;
use crate::simulated::{DriverCall, SimulatedBlock, SimulatedDevice};
use vecmill_memory::{Cause, Source};

const PAGE: usize = 2 << 20;

fn instant() -> SimulatedDevice {
    SimulatedDevice::new(1 << 30).instant()
}

fn block(device: &SimulatedDevice, pages: usize) -> SimulatedBlock {
    device.allocate(pages * PAGE).unwrap()
}

fn nth(n: u64, of: Option<DriverCall>) -> Fault {
    Fault::Nth { n, of, cause: Cause::Failed }
}

#[test]
fn the_nth_call_of_a_kind_fails_once() {
    let device = instant();
    device.inject(nth(1, Some(DriverCall::Map)));
    let _first = block(&device, 1);
    let error = device.allocate(PAGE).unwrap_err();
    assert_eq!((error.operation, error.bytes, error.cause), ("map", PAGE, Cause::Failed));
    let _third = block(&device, 1);
}

#[test]
fn faults_count_side_by_side() {
    let device = instant();
    device.inject(nth(0, Some(DriverCall::Event)));
    device.inject(nth(1, None));
    assert!(device.event().is_err());
    assert!(device.event().is_err());
    assert!(device.event().is_ok());
}

#[test]
fn every_call_of_a_kind_fails_until_cleared() {
    let device = instant();
    device.inject(Fault::Every { of: Some(DriverCall::Create), cause: Cause::Exhausted });
    for _ in 0..3 {
        assert_eq!(device.allocate(PAGE).unwrap_err().cause, Cause::Exhausted);
        assert_eq!(device.taken_bytes(), 0);
    }
    device.event().unwrap();
    device.clear_faults();
    device.allocate(PAGE).unwrap();
}

#[test]
fn event_calls_fail_too() {
    let device = instant();
    let (stream, mut event) = (device.stream(), device.event().unwrap());
    device.inject(Fault::Every { of: None, cause: Cause::Failed });
    assert_eq!(device.event().unwrap_err().operation, "event");
    assert_eq!(device.record(&mut event, &stream).unwrap_err().operation, "record");
    assert_eq!(device.wait(&stream, &event).unwrap_err().operation, "wait");
    assert_eq!(device.has_passed(&event).unwrap_err().operation, "query");
}

#[test]
fn a_slow_event_passes_after_its_work() {
    let device = instant();
    let (stream, other, memory) = (device.stream(), device.stream(), block(&device, 1));
    let mut event = device.event().unwrap();
    device.inject(Fault::SlowEvents { delay: 40 });
    device.launch(&stream, &memory, 0..PAGE, 100);
    device.record(&mut event, &stream).unwrap();
    device.wait(&other, &event).unwrap();
    assert_eq!((device.stream_time(&stream), device.stream_time(&other)), (100, 140));
    device.advance(139);
    assert!(!device.has_passed(&event).unwrap());
    device.advance(1);
    assert!(device.has_passed(&event).unwrap());
    device.record(&mut event, &stream).unwrap();
    assert!(!device.has_passed(&event).unwrap(), "slow on an idle stream as well");
    device.clear_faults();
    device.record(&mut event, &stream).unwrap();
    assert!(device.has_passed(&event).unwrap());
}

#[test]
fn a_lost_device_does_nothing_until_revived() {
    let device = instant();
    let (stream, mut memory) = (device.stream(), block(&device, 1));
    let event = device.event().unwrap();
    device.launch(&stream, &memory, 0..PAGE, 100);
    device.inject(Fault::Lost);
    device.clear_faults();
    let causes = [
        device.allocate(PAGE).unwrap_err().cause,
        device.resize(&mut memory, 2 * PAGE).unwrap_err().cause,
        device.event().unwrap_err().cause,
        device.has_passed(&event).unwrap_err().cause,
        device.release(memory).unwrap_err().cause,
    ];
    assert_eq!(causes, [Cause::Lost; 5]);
    assert_eq!(device.violations().len(), 0, "the work is lost with the device");
    assert_eq!(device.taken_bytes(), 0);
    device.revive();
    let memory = block(&device, 1);
    assert_eq!(device.launch(&stream, &memory, 0..PAGE, 5), 0..5);
}

#[test]
fn a_call_can_take_the_device_with_it() {
    let device = instant();
    device.inject(Fault::Nth { n: 2, of: None, cause: Cause::Lost });
    assert_eq!(device.allocate(PAGE).unwrap_err().cause, Cause::Lost);
    assert_eq!(device.event().unwrap_err().cause, Cause::Lost);
    device.revive();
    device.event().unwrap();
}
