//! Devices that fail: nothing accepted is lost.

use vecmill_encoder::BackendError;

use super::overlap::{Count, Gate};
use super::*;
use crate::error::Fault;

fn broken() -> Result<(), BackendError> {
    Err(BackendError { operation: "attention", reason: "it melted".into() })
}

/// Fails, or panics, the first `times` times.
fn faulty(times: usize, panics: bool) -> impl Fn() -> Result<(), BackendError> {
    let count = Count::default();
    move || match count.next() {
        nth if nth >= times => Ok(()),
        _ if panics => panic!("a defect"),
        _ => broken(),
    }
}

fn healthy(inputs: usize) -> Vec<Vec<f32>> {
    let mut rig = Rig::of(Setup::default());
    rig.start();
    vectors(rig.ask(inputs).recv().unwrap())
}

#[test]
fn a_batch_that_fails_is_tried_once_more() {
    for (in_flight, panics) in [(1, false), (1, true), (2, false), (2, true)] {
        for at_start in [true, false] {
            let mut rig = Rig::of(Setup::default());
            rig.faults().overlap(in_flight);
            if at_start {
                rig.faults().at_start(faulty(1, panics));
            } else {
                rig.faults().at_collect(faulty(1, panics));
            }
            rig.start();
            assert_eq!(vectors(rig.ask(3).recv().unwrap()), healthy(3));
            let retried =
                "vecmill_batches_total{device=\"cpu\",outcome=\"retried\",model=\"model\"} 1";
            assert!(rig.metrics().contains(retried));
        }
    }
}

#[test]
fn a_batch_that_fails_twice_is_refused_and_the_only_device_goes_on() {
    for in_flight in [1, 2] {
        let mut rig = Rig::of(Setup::default());
        rig.faults().overlap(in_flight);
        rig.faults().at_collect(faulty(10, false));
        rig.start();
        for _ in 0..5 {
            let error = rig.ask(3).recv().unwrap().unwrap_err();
            assert_eq!(error.to_string(), "device cpu failed: attention failed: it melted");
            assert_eq!(error.fault(), Fault::Server);
        }
        assert_eq!(vectors(rig.ask(3).recv().unwrap()), healthy(3));
        assert!(rig.metrics().contains("vecmill_device_in_service{device=\"cpu\"} 1"));
    }
}

/// Two devices, and one input per batch.
fn two_devices() -> Rig {
    let devices = vec!["one", "two"];
    Rig::of(Setup { devices, batch_tokens: INPUT_TOKENS, ..Setup::default() })
}

fn counted(faults: &FaultPlan, gate: Option<Gate>) -> Count {
    let count = Count::default();
    let counted = count.clone();
    faults.at_start(move || {
        counted.next();
        if let Some(gate) = &gate {
            gate.pass();
        }
        Ok(())
    });
    count
}

#[test]
fn devices_share_a_queue_and_none_waits_for_another() {
    let mut rig = two_devices();
    let gate = Gate::default();
    let slow = counted(&rig.faults[0], Some(gate.clone()));
    let fast = counted(&rig.faults[1], None);
    let answer = rig.ask(30);
    rig.queued(30);
    rig.start_device(0);
    wait_until(|| slow.get() == 1);
    rig.start_device(1);
    wait_until(|| slow.get() + fast.get() == 30);
    assert_eq!(slow.get(), 1, "the other device has done the rest");
    assert!(answer.try_recv().is_err());
    gate.open(1);
    assert_eq!(vectors(answer.recv().unwrap()), healthy(30));
}

