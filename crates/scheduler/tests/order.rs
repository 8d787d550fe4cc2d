//! What goes first, what stays together, and what is not done at all.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what must hold by panicking")]

mod support;

use std::time::Duration;

use support::{CLASS, GPU, World, slower};
use vecmill_scheduler::{
    Coefficients, Dropped, Full, Health, JobTerms, Next, Priority, Refused, Settings, Size, Speed,
    policy::PolicyName,
};

const BULK: JobTerms = JobTerms { priority: Priority::Bulk, deadline: None };

fn until(deadline_ms: u64) -> JobTerms {
    JobTerms { deadline: Some(Duration::from_millis(deadline_ms)), ..JobTerms::default() }
}

/// The jobs of the batch that a device took last.
fn last(world: &World, device: usize) -> Vec<u64> {
    world.devices[device].running.back().unwrap().jobs.iter().map(|job| job.payload).collect()
}

#[test]
fn interactive_work_goes_before_bulk_and_bulk_takes_what_is_left() {
    let mut world = World::known(PolicyName::EarliestFinish, &[GPU]);
    world.push(BULK, (0..200).map(|id| (id, 50)));
    world.push(JobTerms::default(), (1000..1020).map(|id| (id, 50)));
    assert_eq!(world.ask(0), Next::Batch);
    let jobs = last(&world, 0);
    assert!(jobs[..20].iter().all(|&id| id >= 1000));
    assert_eq!(jobs.len(), 4096 / 50, "the rest of the batch is bulk");
}

#[test]
fn bulk_work_that_has_waited_long_gets_half_of_each_batch() {
    let mut world = World::known(PolicyName::EarliestFinish, &[GPU]);
    world.push(BULK, (0..20).map(|id| (id, 200)));
    let mut next = 1000;
    for _ in 0..2000 {
        // More interactive work than the device can do.
        world.push(JobTerms::default(), (next..next + 30).map(|id| (id, 200)));
        next += 30;
        world.ask(0);
        world.now += Duration::from_millis(5);
        world.finish(0);
    }
    let bulk = |world: &World| {
        let done = world.done.iter().filter(|done| done.0 < 1000);
        (done.clone().count(), done.map(|done| done.2).max())
    };
    let (count, last) = bulk(&world);
    assert_eq!(count, 20);
    assert!(last.unwrap() < Duration::from_millis(5100), "{last:?}");
}

#[test]
fn small_requests_stay_whole_and_large_ones_are_shared_by_devices() {
    let mut world = World::known(PolicyName::EarliestFinish, &[GPU, GPU]);
    world.push(JobTerms::default(), (0..10).map(|id| (id, 90)));
    assert_eq!(world.ask(0), Next::Batch);
    assert_eq!(last(&world, 0).len(), 10);
    assert!(matches!(world.ask(1), Next::Wait { .. }));
    world.run(Duration::from_secs(1), |_| None);
    world.push(JobTerms::default(), (100..200).map(|id| (id, 40)));
    assert_eq!([world.ask(0), world.ask(1)], [Next::Batch; 2]);
    let parts = [last(&world, 0).len(), last(&world, 1).len()];
    assert!(parts.iter().all(|part| (45..=55).contains(part)), "{parts:?}");
}

#[test]
fn long_inputs_go_to_the_device_that_is_relatively_good_at_them() {
    let at_short = Coefficients { per_token: 1e-6, per_square: 1e-8, ..GPU };
    let at_long = Coefficients { per_token: 2e-6, per_square: 0.0, ..GPU };
    let mut world = World::known(PolicyName::EarliestFinish, &[at_short, at_long]);
    world.run_load(0.8, Duration::from_secs(5));
    let first = world.done.len();
    for id in 0..4000 {
        let tokens = if id % 2 == 0 { 20 } else { 180 };
        world.push(BULK, [(id, tokens)]);
    }
    world.run(Duration::from_secs(60), |_| None);
    let of = |device: usize| world.done[first..].iter().filter(move |done| done.1 == device);
    let long = |device: usize| of(device).filter(|done| done.0 % 2 == 1).count();
    assert!(long(0) < of(0).count() / 3, "{} of {}", long(0), of(0).count());
    assert!(long(1) > of(1).count() * 2 / 3, "{} of {}", long(1), of(1).count());
}

