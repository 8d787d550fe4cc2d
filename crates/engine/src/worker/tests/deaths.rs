//! Threads that end, by panics in whatever they call: through a whole engine, what was accepted is
//! answered, and the engine ends.

use std::collections::BTreeSet;
use std::sync::mpsc::sync_channel;

use vecmill_scheduler::policy::{Policy, PolicyName, Take, View};

use super::overlap::{Count, Gate};
use super::*;
use crate::error::Fault;

/// How long anything may take that must happen.
const DEADLINE: Duration = Duration::from_secs(120);

/// Asks in three ways and stops the engine: all of it must end. What was answered.
fn outlived(engine: &Engine) -> Vec<Answer> {
    let (sender, receiver) = channel();
    for inputs in [1, 3, 40] {
        let (sender, engine) = (sender.clone(), engine.clone());
        std::thread::spawn(move || {
            let answer = engine.embed_blocking(Request::new((0..inputs).map(input)));
            sender.send(answer).unwrap();
        });
    }
    let answers = (0..3).map(|_| receiver.recv_timeout(DEADLINE).expect("somebody waits for ever"));
    let answers = answers.collect();
    ended(engine);
    answers
}

fn ended(engine: &Engine) {
    let (sender, receiver) = channel();
    let engine = engine.clone();
    std::thread::spawn(move || {
        engine.shutdown();
        sender.send(()).unwrap();
    });
    receiver.recv_timeout(DEADLINE).expect("the engine doesn't end");
}

/// Whatever a batch has a backend do.
fn operations() -> BTreeSet<&'static str> {
    let rig = Rig::of(Setup::default());
    let met = Arc::new(Mutex::new(BTreeSet::new()));
    let meeting = Arc::clone(&met);
    rig.faults().overlap(2);
    rig.faults().at_any(move |operation| {
        meeting.lock().unwrap().insert(operation);
    });
    assert!(outlived(&rig.engine()).iter().all(Result::is_ok));
    let met = met.lock().unwrap().clone();
    assert!(
        met.len() > 12 && met.contains("run on sequences") && met.contains("allocate"),
        "{met:?}"
    );
    met
}

#[test]
fn wherever_a_backend_panics_once_all_are_answered() {
    for panicking in operations() {
        for in_flight in [1, 2] {
            let rig = Rig::of(Setup { batch_tokens: 10 * INPUT_TOKENS, ..Setup::default() });
            rig.faults().overlap(in_flight);
            let count = Count::default();
            rig.faults().at_any(move |operation| {
                assert!(operation != panicking || count.next() > 0, "a defect");
            });
            for answer in outlived(&rig.engine()) {
                // What is called once when a thread starts ends that.
                let lost = ["in_flight", "enter"].contains(&panicking);
                assert!(answer.is_ok() || lost, "{panicking}, {in_flight} at once: {answer:?}");
            }
        }
    }
}

#[test]
fn wherever_a_backend_always_panics_all_are_answered() {
    for panicking in operations() {
        for in_flight in [1, 2] {
            let patience = Duration::from_millis(100);
            let rig = Rig::of(Setup { patience, ..Setup::default() });
            rig.faults().overlap(in_flight);
            rig.faults().at_any(move |operation| assert_ne!(operation, panicking, "a defect"));
            outlived(&rig.engine());
        }
    }
}

#[test]
fn rows_that_never_arrive_are_the_device_s_failure() {
    for (in_flight, withheld) in [(1, 1), (1, 32), (2, 33), (2, usize::MAX)] {
        let rig = Rig::of(Setup::default());
        rig.faults().overlap(in_flight);
        rig.faults().withhold(withheld);
        let engine = rig.engine();
        for answer in outlived(&engine) {
            let error = answer.unwrap_err();
            assert!(matches!(error, RequestError::Device { .. }), "{error}");
            assert!(error.to_string().contains("rows came back"), "{error}");
        }
    }
}

/// A policy that panics at what it is asked.
#[derive(Debug, Clone, Default)]
struct Defect {
    assigns: bool,
    assign: bool,
    take: bool,
}

impl Policy for Defect {
    fn name(&self) -> PolicyName {
        PolicyName::default()
    }

    fn anew(&self) -> Box<dyn Policy> {
        Box::new(self.clone())
    }

    fn assigns(&self) -> bool {
        assert!(!self.assigns, "a defect");
        self.assign
    }

