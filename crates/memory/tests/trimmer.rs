//! What the pool keeps, gives back and makes ready; and how it gives way when memory runs out.
#![expect(clippy::unwrap_used, reason = "helpers of tests speak by panicking")]

mod support;

use std::time::Duration;

use vecmill_memory::{Cause, GiveBack, LeaseError, Pool, PoolSettings, Remedy, Source};
use vecmill_testing::simulated::{Fault, SimulatedDevice};

use support::{MIB, SECOND, pool, work};

#[test]
fn after_a_spike_what_is_held_returns_to_what_is_used() {
    let (device, _, pool) = pool(GiveBack::After(Duration::from_secs(10)));
    work(&device, &pool, &[40, 30], 30);
    let before = pool.statistics().held_bytes;
    assert_eq!(before, 70 * MIB);
    work(&device, &pool, &[200, 200, 200], 2);
    assert_eq!(pool.statistics().held_bytes, 600 * MIB);
    work(&device, &pool, &[40, 30], 5);
    assert_eq!(pool.statistics().held_bytes, 600 * MIB, "not before the period is over");
    work(&device, &pool, &[40, 30], 8);
    assert_eq!(pool.statistics().held_bytes, before);
    assert!(device.violations().is_empty());
}

#[test]
fn a_spike_is_given_back_although_the_slabs_are_never_idle() {
    let (device, stream, pool) = pool(GiveBack::After(Duration::from_secs(5)));
    let mut held = Some(pool.lease(300 * MIB, &stream).unwrap());
    for _ in 0..100 {
        drop(held.take());
        // Leased again at once: upkeep always finds it out.
        held = Some(pool.lease(20 * MIB, &stream).unwrap());
        device.advance(SECOND / 10);
        pool.maintain();
    }
    assert_eq!(pool.statistics().held_bytes, 20 * MIB);
}

#[test]
fn idle_memory_goes_and_comes_back_ahead_of_demand() {
    let (device, stream, pool) = pool(GiveBack::After(Duration::from_secs(5)));
    work(&device, &pool, &[64, 48, 32], 60);
    device.advance(1000 * SECOND);
    pool.maintain();
    assert_eq!(pool.statistics().held_bytes, 0, "nothing is needed at night");
    drop(pool.lease(10 * MIB, &stream).unwrap());
    let ready = pool.maintain();
    assert!(ready.made_ready_bytes >= (48 + 32) * MIB, "{ready:?}");
    let grown = pool.statistics().leases.grown;
    work(&device, &pool, &[64, 48, 32], 1);
    assert_eq!(pool.statistics().leases.grown, grown, "the first batches of the morning are warm");
}

#[test]
fn never_means_never_and_now_means_now() {
    let (device, _, pool) = pool(GiveBack::Never);
    work(&device, &pool, &[100], 1);
    device.advance(100_000 * SECOND);
    pool.maintain();
    assert_eq!(pool.statistics().held_bytes, 100 * MIB);
    assert_eq!(pool.trim(), 100 * MIB);
}

#[test]
fn steady_work_makes_no_driver_calls() {
    let (device, _, pool) = pool(GiveBack::After(Duration::from_secs(5)));
    work(&device, &pool, &[64, 48, 32], 20);
    let before = device.calls();
    work(&device, &pool, &[64, 48, 32], 200);
    assert_eq!(device.calls(), before);
}

#[test]
fn a_neighbour_that_takes_the_memory_is_survived() {
    let (device, stream, pool) = pool(GiveBack::Never);
    work(&device, &pool, &[200, 100], 3);
    assert!(device.neighbour_takes(device.available().unwrap()));
    // What is held still works, and idle slabs are turned into the one that is needed.
    let lease = pool.lease(280 * MIB, &stream).unwrap();
    let refused = pool.lease(100 * MIB, &stream).unwrap_err();
    assert!(matches!(refused, LeaseError::Pressure { .. }), "{refused}");
    assert_eq!(refused.remedy(), Remedy::Wait);
    drop(lease);
    let refused = pool.lease(400 * MIB, &stream).unwrap_err();
    assert_eq!(refused.remedy(), Remedy::Split, "{refused}");
    device.neighbour_gives(500 * MIB);
    assert!(pool.lease(400 * MIB, &stream).is_ok());
    assert_eq!(pool.statistics().refused_with_room, 0);
}

