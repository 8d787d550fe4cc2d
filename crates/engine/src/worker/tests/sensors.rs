//! What follows from sensors, by readings that are invented.

use std::sync::mpsc::sync_channel;

use vecmill_backend_cuda::{MemoryUse, Throttling, XidErrors};

use super::*;
use crate::sensors::{SensedDevice, SensorLoop, Sensors, look};

/// What a device's sensors are to say from now on.
type Reading = Arc<Mutex<GpuState>>;

/// The rig's devices, all on one GPU, with sensors.
fn watched(rig: &Rig) -> (Vec<SensedDevice>, Vec<Reading>) {
    let readings: Vec<Reading> = rig.devices.iter().map(|_| Reading::default()).collect();
    let watched = rig.devices.iter().zip(&readings).enumerate();
    let watched = watched.map(|(index, (device, reading))| {
        let (device, reading) = (device.clone() as Arc<dyn Worker>, Arc::clone(reading));
        let read = Box::new(move || reading.lock().unwrap().clone());
        SensedDevice { index, device, sensors: Sensors { gpu: "one".into(), read } }
    });
    (watched.collect(), readings)
}

fn two_devices() -> Rig {
    Rig::of(Setup { devices: vec!["one", "two"], ..Setup::default() })
}

fn serves(rig: &Rig, device: &str) -> bool {
    rig.metrics().contains(&format!("vecmill_device_in_service{{device=\"{device}\"}} 1"))
}

#[test]
fn a_fault_takes_a_device_out_and_it_comes_back_when_it_works() {
    let mut rig = two_devices();
    let (mut watched, readings) = watched(&rig);
    let seen = look(&rig.core.queue, &mut watched, &vec![]);
    readings[0].lock().unwrap().xid_errors = Some(XidErrors::default().and(31));
    let seen = look(&rig.core.queue, &mut watched, &seen);
    assert!(serves(&rig, "one"), "some program's mistake");

    readings[0].lock().unwrap().xid_errors = Some(XidErrors::default().and(31).and(48));
    let seen = look(&rig.core.queue, &mut watched, &seen);
    assert!(!serves(&rig, "one") && serves(&rig, "two"));
    rig.start();
    wait_until(|| {
        assert_eq!(vectors(rig.ask(3).recv().unwrap()).len(), 3);
        serves(&rig, "one")
    });
    look(&rig.core.queue, &mut watched, &seen);
    assert!(serves(&rig, "one"), "the fault is no new one");
}

#[test]
fn memory_errors_count_from_when_the_device_is_watched_and_the_last_device_stays() {
    let rig = two_devices();
    let (mut watched, readings) = watched(&rig);
    let errors = |count| readings[1].lock().unwrap().ecc_uncorrected_errors = Some(count);
    errors(7);
    let seen = look(&rig.core.queue, &mut watched, &vec![]);
    assert!(serves(&rig, "two"), "they are from before");
    errors(8);
    let seen = look(&rig.core.queue, &mut watched, &seen);
    assert!(!serves(&rig, "two"));
    readings[0].lock().unwrap().ecc_uncorrected_errors = Some(0);
    let seen = look(&rig.core.queue, &mut watched, &seen);
    readings[0].lock().unwrap().ecc_uncorrected_errors = Some(1);
    look(&rig.core.queue, &mut watched, &seen);
    assert!(serves(&rig, "one"));
}

