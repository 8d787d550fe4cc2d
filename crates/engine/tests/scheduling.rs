//! A running engine and its scheduler: warming up, draining, deadlines, policies that take turns.

#![expect(clippy::unwrap_used, reason = "a test says what must hold by panicking")]

use std::path::Path;
use std::time::{Duration, Instant};

use vecmill_engine::ModelRef;
use vecmill_engine::{
    Builder, DeviceSpec, Engine, Fault, Health, PolicyName, Priority, Request, RequestError,
    StartError,
};

fn builder() -> Builder {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    Engine::builder()
        .model(ModelRef::Folder(models.join("bert-mean")))
        .cache(std::env::temp_dir().join("vecmill-test-scheduling"))
        .devices(vec![DeviceSpec::CPU])
        .cpu_threads(1)
        .tokenization_workers(1)
}

fn ask(engine: &Engine) -> Result<usize, RequestError> {
    engine.embed_blocking(Request::new(["a quick brown fox"])).map(|reply| reply.embeddings.len())
}

fn metrics(engine: &Engine) -> String {
    let mut text = String::new();
    engine.write_metrics(&mut text).unwrap();
    text
}

fn wait_for(holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(60), "it never happened");
        std::thread::yield_now();
    }
}

#[test]
fn practice_tells_how_fast_a_device_is_and_how_large_its_batches_should_be() {
    let engine = builder().auto_batch_tokens(Duration::from_secs(10)).start().unwrap();
    let (_, standing) = &engine.scheduling()[0];
    assert!(standing.speed.is_some(), "{standing:?}");
    let longest = engine.info().max_input_tokens;
    assert!((longest..=2048).contains(&standing.batch_tokens), "{standing:?}");
    assert_eq!(ask(&engine).unwrap(), 1);
    let (_, standing) = &engine.scheduling()[0];
    assert_eq!((standing.health, standing.batches), (Health::Serving, 1));
    assert!(metrics(&engine).contains("vecmill_device_weight_ratio{device=\"cpu\"} 1.0"));
}

/// Asks for so much that some of it waits when the device is drained, and drains it.
fn drained_with_work(engine: &Engine) -> std::thread::JoinHandle<Result<usize, RequestError>> {
    const INPUTS: usize = 800;
    let asking = engine.clone();
    let waiting = std::thread::spawn(move || {
        let texts = vec!["all human beings are born free ".repeat(20); INPUTS];
        asking.embed_blocking(Request::new(texts)).map(|reply| reply.embeddings.len())
    });
    wait_for(|| engine.scheduling()[0].1.running_batches > 0);
    assert!(engine.drain("cpu") && !engine.drain("tpu"));
    wait_for(|| engine.scheduling()[0].1.health == Health::Drained);
    assert!(!waiting.is_finished());
    waiting
}

#[test]
fn a_drained_device_gets_no_work_until_it_is_restored() {
    let engine = builder().start().unwrap();
    assert_eq!(engine.readiness(), Ok(()));
    let waiting = drained_with_work(&engine);
    for error in [engine.readiness().unwrap_err(), ask(&engine).unwrap_err()] {
        assert!(matches!(error, RequestError::NoDevice { .. }), "{error:?}");
        assert_eq!((error.fault(), error.retry_after().is_some()), (Fault::Load, true));
        assert!(error.to_string().contains("cpu is drained"), "{error}");
    }
    assert!(engine.restore("cpu"));
    assert_eq!((engine.readiness(), ask(&engine).unwrap()), (Ok(()), 1));
    assert_eq!(waiting.join().unwrap().unwrap(), 800);
}

#[test]
fn what_is_accepted_is_answered_also_when_an_engine_stops_drained() {
    let engine = builder().start().unwrap();
    let waiting = drained_with_work(&engine);
    engine.shutdown();
    assert_eq!(waiting.join().unwrap().unwrap(), 800);
    assert_eq!(engine.readiness(), Err(RequestError::Stopped));
}

#[test]
fn an_answer_that_would_come_too_late_is_refused() {
    let engine = builder().start().unwrap();
    let within = |timeout| Request {
        timeout: Some(timeout),
        priority: Priority::Bulk,
        ..Request::new(["a quick brown fox"])
    };
    engine.embed_blocking(within(Duration::from_secs(60))).unwrap();
    let began = Instant::now();
    let late = engine.embed_blocking(within(Duration::ZERO));
    let Err(RequestError::Expired | RequestError::TooLate { .. }) = late else {
        panic!("{late:?} after {:?}", began.elapsed());
    };
}

#[test]
fn policies_take_turns_and_metrics_tell_them_apart() {
    let policies = vec![PolicyName::RoundRobin, PolicyName::EarliestFinish];
    let window = Duration::from_millis(300);
    let engine = builder().policy_experiment(policies.clone(), window).start().unwrap();
    wait_for(|| {
        ask(&engine).unwrap();
        let text = metrics(&engine);
        let counted = |policy: &PolicyName| {
            text.contains(&format!("vecmill_experiment_requests_total{{policy=\"{policy}\"}}"))
        };
        policies.iter().all(counted)
    });
    assert!(policies.contains(&engine.policy()));
}

#[test]
fn every_policy_serves_and_an_experiment_needs_two_and_a_window() {
    let engine = builder().start().unwrap();
    for policy in PolicyName::ALL {
        engine.set_policy(policy);
        assert_eq!((engine.policy(), ask(&engine).unwrap()), (policy, 1));
    }
    let start = |builder: Builder| builder.start().map(|_| ()).unwrap_err();
    let window = Duration::from_secs(1);
    for wrong in [
        builder().policy_experiment(vec![PolicyName::Weighted], window),
        builder().policy_experiment(vec![PolicyName::Weighted; 2], Duration::ZERO),
    ] {
        assert!(matches!(start(wrong), StartError::Setting { .. }));
    }
}