#[test]
fn a_job_longer_than_any_batch_runs_alone() {
    let mut world = World::known(PolicyName::RoundRobin, &[GPU]);
    world.push(JobTerms::default(), [(0, 100), (1, 9000), (2, 100)]);
    for expected in [vec![0], vec![1], vec![2]] {
        assert_eq!(world.ask(0), Next::Batch);
        assert_eq!(last(&world, 0), expected);
        world.finish(0);
    }
}

#[test]
fn a_full_queue_and_a_deadline_that_cannot_be_met_are_refused_at_once() {
    let mut world = World::known(PolicyName::EarliestFinish, &[slower(GPU, 100.0)]);
    world.run_load(0.5, Duration::from_secs(5));
    let room = 1_000_000;
    world.scheduler.admit(world.now, CLASS, room, None).unwrap();
    let full = world.scheduler.admit(world.now, CLASS, 1, None);
    assert_eq!(full, Err(Refused::Full(Full { admitted: room, capacity: room })));
    world.scheduler.release(room);
    world.push(JobTerms::default(), (0..100).map(|id| (id, 40))); // more than half a second
    let soon = world.now + Duration::from_millis(300);
    let refused = world.scheduler.admit(world.now, CLASS, 1, Some(soon)).unwrap_err();
    assert!(matches!(refused, Refused::TooLate { left, .. } if left.as_millis() == 300));
    let later = world.now + Duration::from_secs(30);
    world.scheduler.admit(world.now, CLASS, 1, Some(later)).unwrap();
}

#[test]
fn work_that_can_no_longer_be_done_in_time_is_dropped_and_nothing_else_is() {
    let mut world = World::known(PolicyName::EarliestFinish, &[GPU]);
    world.scheduler.ran(world.now, 0, CLASS, Size::equal(10, 50), Duration::from_millis(2));
    world.push(until(100), [(0, 50), (1, 50)]);
    world.push(until(300), [(2, 50)]);
    world.push(JobTerms::default(), [(3, 50)]);
    world.now = Duration::from_millis(200);
    world.ask(0);
    assert_eq!((last(&world, 0), &world.dropped), (vec![2, 3], &vec![0, 1]));
    world.push(until(400), [(4, 50)]);
    world.now = Duration::from_millis(500);
    world.check();
    assert_eq!((world.scheduler.backlog(), &world.dropped), ((0, 0), &vec![0, 1, 4]));
    assert!(Dropped::TooLate.to_string().contains("deadline"));
}

#[test]
fn a_device_that_fails_is_out_until_a_trial_succeeds() {
    let mut world = World::known(PolicyName::RoundRobin, &[GPU, GPU]);
    for round in 0..6 {
        world.push(JobTerms::default(), [(round, 50)]);
        if round % 2 == 0 {
            assert_eq!(world.ask(0), Next::Batch);
            assert_eq!(world.fail(0), Vec::<u64>::new());
        }
    }
    world.push(JobTerms::default(), [(6, 50)]);
    assert_eq!(world.scheduler.health(0), Health::Out);
    let Next::Wait { until: Some(trial) } = world.ask(0) else { panic!("it has to pause") };
    world.devices[0].alive = false;
    world.run(world.now + Duration::from_millis(100), |_| None);
    assert_eq!(world.done.iter().filter(|done| done.1 == 1).count(), 7, "the other did it all");
    world.now = trial;
    world.push(JobTerms::default(), [(10, 50)]);
    world.push(JobTerms::default(), [(11, 50)]);
    assert_eq!(world.ask(0), Next::Batch);
    assert_eq!(last(&world, 0).len(), 1);
    assert!(matches!(world.ask(0), Next::Wait { .. }), "one batch, no more");
    world.finish(0);
    assert_eq!(world.scheduler.health(0), Health::Serving);
}

