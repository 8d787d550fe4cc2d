//! Turns that the pool takes rarely: slabs that were to shrink, what is kept, what is taken first,
//! and waiting that wakes itself.
#![expect(clippy::unwrap_used, reason = "helpers of tests speak by panicking")]

mod support;

use std::time::Duration;

use vecmill_memory::recording::What;
use vecmill_memory::{GiveBack, Lease, Pool, PoolSettings, Source};
use vecmill_testing::simulated::{SimulatedDevice, SimulatedStream};

use support::{MIB, SECOND, assert_innocent, pool, pool_over, work};

/// A small batch on a slab of 300 MiB that is to shrink to 20 MiB when it is leased next.
fn mark_to_shrink<'a>(
    device: &SimulatedDevice,
    pool: &'a Pool<SimulatedDevice>,
    stream: &SimulatedStream,
) -> Lease<'a, SimulatedDevice> {
    drop(pool.lease(300 * MIB, stream).unwrap());
    let small = pool.lease(20 * MIB, stream).unwrap();
    for _ in 0..10 {
        device.advance(SECOND);
        pool.maintain();
    }
    assert_eq!(small.bytes(), 300 * MIB);
    small
}

#[test]
fn a_slab_that_grew_is_not_shrunk_by_an_older_wish() {
    let (device, stream, pool) = pool(GiveBack::After(Duration::from_secs(5)));
    drop(mark_to_shrink(&device, &pool, &stream));
    drop(pool.lease(310 * MIB, &stream).unwrap());
    let before = device.calls();
    drop(pool.lease(20 * MIB, &stream).unwrap());
    drop(pool.lease(310 * MIB, &stream).unwrap());
    assert_eq!(device.calls(), before);
}

#[test]
fn a_new_slab_does_not_inherit_the_wish_to_shrink() {
    let (device, stream, pool) = pool(GiveBack::After(Duration::from_secs(5)));
    drop(mark_to_shrink(&device, &pool, &stream));
    pool.trim();
    drop(pool.lease(310 * MIB, &stream).unwrap());
    drop(pool.lease(20 * MIB, &stream).unwrap());
    assert_eq!(pool.statistics().held_bytes, 310 * MIB);
}

#[test]
fn a_batch_gets_what_it_asked_for_of_a_slab_that_was_to_shrink() {
    let (device, stream, pool) = pool(GiveBack::After(Duration::from_secs(5)));
    drop(mark_to_shrink(&device, &pool, &stream));
    let lease = pool.lease(100 * MIB, &stream).unwrap();
    assert_eq!(lease.bytes(), 300 * MIB);
}

#[test]
fn a_slab_that_is_needed_again_is_not_shrunk() {
    let (device, stream, pool) = pool(GiveBack::After(Duration::from_secs(5)));
    let small = mark_to_shrink(&device, &pool, &stream);
    let large = [(); 2].map(|()| pool.lease(300 * MIB, &stream).unwrap());
    pool.maintain(); // no, three of 300 MiB are wanted now
    drop(small);
    drop(pool.lease(20 * MIB, &stream).unwrap());
    assert_eq!(pool.statistics().held_bytes, 900 * MIB);
    drop(large);
}

#[test]
fn a_little_too_much_is_kept_and_more_is_not() {
    for (spike, kept) in [(34, 34), (36, 32), (540, 540), (546, 512)] {
        let (device, _, pool) = pool(GiveBack::After(Duration::from_secs(5)));
        let usual = if spike < 100 { 32 } else { 512 };
        work(&device, &pool, &[spike], 1);
        work(&device, &pool, &[usual], 20);
        assert_eq!(pool.statistics().held_bytes, kept * MIB, "after {spike} MiB");
    }
}

#[test]
fn where_slabs_cannot_shrink_a_spike_is_given_back_all_the_same() {
    let device = SimulatedDevice::new(1 << 30).instant().in_place(false);
    let pool = pool_over(&device, GiveBack::After(Duration::from_secs(10)));
    work(&device, &pool, &[41, 33], 30);
    let before = pool.statistics().held_bytes;
    work(&device, &pool, &[200, 200, 200], 2);
    work(&device, &pool, &[41, 33], 20);
    assert_eq!(pool.statistics().held_bytes, before, "{:?}", device.blocks());
    let calls = device.calls();
    work(&device, &pool, &[41, 33], 100);
    assert_eq!(device.calls(), calls, "and then it is left alone");
}

#[test]
fn a_slab_that_could_not_be_made_ready_stays_as_it_was() {
    let (device, stream, pool) = pool(GiveBack::After(Duration::from_secs(5)));
    work(&device, &pool, &[64], 30);
    device.advance(100 * SECOND);
    pool.maintain();
    device.neighbour_takes((1 << 30) - 20 * MIB);
    drop(pool.lease(10 * MIB, &stream).unwrap());
    assert_eq!(pool.maintain().made_ready_bytes, 0);
    let now = pool.statistics();
    assert_eq!((now.idle_bytes, now.held_bytes), (10 * MIB, 10 * MIB));
    assert_eq!(device.taken_bytes(), 10 * MIB);
}