#[test]
fn what_one_device_fails_at_another_does_and_the_one_is_taken_out() {
    let mut rig = two_devices();
    let gate = Gate::default();
    rig.faults[0].at_start(broken);
    let good = counted(&rig.faults[1], Some(gate.clone()));
    let answer = rig.ask(8);
    rig.queued(8);
    rig.start();
    let out = "vecmill_device_in_service{device=\"one\"} 0";
    wait_until(|| rig.metrics().contains(out));
    gate.open(usize::MAX);
    assert_eq!(vectors(answer.recv().unwrap()), healthy(8));
    assert_eq!(good.get(), 8);
    let metrics = rig.metrics();
    assert!(
        metrics.contains(
            "vecmill_batches_total{device=\"one\",outcome=\"retried\",model=\"model\"} 3"
        )
    );
    assert!(metrics.contains("vecmill_device_in_service{device=\"two\"} 1"));

    assert_eq!(vectors(rig.ask(2).recv().unwrap()), healthy(2), "and it goes on");
    rig.faults[1].at_start(broken);
    assert!(rig.ask(1).recv().unwrap().is_err(), "the last one stays, whatever it does");
    counted(&rig.faults[1], None);
    assert_eq!(vectors(rig.ask(2).recv().unwrap()), healthy(2));
}

#[test]
fn what_a_device_can_not_do_because_it_is_lost_with_its_memory_another_does() {
    let mut rig = two_devices();
    let good = counted(&rig.faults[1], None);
    let answer = rig.ask(8);
    rig.queued(8);
    rig.faults[0].lose();
    rig.start();
    assert_eq!(vectors(answer.recv().unwrap()), healthy(8));
    assert_eq!(good.get(), 8);
}

#[test]
fn a_success_makes_up_for_failures() {
    let mut rig = two_devices();
    let count = Count::default();
    rig.faults[0].at_start(move || if count.next() % 3 == 2 { Ok(()) } else { broken() });
    rig.start();
    for _ in 0..40 {
        assert_eq!(vectors(rig.ask(3).recv().unwrap()), healthy_three());
    }
    assert!(rig.metrics().contains("vecmill_device_in_service{device=\"one\"} 1"));
}

fn healthy_three() -> Vec<Vec<f32>> {
    static VECTORS: std::sync::OnceLock<Vec<Vec<f32>>> = std::sync::OnceLock::new();
    VECTORS.get_or_init(|| healthy(3)).clone()
}

#[test]
fn every_request_is_answered_whatever_fails() {
    let mut rig = two_devices();
    let count = Count::default();
    for faults in &rig.faults {
        faults.overlap(2);
        for at_start in [true, false] {
            let count = count.clone();
            let fault = move || match count.next() {
                nth if nth % 11 == 3 => panic!("a defect"),
                nth if nth % 5 == 1 => broken(),
                _ => Ok(()),
            };
            if at_start { faults.at_start(fault) } else { faults.at_collect(fault) }
        }
    }
    rig.start();
    let answers: Vec<_> = (0..200).map(|_| rig.ask(3)).collect();
    let (mut right, mut refused) = (0, 0);
    for answer in answers {
        match answer.recv().unwrap() {
            Ok(reply) => {
                assert_eq!(vectors(Ok(reply)), healthy_three());
                right += 1;
            }
            Err(error) => {
                assert!(matches!(error, RequestError::Device { .. }), "{error:?}");
                refused += 1;
            }
        }
    }
    assert!(right > 0 && refused > 0, "{right} right, {refused} refused");
    // What is left of refused requests is dropped on the way.
    wait_until(|| rig.core.queue.backlog() == (0, 0));
}

#[test]
fn an_input_that_can_not_run_is_found_among_others() {
    for in_flight in [1, 2] {
        let mut rig = Rig::of(Setup { vocabulary: Some(usize::MAX), ..Setup::default() });
        rig.faults().overlap(in_flight);
        let good = rig.ask(30);
        rig.queued(30);
        let (sender, bad) = channel();
        let inputs = [input(0), Input::Tokens(vec![5, 9_999]), input(1)];
        let deliver = Box::new(move |answer: Answer, _: Option<_>| sender.send(answer).unwrap());
        rig.core.submit(Request::new(inputs), deliver);
        rig.queued(33);
        rig.start();
        assert_eq!(vectors(good.recv().unwrap()), healthy(30));
        let error = bad.recv().unwrap().unwrap_err();
        assert_eq!(error, RequestError::NoEmbedding { index: 1, token: 9_999, rows: 383 });
        let metrics = rig.metrics();
        assert!(metrics.contains("vecmill_device_in_service{device=\"cpu\"} 1"), "{metrics}");
        assert!(!metrics.contains("outcome=\"retried\""), "the device did not fail");
    }
}