#[test]
fn what_waits_for_a_device_that_does_not_move_is_done_by_others() {
    let mut world = World::known(PolicyName::RoundRobin, &[GPU, GPU]);
    world.ask(0);
    for round in 0..20 {
        world.push(JobTerms::default(), [(round, 50)]);
    }
    assert_eq!(world.ask(0), Next::Batch);
    world.push(JobTerms::default(), [(20, 50)]);
    world.devices[0].alive = false;
    world.run(world.now + Duration::from_secs(60), |_| None);
    assert_eq!(world.scheduler.health(0), Health::Out);
    let statistics = world.scheduler.statistics(world.now, CLASS)[0];
    assert_eq!((statistics.stalls, statistics.running_batches), (1, 1));
    assert_eq!(world.done.len() + world.devices[0].running[0].jobs.len(), 21);
    // It moves after all.
    world.finish(0);
    assert_eq!((world.scheduler.health(0), world.done.len()), (Health::Serving, 21));
}

#[test]
fn a_drained_device_finishes_what_it_has_and_gets_no_more_until_it_is_restored() {
    let mut world = World::known(PolicyName::LeastLoaded, &[GPU, GPU]);
    for round in 0..6 {
        world.push(JobTerms::default(), [(round, 50)]);
    }
    world.ask(0);
    world.push(JobTerms::default(), [(6, 50)]);
    world.scheduler.drain(world.now, 0);
    assert_eq!(world.scheduler.health(0), Health::Draining);
    assert_eq!(world.ask(0), Next::Wait { until: None });
    world.finish(0);
    assert_eq!(world.scheduler.health(0), Health::Drained);
    world.run(Duration::from_secs(1), |_| None);
    assert_eq!(world.done.len(), 7);
    world.scheduler.drain(world.now, 1);
    world.push(JobTerms::default(), [(7, 50)]);
    assert_eq!([world.ask(0), world.ask(1)], [Next::Wait { until: None }; 2], "none serves");
    world.scheduler.restore(0);
    assert_eq!(world.ask(0), Next::Batch);
}

#[test]
fn what_fails_twice_is_refused() {
    let mut world = World::known(PolicyName::EarliestFinish, &[GPU, GPU]);
    world.push(JobTerms::default(), [(0, 50)]);
    world.ask(0);
    assert_eq!(world.fail(0), Vec::<u64>::new());
    assert!(matches!(world.ask(0), Next::Wait { .. }), "another device tries");
    assert_eq!(world.ask(1), Next::Batch);
    assert_eq!(world.fail(1), [0]);
}

#[test]
fn a_closed_scheduler_is_over_when_everything_is_answered() {
    let mut world = World::known(PolicyName::EarliestFinish, &[GPU]);
    world.scheduler.admit(world.now, CLASS, 1, None).unwrap();
    world.push(JobTerms::default(), [(0, 50)]);
    world.scheduler.drain(world.now, 0);
    world.scheduler.close();
    assert_eq!(world.ask(0), Next::Batch, "what was accepted is answered");
    world.finish(0);
    assert!(matches!(world.ask(0), Next::Wait { .. }));
    world.scheduler.release(1);
    assert_eq!(world.ask(0), Next::Over);
}

