//! Speeds are learned whatever is believed at first, and followed when they change.

mod support;

use std::time::Duration;

use proptest::prelude::*;
use support::{CLASS, GPU, World, measured, slower};
use vecmill_scheduler::policy::PolicyName;
use vecmill_scheduler::{Coefficients, Speed};

/// How far the devices' weights are from what they should be.
fn off(world: &mut World) -> f64 {
    let full = |model: &Coefficients| {
        // Full batches of the traffic's inputs: 8 to 120 tokens, long ones counting more.
        4096.0 / (model.fixed + model.marginal(78.0) * 4096.0)
    };
    let all: f64 = world.devices.iter().map(|device| full(&device.model)).sum();
    let statistics = world.scheduler.statistics(world.now, CLASS);
    let each = world.devices.iter().zip(statistics);
    each.map(|(device, found)| (found.weight / (full(&device.model) / all) - 1.0).abs())
        .fold(0.0, f64::max)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn no_belief_locks_a_device_in(
        // Times that each device is believed to be slower than it is.
        wrong in prop::array::uniform3(-3.0f64..3.0),
        policy in prop::sample::select(vec![PolicyName::EarliestFinish, PolicyName::Weighted]),
        from_warm_up in any::<bool>(),
    ) {
        let truth = [5.0, 20.0, 10.0].map(|factor| slower(GPU, factor));
        let believed: Vec<Speed> = truth.iter().zip(wrong).map(|(&model, wrong)| {
            let model = slower(model, 10f64.powf(wrong));
            if from_warm_up { measured(&model) } else { Speed::kept(model) }
        }).collect();
        let mut world = World::new(policy, &truth, &believed);
        world.run_load(0.7, Duration::from_secs(80));
        let left = off(&mut world);
        prop_assert!(left < 0.15, "{left}: {:?}", world.scheduler.statistics(world.now, CLASS));
    }
}

#[test]
fn a_device_that_turns_three_times_slower_has_its_share_within_20_batches() {
    for policy in [PolicyName::EarliestFinish, PolicyName::Weighted] {
        let mut world = World::known(policy, &[GPU, GPU]);
        world.run_load(0.7, Duration::from_secs(5));
        assert!(off(&mut world) < 0.05, "{policy}");
        world.devices[1].model = slower(GPU, 3.0);
        let before = world.scheduler.statistics(world.now, CLASS)[1].batches;
        while world.scheduler.statistics(world.now, CLASS)[1].batches < before + 22 {
            let end = world.now + Duration::from_millis(2);
            world.run_load(0.7, end);
        }
        assert!(off(&mut world) < 0.1, "{policy}: {}", off(&mut world));
    }
}
