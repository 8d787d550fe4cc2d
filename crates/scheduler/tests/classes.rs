//! Several classes of work: each gets its part of the devices' time, and none waits for good.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what must hold by panicking")]

mod support;

use std::time::Duration;

use proptest::prelude::*;
use support::{CLASS, GPU, World, slower};
use vecmill_scheduler::{
    ClassId, Coefficients, JobTerms, Next, Priority, Refused, Settings, policy::PolicyName,
};

const BULK: JobTerms = JobTerms { priority: Priority::Bulk, deadline: None };

/// Keeps so many tokens of each class waiting, until `end`.
fn keep_busy(world: &mut World, classes: &[(ClassId, JobTerms)], end: Duration) {
    let mut id = 0;
    world.run(end, |world| {
        for &(class, terms) in classes {
            while world.scheduler.class_statistics(class).tokens < 40_000 {
                let lengths = [20, 60, 100, 180].map(|tokens| (id, tokens));
                world.push_of(class, terms, lengths);
                id += 1;
            }
        }
        Some(world.now + Duration::from_millis(2))
    });
}

/// Device-seconds that a class has had.
fn had(world: &World, class: ClassId) -> f64 {
    world.scheduler.class_statistics(class).device_seconds
}

/// The classes of the batches that a device has.
fn running(world: &World, device: usize) -> Vec<ClassId> {
    world.devices[device].running.iter().map(|run| run.class).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn busy_classes_have_device_seconds_by_their_weight(
        weight in 0.2f64..5.0,
        factor in 0.2f64..20.0,
        devices in prop::collection::vec(1.0f64..5.0, 1..4),
        policy in prop::sample::select(PolicyName::ALL.to_vec()),
    ) {
        // Of what was assigned to one of several, more may wait there than elsewhere: a class is busy on
        // all of them only where that is dealt with when they ask.
        let count = if policy == PolicyName::EarliestFinish { devices.len() } else { 1 };
        let devices = &devices[..count];
        let truth: Vec<Coefficients> = devices.iter().map(|&factor| slower(GPU, factor)).collect();
        let mut world = World::known(policy, &truth);
        let all: Vec<usize> = (0..truth.len()).collect();
        let second = world.add_class(weight, factor, &all);
        let terms = JobTerms::default();
        keep_busy(&mut world, &[(CLASS, terms), (second, terms)], Duration::from_secs(20));
        let worth = |class| world.scheduler.class_statistics(class).fastest_seconds;
        let busy = (had(&world, CLASS) + had(&world, second)) / (20.0 * devices.len() as f64);
        prop_assert!(busy > 0.9, "{busy}");
        let (first, second) = (worth(CLASS), worth(second));
        // No class is ahead of another by more than the batches that devices have at once.
        let longest = 4096.0 * (GPU.per_token + 200.0 * GPU.per_square) + GPU.fixed;
        let largest = longest * devices.iter().fold(0.0f64, |a, &b| a.max(b)) * factor.max(1.0);
        let bound = 2.0 * largest * (devices.len() + 1) as f64 * (1.0 + 1.0 / weight);
        prop_assert!(
            (first - second / weight).abs() < bound,
            "{first} and {second} by {weight}, bound {bound}"
        );
    }

    #[test]
    fn a_class_that_was_idle_gets_no_more_than_its_part(idle in 1u64..20) {
        let mut world = World::known(PolicyName::EarliestFinish, &[GPU]);
        let second = world.add_class(1.0, 1.0, &[0]);
        let terms = JobTerms::default();
        keep_busy(&mut world, &[(CLASS, terms)], Duration::from_secs(idle));
        let (first, end) = (had(&world, CLASS), world.now + Duration::from_secs(2));
        keep_busy(&mut world, &[(CLASS, terms), (second, terms)], end);
        let (first, second) = (had(&world, CLASS) - first, had(&world, second));
        prop_assert!((first - second).abs() < 0.2, "{first} and {second}");
    }

    #[test]
    fn bulk_work_of_one_class_does_not_starve_behind_interactive_work_of_another(
        factor in 0.2f64..20.0,
        policy in prop::sample::select(PolicyName::ALL.to_vec()),
    ) {
        let mut world = World::known(policy, &[GPU]);
        let second = world.add_class(1.0, factor, &[0]);
        world.push_of(second, BULK, (1_000_000..1_000_200).map(|id| (id, 100)));
        keep_busy(&mut world, &[(CLASS, JobTerms::default())], Duration::from_secs(8));
        let late = world.done.iter().filter(|done| done.0 >= 1_000_000);
        let last = late.clone().map(|done| done.2).max().unwrap();
        prop_assert_eq!(late.count(), 200);
        prop_assert!(last > Settings::default().bulk_age, "{:?}", last);
    }
}