#[test]
fn batches_are_planned_for_what_others_leave() {
    let mut rig = Rig::of(Setup::default());
    let (mut watched, readings) = watched(&rig);
    let mut free = |bytes| {
        let memory = MemoryUse { free_bytes: bytes, used_bytes: 100 * MIB, own_bytes: None };
        readings[0].lock().unwrap().memory = Some(memory);
        look(&rig.core.queue, &mut watched, &vec![]);
        rig.core.queue.statistics()[0].batch_tokens
    };
    assert_eq!(free(64 * MIB), BATCH_TOKENS, "as much as the budget is");
    let (less, least) = (free(8 * MIB), free(0));
    assert!(least < less && less < BATCH_TOKENS, "{least} {less}");
    assert_eq!(least, rig.device().limits(CLASS).unwrap().max_tokens, "any one input fits");
    assert_eq!(free(64 * MIB), BATCH_TOKENS, "it is back");

    free(8 * MIB);
    rig.faults[0].leave(8 * MIB);
    let answer = rig.ask(400);
    rig.queued(400);
    rig.start();
    assert_eq!(vectors(answer.recv().unwrap()).len(), 400);
    assert_eq!(rig.statistics().leases.refused, 0, "nothing was tried that can't be had");
}

#[test]
fn figures_are_told_for_devices_that_have_them() {
    let rig = two_devices();
    let (mut watched, readings) = watched(&rig);
    let lease = rig.devices[1].pool.lease(6 * MIB, &()).unwrap();
    *readings[0].lock().unwrap() = GpuState {
        temperature_celsius: Some(93),
        power_watts: Some(310.5),
        clock_hertz: Some(1_200_000_000),
        max_clock_hertz: Some(1_980_000_000),
        throttling: Some(Throttling { thermal: true, ..Throttling::default() }),
        memory: Some(MemoryUse { free_bytes: 0, used_bytes: 10 * MIB, own_bytes: None }),
        ecc_uncorrected_errors: Some(2),
        xid_errors: Some(XidErrors::default().and(31)),
        ..GpuState::default()
    };
    let states = look(&rig.core.queue, &mut watched, &vec![]).into_iter();
    let named = |(index, state): (usize, _)| (rig.devices[index].name().to_owned(), state);
    let metrics = rig.metrics_with(states.map(named).collect());
    for figure in [
        "temperature_celsius{device=\"one\"} 93.0",
        "power_watts{device=\"one\"} 310.5",
        "clock_hertz{device=\"one\"} 1200000000.0",
        "clock_max_hertz{device=\"one\"} 1980000000.0",
        "throttled{device=\"one\",reason=\"thermal\"} 1",
        "throttled{device=\"one\",reason=\"power_cap\"} 0",
        "memory_used_by_others_bytes{device=\"one\"} 4194304.0",
        "ecc_uncorrected_errors_total{device=\"one\"} 2",
        "xid_errors_total{device=\"one\"} 1",
    ] {
        assert!(metrics.contains(&format!("vecmill_device_{figure}\n")), "{figure} in {metrics}");
    }
    assert!(!metrics.contains("power_limit_watts{") && !metrics.contains("celsius{device=\"two\""));
    drop(lease);
}

#[test]
fn without_sensors_nothing_is_said_and_all_works() {
    let mut rig = Rig::of(Setup::default());
    let sensors = SensorLoop::start(Arc::clone(&rig.core.queue), Vec::new()).unwrap();
    assert_eq!(sensors.states(), vec![]);
    rig.start();
    assert_eq!(vectors(rig.ask(3).recv().unwrap()).len(), 3);
    for absent in ["temperature", "throttled", "xid_errors"] {
        assert!(!rig.metrics().contains(absent), "{absent}");
    }
}

#[test]
fn sensors_that_hang_hold_nothing_up() {
    let mut rig = Rig::of(Setup::default());
    let (mut watched, _) = watched(&rig);
    let ((entered, hangs), (_never, ends)) = (sync_channel(1), sync_channel::<()>(0));
    watched[0].sensors.read = Box::new(move || {
        entered.send(()).unwrap();
        let _ = ends.recv();
        GpuState::default()
    });
    let sensors = SensorLoop::start(Arc::clone(&rig.core.queue), watched).unwrap();
    hangs.recv().unwrap();
    rig.start();
    assert_eq!(vectors(rig.ask(3).recv().unwrap()).len(), 3);
    assert_eq!(sensors.states(), vec![]);
    drop(sensors);
}