    fn assign(&mut self, _: &[View]) -> usize {
        panic!("a defect");
    }

    fn take(&mut self, device: usize, devices: &[View]) -> Take {
        assert!(!self.take, "a defect");
        Take::Batch { skip: 0, tokens: devices[device].limit }
    }
}

#[test]
fn a_scheduler_that_panics_takes_nobody_with_it() {
    let defects = [
        Defect { assigns: true, ..Defect::default() },
        Defect { assign: true, ..Defect::default() },
        Defect { take: true, ..Defect::default() },
    ];
    for (defect, in_flight) in defects.iter().flat_map(|defect| [(defect, 1), (defect, 2)]) {
        for devices in [vec!["one"], vec!["one", "two"]] {
            let policy = Box::new(defect.clone());
            let rig = Rig::of(Setup { devices, policy, ..Setup::default() });
            rig.faults.iter().for_each(|faults| faults.overlap(in_flight));
            for answer in outlived(&rig.engine()) {
                let error = answer.unwrap_err();
                let named = matches!(error, RequestError::Lost | RequestError::NoDevice { .. });
                assert!(named, "{defect:?}: {error}");
            }
        }
    }
}

#[test]
fn when_the_last_device_is_gone_what_waits_and_what_comes_is_refused() {
    let rig = Rig::of(Setup::default());
    rig.faults().at_any(|operation| assert_ne!(operation, "in_flight", "a defect"));
    let waiting = rig.ask(3);
    rig.queued(3);
    let engine = rig.engine();
    let refused = |error: RequestError| {
        assert_eq!(error.fault(), Fault::Load, "{error}");
        assert!(error.to_string().contains("cpu is gone"), "{error}");
    };
    refused(waiting.recv_timeout(DEADLINE).unwrap().unwrap_err());
    refused(engine.readiness().unwrap_err());
    refused(engine.embed_blocking(Request::new([input(0)])).unwrap_err());
    assert!(engine.restore("cpu"));
    refused(engine.readiness().unwrap_err());
    assert!(rig.metrics().contains("device_health{device=\"cpu\",state=\"gone\"} 1"));
    ended(&engine);
    assert_eq!(engine.readiness(), Err(RequestError::Stopped));
}

#[test]
fn what_a_device_that_is_gone_leaves_others_do() {
    let mut rig = Rig::of(Setup { devices: vec!["one", "two"], ..Setup::default() });
    rig.faults[0].at_any(|operation| assert_ne!(operation, "in_flight", "a defect"));
    let answer = rig.ask(8);
    rig.queued(8);
    rig.start_device(0);
    wait_until(|| rig.metrics().contains("device_health{device=\"one\",state=\"gone\"} 1"));
    rig.start_device(1);
    assert_eq!(vectors(answer.recv_timeout(DEADLINE).unwrap()).len(), 8);
    assert_eq!(rig.core.queue.serves(&[CLASS]), Ok(()));
}

#[test]
fn a_caller_that_waits_keeps_no_request_alive() {
    // The core goes away with all that waits in it, without a thread that would answer.
    let rig = Rig::of(Setup::default());
    let (sender, receiver) = sync_channel(1);
    let deliver = Box::new(move |answer: Answer, _: Option<_>| sender.send(answer).unwrap());
    let caller = rig.core.submit(Request::new([input(0)]), deliver);
    rig.queued(1);
    drop(rig);
    assert_eq!(receiver.recv_timeout(DEADLINE).unwrap(), Err(RequestError::Stopped));
    drop(caller);
}

#[test]
fn a_device_that_hangs_at_the_end_of_a_batch_does_not_hold_the_others_up() {
    let mut rig = Rig::of(Setup { devices: vec!["one", "two"], ..Setup::default() });
    let gate = Gate::default();
    let hanging = gate.clone();
    rig.faults[0].at_collect(move || {
        hanging.pass();
        Ok(())
    });
    let first = rig.ask(2);
    rig.queued(2);
    rig.start_device(0);
    wait_until(|| rig.core.queue.backlog().0 == 0);
    rig.start_device(1);
    assert_eq!(vectors(rig.ask(2).recv_timeout(DEADLINE).unwrap()).len(), 2);
    gate.open(1);
    assert_eq!(vectors(first.recv_timeout(DEADLINE).unwrap()).len(), 2);
}
