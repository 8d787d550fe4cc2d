//! Whatever happens in whatever order: no job is lost, none is run twice, and nothing waits for good.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what must hold by panicking")]

mod support;

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use support::{CLASS, GPU, World, slower};
use vecmill_scheduler::{ClassId, JobTerms, Next, Priority, policy::PolicyName};

#[derive(Debug, Clone)]
enum Event {
    Push { second: bool, lengths: Vec<usize>, bulk: bool, deadline: Option<u64> },
    Ask(usize),
    Finish(usize),
    Fail(usize),
    GiveUp(usize),
    TakeOut(usize),
    Drain(usize),
    Restore(usize),
    Serve { device: usize, second: bool },
    Retire { device: usize, second: bool },
    Policy(usize),
    LoseFirst,
    Check,
    Pass(u64),
}

const DEVICES: usize = 3;

fn event() -> impl Strategy<Value = Event> {
    let device = || 0..DEVICES;
    let lengths = prop::collection::vec(0usize..2000, 0..20);
    let deadline = prop::option::weighted(0.2, 0u64..3000);
    prop_oneof![
        6 => (any::<bool>(), lengths, any::<bool>(), deadline).prop_map(
            |(second, lengths, bulk, deadline)| Event::Push { second, lengths, bulk, deadline }
        ),
        8 => device().prop_map(Event::Ask),
        6 => device().prop_map(Event::Finish),
        3 => device().prop_map(Event::Fail),
        1 => device().prop_map(Event::GiveUp),
        1 => device().prop_map(Event::TakeOut),
        1 => device().prop_map(Event::Drain),
        2 => device().prop_map(Event::Restore),
        1 => (device(), any::<bool>()).prop_map(|(device, second)| Event::Serve { device, second }),
        1 => (device(), any::<bool>()).prop_map(|(device, second)| Event::Retire { device, second }),
        1 => (0usize..4).prop_map(Event::Policy),
        1 => prop::bool::weighted(0.2).prop_map(|lost| if lost { Event::LoseFirst } else { Event::Check }),
        1 => Just(Event::Check),
        4 => (0u64..3000).prop_map(Event::Pass),
    ]
}

/// How each job left the scheduler.
#[derive(Default)]
struct Fates {
    pushed: u64,
    ended: HashMap<u64, u32>,
}

impl Fates {
    fn end(&mut self, jobs: impl IntoIterator<Item = u64>) {
        for job in jobs {
            *self.ended.entry(job).or_default() += 1;
        }
    }
}

/// The first class, or the second, which was added.
fn class(second: bool) -> ClassId {
    if second { ClassId::new(1) } else { CLASS }
}

fn apply(world: &mut World, fates: &mut Fates, event: Event) {
    match event {
        Event::Push { second, lengths, bulk, deadline } => {
            let priority = if bulk { Priority::Bulk } else { Priority::Interactive };
            let deadline = deadline.map(|in_ms| world.now + Duration::from_millis(in_ms));
            let first = fates.pushed;
            fates.pushed += lengths.len() as u64;
            world.push_of(class(second), JobTerms { priority, deadline }, (first..).zip(lengths));
        }
        Event::Ask(device) => {
            if world.devices[device].alive {
                world.ask(device);
            }
        }
        Event::Finish(device) => world.finish(device),
        Event::Fail(device) => fates.end(world.fail(device)),
        Event::GiveUp(device) => {
            if let Some(run) = world.end(device) {
                world.scheduler.gave_up(world.now, device, run.class, run.jobs.len());
                fates.end(run.jobs.iter().map(|job| job.payload));
            }
        }
        Event::TakeOut(device) => {
            world.scheduler.take_out(world.now, device);
        }
        Event::Drain(device) => world.scheduler.drain(world.now, device),
        Event::Restore(device) => world.scheduler.restore(device),
        Event::Serve { device, second } => world.serve(device, class(second)),
        Event::Retire { device, second } => {
            world.scheduler.retire(world.now, device, class(second));
        }
        Event::Policy(number) => {
            let name = PolicyName::ALL[number];
            world.scheduler.set_policy(world.now, name.policy());
        }
        Event::LoseFirst => {
            while !world.devices[0].running.is_empty() {
                fates.end(world.fail(0));
            }
            world.devices[0].alive = false;
            world.scheduler.lose(world.now, 0);
        }
        Event::Check => world.check(),
        Event::Pass(ms) => world.now += Duration::from_millis(ms),
    }
}

proptest! {
    #[test]
    fn each_job_ends_once(
        events in prop::collection::vec(event(), 0..120),
        first in 0usize..4,
        hung in prop::option::of(0..DEVICES),
        drained in any::<bool>(),
        classes in any::<bool>(),
    ) {
        let truth = [GPU, slower(GPU, 3.0), slower(GPU, 40.0)];
        let mut world = World::known(PolicyName::ALL[first], &truth);
        if classes {
            world.add_class(2.0, 3.0, &[0, 1, 2]);
        }
        let mut fates = Fates::default();
        let second = |event: &Event| {
            matches!(
                event,
                Event::Push { second: true, .. }
                    | Event::Serve { .. }
                    | Event::Retire { .. }
            )
        };
        let events = events.into_iter().filter(|event| classes || !second(event));
        for event in events {
            apply(&mut world, &mut fates, event);
        }
        // One may have stopped for good, with all that it took. The others do the rest.
        for device in 0..DEVICES {
            for second in [false, true].into_iter().take(1 + usize::from(classes)) {
                world.serve(device, class(second));
            }
            if hung != Some(device) {
                world.scheduler.restore(device);
            } else {
                world.devices[device].alive = false;
                if drained {
                    world.scheduler.drain(world.now, device);
                }
            }
        }
        world.run(world.now + Duration::from_secs(10_000), |_| None);
        prop_assert_eq!(world.scheduler.backlog(), (0, 0));
        // The driver reports what was on it as failed; then others do that as well.
        if let Some(device) = hung {
            while !world.devices[device].running.is_empty() {
                fates.end(world.fail(device));
            }
            world.run(world.now + Duration::from_secs(10_000), |_| None);
        }
        fates.end(world.done.iter().map(|done| done.0));
        fates.end(world.dropped.iter().copied());
        prop_assert_eq!(fates.ended.len() as u64, fates.pushed);
        prop_assert!(fates.ended.values().all(|&times| times == 1), "{:?}", fates.ended);
        let statistics = world.scheduler.statistics(world.now, CLASS);
        prop_assert!(statistics.iter().all(|device| device.running_tokens == 0));
    }

    #[test]
    fn who_waits_for_a_device_that_is_gone_looks_again(
        backlog in 1usize..20, slow in 1.0f64..200.0, out in any::<bool>(),
    ) {
        let mut world = World::known(PolicyName::EarliestFinish, &[GPU, slower(GPU, slow)]);
        world.push(JobTerms::default(), (0..backlog as u64).map(|id| (id, 60)));
        // The fast one has just taken a batch that it never finishes, or never asks at all.
        world.devices[0].alive = false;
        if out {
            prop_assert_eq!(world.ask(0), Next::Batch);
            world.push(JobTerms::default(), (100..100 + backlog as u64).map(|id| (id, 60)));
        }
        let begin = world.now;
        world.run(Duration::from_secs(3600), |_| None);
        prop_assert_eq!(world.scheduler.backlog(), (0, 0));
        let last = world.done.last().unwrap().2 - begin;
        let alone = slower(GPU, slow).seconds(vecmill_scheduler::Size::equal(backlog, 60));
        prop_assert!(last.as_secs_f64() < 5.0 * alone + 0.1, "{last:?} instead of {alone}");
    }
}