#[test]
fn while_no_device_serves_requests_are_refused_and_what_waits_waits_for_a_while() {
    let mut world = World::known(PolicyName::EarliestFinish, &[GPU, slower(GPU, 3.0)]);
    world.push(JobTerms::default(), [(1, 50), (2, 50)]);
    world.scheduler.drain(world.now, 0);
    world.scheduler.admit(world.now, CLASS, 1, None).unwrap();
    world.scheduler.drain(world.now, 1);
    assert_eq!(world.scheduler.admit(world.now, CLASS, 1, None), Err(Refused::NoDevice));
    let patience = Settings::default().no_device_patience;
    for _ in 0..3 {
        // Each time one is restored, the waiting begins anew.
        world.check();
        world.now += patience - Duration::from_millis(1);
        world.check();
        assert_eq!((world.dropped.len(), world.scheduler.backlog().0), (0, 2));
        world.scheduler.restore(1);
        world.check();
        world.scheduler.drain(world.now, 1);
    }
    world.check();
    world.now += patience;
    world.check();
    assert_eq!((&world.dropped[..], world.scheduler.backlog()), (&[1, 2][..], (0, 0)));
    world.scheduler.restore(0);
    world.scheduler.admit(world.now, CLASS, 1, None).unwrap();
}

#[test]
fn what_waits_when_all_devices_are_gone_does_not_wait() {
    for policy in PolicyName::ALL {
        let mut world = World::known(policy, &[GPU, GPU]);
        world.push(JobTerms::default(), [(1, 50)]);
        world.scheduler.lose(world.now, 0);
        world.check();
        assert!(world.dropped.is_empty() && world.scheduler.is_served(world.now, CLASS));
        world.scheduler.lose(world.now, 1);
        world.push(JobTerms::default(), [(2, 50)]);
        world.scheduler.restore(0);
        assert!(!world.scheduler.is_served(world.now, CLASS));
        world.check();
        assert_eq!(world.dropped, [1, 2], "{policy}");
    }
}

#[test]
fn the_last_device_serves_although_it_is_out_unless_it_does_not_move() {
    let mut world = World::known(PolicyName::EarliestFinish, &[GPU, GPU]);
    assert!(world.scheduler.take_out(world.now, 0));
    world.scheduler.drain(world.now, 1);
    assert!(world.scheduler.is_served(world.now, CLASS));
    world.push(JobTerms::default(), [(1, 50)]);
    assert_eq!(world.ask(0), Next::Batch);
    assert!(world.scheduler.is_served(world.now, CLASS));
    world.now += Duration::from_secs(60);
    assert!(!world.scheduler.is_served(world.now, CLASS), "it hangs");
    world.finish(0);
    assert!(world.scheduler.is_served(world.now, CLASS));
}

#[test]
fn the_only_device_is_out_while_a_batch_on_it_does_not_end() {
    let mut world = World::known(PolicyName::EarliestFinish, &[GPU]);
    world.push(JobTerms::default(), [(1, 50)]);
    assert_eq!(world.ask(0), Next::Batch);
    world.push(JobTerms::default(), [(2, 50)]);
    world.now += Duration::from_secs(59);
    world.check();
    assert!(world.scheduler.is_served(world.now, CLASS), "it may be busy with something else");
    world.now += Duration::from_secs(2);
    world.check();
    assert_eq!(world.scheduler.health(0), Health::Out);
    assert_eq!(world.scheduler.admit(world.now, CLASS, 1, None), Err(Refused::NoDevice));
    world.check();
    world.now += Settings::default().no_device_patience;
    world.check();
    assert_eq!(world.dropped, [2], "what waits hears so");
    world.finish(0);
    assert_eq!(world.scheduler.health(0), Health::Serving);
    world.scheduler.admit(world.now, CLASS, 1, None).unwrap();
    // A device of which nothing is known may be as slow as that.
    let mut world = World::new(PolicyName::EarliestFinish, &[GPU], &[Speed::new()]);
    world.push(JobTerms::default(), [(1, 50)]);
    assert_eq!(world.ask(0), Next::Batch);
    world.now += Duration::from_secs(600);
    world.check();
    assert!(world.scheduler.is_served(world.now, CLASS));
}