/// A busy little scene that calls the source in every way; panics only where the pool is wrong.
fn scenario(device: &SimulatedDevice, pool: &Pool<SimulatedDevice>) {
    let streams = [device.stream(), device.stream()];
    for round in 0..4usize {
        let sizes = [20 + 30 * round, 10, 60];
        let leases: Vec<_> = sizes
            .iter()
            .enumerate()
            .filter_map(|(index, mib)| {
                let stream = &streams[index % 2];
                let lease = pool.lease(mib * MIB, stream).ok()?;
                device.launch(stream, lease.block(), 0..lease.bytes(), SECOND / 100);
                Some(lease)
            })
            .collect();
        drop(leases);
        device.advance(SECOND);
        pool.maintain();
        if round == 2 {
            device.advance(20 * SECOND);
            pool.maintain();
            pool.trim();
        }
        assert_eq!(pool.statistics().held_bytes, device.taken_bytes());
    }
}

fn survives(fault: impl Fn(u64) -> Fault, in_place: bool) -> u64 {
    for n in 0.. {
        let device = SimulatedDevice::new(1 << 30).instant().in_place(in_place);
        let settings = PoolSettings {
            give_back: GiveBack::After(Duration::from_secs(2)),
            ..PoolSettings::default()
        };
        let pool = Pool::with_settings(device.clone(), 1 << 30, settings);
        device.inject(fault(n));
        scenario(&device, &pool);
        let calls = device.call_count();
        device.clear_faults();
        // Whatever failed, the pool works again, and all comes back.
        pool.maintain();
        let stream = device.stream();
        for mib in [5, 50, 500] {
            drop(pool.lease(mib * MIB, &stream).unwrap());
        }
        device.advance(SECOND);
        pool.maintain();
        pool.trim();
        let now = pool.statistics();
        assert_eq!((now.held_bytes, device.taken_bytes()), (0, 0), "after failing call {n}");
        assert!(device.violations().is_empty(), "call {n}: {:?}", device.violations());
        if n > calls {
            return n;
        }
    }
    unreachable!()
}

#[test]
fn every_call_of_the_source_may_fail() {
    for in_place in [true, false] {
        for cause in [Cause::Exhausted, Cause::Failed] {
            let calls = survives(|n| Fault::Nth { n, of: None, cause }, in_place);
            assert!(calls > 30, "the scenario makes {calls} calls");
        }
    }
}

#[test]
fn a_lost_device_loses_no_account() {
    let device = SimulatedDevice::new(1 << 30).instant();
    let pool = Pool::new(device.clone(), 1 << 30);
    let stream = device.stream();
    let lease = pool.lease(64 * MIB, &stream).unwrap();
    device.launch(&stream, lease.block(), 0..lease.bytes(), SECOND);
    device.inject(Fault::Lost);
    drop(lease); // its end can't be marked
    assert_eq!(pool.lease(200 * MIB, &stream).unwrap_err().remedy(), Remedy::Reject);
    let maintained = pool.maintain();
    assert_eq!(maintained.recovered, 1);
    let now = pool.statistics();
    assert_eq!((now.leased_bytes, now.held_bytes), (0, 0));
    assert!(now.failures > 0 && now.last_failure.is_some());
}

#[test]
fn slow_events_delay_reuse_and_nothing_else() {
    let (device, stream, pool) = pool(GiveBack::Never);
    device.inject(Fault::SlowEvents { delay: 5 * SECOND });
    for _ in 0..10 {
        let lease = pool.lease(30 * MIB, &stream).unwrap();
        device.launch(&stream, lease.block(), 0..lease.bytes(), SECOND);
        drop(lease);
    }
    assert_eq!(pool.statistics().slabs, 1, "the same stream needs no event");
    assert_eq!(pool.trim(), 0);
    device.synchronize(&stream);
    device.advance(5 * SECOND);
    assert_eq!(pool.trim(), 30 * MIB);
    assert!(device.violations().is_empty());
}
