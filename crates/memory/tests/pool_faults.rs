//! What the pool does when a call of the source fails, and must not do because of it.

mod support;

use std::time::Duration;

use vecmill_memory::{Cause, GiveBack, Remedy, Source};
use vecmill_testing::simulated::{DriverCall, Fault, SimulatedDevice};

use support::{MIB, SECOND, assert_innocent, pool};

fn fail_once(device: &SimulatedDevice, call: DriverCall) {
    device.inject(Fault::Nth { n: 0, of: Some(call), cause: Cause::Failed });
}

#[test]
fn a_second_mark_that_fails_is_not_taken_for_the_first() {
    let (device, stream, pool) = pool(GiveBack::Never);
    let mut lease = pool.lease(4 * MIB, &stream).unwrap();
    lease.record().unwrap();
    device.launch(&stream, lease.block(), 0..lease.bytes(), SECOND);
    fail_once(&device, DriverCall::Record);
    lease.record().unwrap_err();
    drop(lease);
    assert_eq!(pool.trim(), 0);
    assert_innocent(&device);
}

#[test]
fn a_slab_stays_in_quarantine_until_its_end_is_marked() {
    let (device, stream, pool) = pool(GiveBack::Never);
    let lease = pool.lease(4 * MIB, &stream).unwrap();
    device.launch(&stream, lease.block(), 0..lease.bytes(), SECOND);
    fail_once(&device, DriverCall::Record);
    drop(lease);
    fail_once(&device, DriverCall::Record);
    assert_eq!((pool.maintain().recovered, pool.trim()), (0, 0));
    assert_eq!((pool.maintain().recovered, pool.trim()), (1, 0));
    device.advance(SECOND);
    assert_eq!(pool.trim(), 4 * MIB);
    assert_innocent(&device);
}

#[test]
fn a_query_that_fails_does_not_mean_that_the_work_is_done() {
    let (device, stream, pool) = pool(GiveBack::Never);
    let lease = pool.lease(4 * MIB, &stream).unwrap();
    device.launch(&stream, lease.block(), 0..lease.bytes(), SECOND);
    drop(lease);
    fail_once(&device, DriverCall::Query);
    assert_eq!(pool.trim(), 0);
    assert_innocent(&device);
}

#[test]
fn a_pool_that_ends_waits_for_work_whose_end_was_not_marked() {
    let (device, stream, pool) = pool(GiveBack::Never);
    let unmarked = pool.lease(4 * MIB, &stream).unwrap();
    device.launch(&stream, unmarked.block(), 0..unmarked.bytes(), SECOND);
    fail_once(&device, DriverCall::Record);
    drop(unmarked);
    drop(pool);
    assert_eq!(device.taken_bytes(), 0);
    assert_innocent(&device);
}

/// What was refused for another reason than too little memory is not asked for again.
#[test]
fn where_the_usual_size_is_not_to_be_had_what_is_needed_is_taken() {
    let (device, stream, pool) = pool(GiveBack::After(Duration::from_secs(5)));
    fail_once(&device, DriverCall::Create);
    let refused = pool.lease(64 * MIB, &stream).unwrap_err();
    assert_eq!(refused.remedy(), Remedy::Reject);
    for _ in 0..30 {
        drop(pool.lease(64 * MIB, &stream).unwrap());
        device.advance(SECOND);
        pool.maintain();
    }
    device.advance(100 * SECOND);
    pool.maintain();
    device.neighbour_takes((1 << 30) - 20 * MIB);
    assert_eq!(pool.lease(10 * MIB, &stream).unwrap().bytes(), 10 * MIB, "64 MiB were usual");
}

/// What was refused is not counted as given, and what the source failed is counted.
#[test]
fn what_fails_is_counted_once_as_what_it_was() {
    let (device, stream, pool) = pool(GiveBack::Never);
    device.neighbour_takes(device.available().unwrap());
    pool.lease(MIB, &stream).unwrap_err();
    let leases = pool.statistics().leases;
    assert_eq!((leases.grown, leases.refused), (0, 1));
    device.neighbour_gives(1 << 30);
    drop(pool.lease(MIB, &stream).unwrap());
    let before = pool.statistics().failures;
    fail_once(&device, DriverCall::Wait);
    pool.lease(MIB, &device.stream()).unwrap_err();
    assert_eq!(pool.statistics().failures, before + 1);
    assert_eq!(pool.maintain().recovered, 1);
}