#[test]
fn a_new_slab_is_as_large_as_its_rank_usually_needs() {
    let (device, stream, pool) = pool(GiveBack::After(Duration::from_secs(5)));
    work(&device, &pool, &[64, 48], 30);
    device.advance(100 * SECOND);
    pool.maintain();
    let leases = [(); 2].map(|()| pool.lease(10 * MIB, &stream).unwrap());
    assert_eq!(leases.each_ref().map(|lease| lease.bytes()), [64 * MIB, 48 * MIB]);
}

#[test]
fn without_prediction_nothing_is_made_ready() {
    let device = SimulatedDevice::new(1 << 30).instant();
    let give_back = GiveBack::After(Duration::from_secs(5));
    let settings = PoolSettings { give_back, predict: false, ..PoolSettings::default() };
    let pool = Pool::with_settings(device.clone(), 1 << 30, settings);
    work(&device, &pool, &[64, 48], 30);
    device.advance(100 * SECOND);
    pool.maintain();
    work(&device, &pool, &[64], 1);
    assert_eq!(pool.statistics().slabs, 1);
}

/// It would hang if the trimmer did nothing, or did not stop.
#[test]
fn a_trimmer_maintains_until_it_is_dropped() {
    let (device, stream, pool) = pool(GiveBack::After(Duration::from_secs(5)));
    drop(pool.lease(64 * MIB, &stream).unwrap());
    device.advance(100 * SECOND);
    let trimmer = pool.trimmer(Duration::from_millis(1)).unwrap();
    while pool.statistics().held_bytes > 0 {
        std::thread::yield_now();
    }
    drop(trimmer);
    drop(pool.trimmer(Duration::from_secs(1 << 20)).unwrap());
}

#[test]
fn the_snuggest_slab_is_taken() {
    let (_, stream, pool) = pool(GiveBack::Never);
    drop([30, 10, 20].map(|mib| pool.lease(mib * MIB, &stream).unwrap()));
    drop(pool.lease(30 * MIB, &stream).unwrap());
    assert_eq!(pool.lease(6 * MIB, &stream).unwrap().bytes(), 10 * MIB);
}

#[test]
fn what_the_stream_does_after_the_mark_keeps_no_slab() {
    let (device, stream, pool) = pool(GiveBack::Never);
    let mut lease = pool.lease(4 * MIB, &stream).unwrap();
    device.launch(&stream, lease.block(), 0..lease.bytes(), SECOND);
    lease.record().unwrap();
    let other = pool.lease(2 * MIB, &stream).unwrap();
    device.launch(&stream, other.block(), 0..other.bytes(), 10 * SECOND);
    drop(lease);
    device.advance(SECOND);
    assert_eq!(pool.trim(), 4 * MIB);
    assert_innocent(&device);
}

#[test]
fn nobody_is_waited_for_after_the_wait() {
    let (_, stream, pool) = pool(GiveBack::Never);
    let lease = pool.lease(1 << 30, &stream).unwrap();
    pool.lease_waiting(MIB, &stream, Duration::from_millis(1)).unwrap_err();
    assert!(!pool.is_waited_for());
    drop(lease);
}

/// Somebody who waits looks again when something has changed, and now and then: he must not keep
/// the driver busy, nor wake himself.
#[test]
fn waiting_under_pressure_does_not_hammer_the_driver() {
    for idle in [false, true] {
        let (device, stream, pool) = pool(GiveBack::Never);
        let lease = pool.lease(100 * MIB, &stream).unwrap();
        if idle {
            let other = pool.lease(100 * MIB, &stream).unwrap();
            device.launch(&stream, other.block(), 0..other.bytes(), SECOND);
        }
        device.neighbour_takes(device.available().unwrap());
        let before = device.call_count();
        pool.lease_waiting(200 * MIB, &stream, Duration::from_millis(60)).unwrap_err();
        let calls = device.call_count() - before;
        assert!(calls < 500, "{calls} calls in 60 ms");
        drop(lease);
    }
}

#[test]
fn a_trace_calls_a_stream_by_one_number() {
    let (device, stream, pool) = pool(GiveBack::Never);
    let other = device.stream();
    for stream in [&stream, &other, &stream] {
        drop(pool.lease(MIB, stream).unwrap());
        device.advance(SECOND);
    }
    let streams = pool.recording().events.into_iter().filter_map(|event| match event.what {
        What::Lease { stream, .. } => Some(stream),
        _ => None,
    });
    assert_eq!(streams.collect::<Vec<_>>(), [0, 1, 0]);
}

#[test]
fn idle_slabs_make_way_for_weights() {
    let (device, stream, pool) = pool(GiveBack::Never);
    drop(pool.lease(700 * MIB, &stream).unwrap());
    let reserved = pool.reserve(400 * MIB).unwrap();
    assert_eq!(pool.statistics().held_bytes, 0, "the budget had no room for both");
    drop(reserved);
    // A neighbour has all but 100 MiB of what the pool does not hold.
    drop(pool.lease(500 * MIB, &stream).unwrap());
    assert!(device.neighbour_takes(424 * MIB));
    let region = pool.region(300 * MIB).unwrap();
    assert_eq!(region.bytes(), 300 * MIB);
    assert_eq!(pool.statistics().failures, 1, "the device's first refusal is counted");
    let lease = pool.lease(200 * MIB, &stream).unwrap();
    assert!(pool.region(200 * MIB).is_err(), "what is leased stays");
    drop(lease);
    assert_innocent(&device);
}
