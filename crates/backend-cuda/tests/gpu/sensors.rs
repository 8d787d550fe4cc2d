//! What a device says of itself.

use std::time::{Duration, Instant};

use vecmill_backend_cuda::{Gpu, PlainSource, Sensors};
use vecmill_memory::Source;

use super::{GRANULE, MIB, device};

#[test]
#[ignore = "needs a CUDA device"]
fn a_device_tells_its_heat_power_clock_and_errors() {
    let (_guard, device) = device();
    let mut sensors = Sensors::open(device.info()).unwrap();
    sensors.read();
    let began = Instant::now();
    let state = sensors.read();
    let took = began.elapsed();
    println!("{state:#?}\nin {took:?}");
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert!((5..110).contains(&state.temperature_celsius.unwrap()), "{state:?}");
    assert!((1.0..2500.0).contains(&state.power_watts.unwrap()), "{state:?}");
    let clock = state.clock_hertz.unwrap();
    assert!(clock >= 100_000_000 && clock <= state.max_clock_hertz.unwrap(), "{state:?}");
    assert!((0.0..=1.0).contains(&state.utilization.unwrap()), "{state:?}");
    assert!(state.throttling.is_some(), "{state:?}");
    if let Some(errors) = state.xid_errors {
        assert_eq!(errors.total, 0, "nothing has gone wrong since it was opened");
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn memory_is_that_of_the_very_device_also_for_a_part_of_it() {
    let (_guard, device) = device();
    let part = Gpu::open_part(0, 16).unwrap();
    let mut sensors = [&device, &part].map(|device| Sensors::open(device.info()).unwrap());
    let mut read = || sensors.each_mut().map(|sensors| sensors.read().memory.unwrap());
    let source = PlainSource::new(&device);
    let before = read();
    let taken = 512 * MIB;
    let block = source.allocate(taken).unwrap();
    for (before, now) in before.iter().zip(read()) {
        let lost = before.free_bytes - now.free_bytes;
        assert!((taken..taken + 64 * GRANULE).contains(&lost), "{before:?} {now:?}");
        assert!(now.used_bytes >= before.used_bytes + taken, "{before:?} {now:?}");
        assert!(now.own_bytes.is_none_or(|own| own >= taken && own <= now.used_bytes), "{now:?}");
    }
    source.release(block).unwrap();
}