#[test]
fn interactive_work_of_any_class_goes_before_bulk_work() {
    let mut world = World::known(PolicyName::EarliestFinish, &[GPU]);
    let second = world.add_class(1.0, 1.0, &[0]);
    world.push(BULK, (0..200).map(|id| (id, 50)));
    world.push_of(second, JobTerms::default(), [(1000, 50)]);
    assert_eq!(world.ask(0), Next::Batch);
    assert_eq!(running(&world, 0), [second]);
}

#[test]
fn a_class_that_no_device_serves_is_refused_and_what_waits_of_it_hears_so_in_time() {
    let mut world = World::known(PolicyName::EarliestFinish, &[GPU, GPU]);
    let second = world.add_class(1.0, 1.0, &[]);
    assert_eq!(world.scheduler.admit(world.now, second, 1, None), Err(Refused::NoDevice));
    world.scheduler.admit(world.now, CLASS, 1, None).unwrap();
    world.serve(1, second);
    world.scheduler.admit(world.now, second, 1, None).unwrap();
    world.push_of(second, JobTerms::default(), [(1, 50)]);
    world.scheduler.retire(world.now, 1, second);
    world.push(JobTerms::default(), [(2, 50)]);
    world.check();
    world.run(world.now + Duration::from_secs(1), |_| None);
    assert_eq!((world.done.len(), world.dropped.len()), (1, 0), "the other class is served");
    world.now += Settings::default().no_device_patience;
    world.check();
    assert_eq!(world.dropped, [1]);
    assert!(world.scheduler.is_served(world.now, CLASS));
}

#[test]
fn a_device_that_a_class_is_retired_from_ends_its_batches_and_begins_none() {
    for policy in PolicyName::ALL {
        let mut world = World::known(policy, &[GPU, GPU]);
        let second = world.add_class(1.0, 1.0, &[0, 1]);
        for id in 0..100 {
            world.push_of(second, JobTerms::default(), (0..20).map(|_| (id, 100)));
        }
        assert_eq!([world.ask(0), world.ask(1)], [Next::Batch; 2], "{policy}");
        world.scheduler.retire(world.now, 0, second);
        assert_eq!(running(&world, 0), [second]);
        assert!(matches!(world.ask(0), Next::Wait { .. }), "{policy}");
        world.push(JobTerms::default(), [(1000, 50)]);
        world.run(world.now + Duration::from_secs(10), |_| None);
        assert_eq!(world.done.len(), 2001, "{policy}");
        let statistics = world.scheduler.statistics(world.now, second);
        assert_eq!((statistics[0].batches, statistics[0].serves), (1, false), "{policy}");
        // It comes back.
        world.serve(0, second);
        world.push_of(second, JobTerms::default(), (0..200).map(|id| (id, 100)));
        world.run(world.now + Duration::from_secs(10), |_| None);
        assert!(world.scheduler.statistics(world.now, second)[0].batches > 1, "{policy}");
    }
}

#[test]
fn what_fails_is_tried_by_a_device_that_serves_its_class() {
    let mut world = World::known(PolicyName::EarliestFinish, &[GPU, GPU, GPU]);
    let second = world.add_class(1.0, 1.0, &[0, 2]);
    world.push_of(second, JobTerms::default(), [(0, 50)]);
    assert_eq!(world.ask(0), Next::Batch);
    assert_eq!(world.fail(0), Vec::<u64>::new());
    assert!(matches!(world.ask(1), Next::Wait { .. }), "it doesn't serve the class");
    assert_eq!(world.ask(2), Next::Batch);
    assert_eq!(running(&world, 2), [second]);
}

#[test]
fn a_closed_scheduler_ends_although_a_class_is_served_by_none() {
    let mut world = World::known(PolicyName::EarliestFinish, &[GPU]);
    let second = world.add_class(1.0, 1.0, &[0]);
    world.scheduler.admit(world.now, second, 1, None).unwrap();
    world.push_of(second, JobTerms::default(), [(0, 50)]);
    world.scheduler.retire(world.now, 0, second);
    world.scheduler.close();
    world.check();
    world.now += Settings::default().no_device_patience;
    world.check();
    assert_eq!(world.dropped, [0]);
    world.scheduler.release(1);
    assert_eq!(world.ask(0), Next::Over);
}
