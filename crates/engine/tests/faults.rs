//! A GPU that faults while an engine serves. In a process of its own: the fault ends all work there.

#![expect(clippy::unwrap_used, reason = "a test says what must hold by panicking")]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::cosine;
use vecmill_backend_cuda::{Gpu, provoke_fault};
use vecmill_engine::ModelRef;
use vecmill_engine::{DeviceSpec, Engine, Health, PolicyName, Request};
use vecmill_testing::conformance;

const CLIENTS: usize = 8;
const EACH: usize = 500;

fn engine(devices: Vec<DeviceSpec>) -> Engine {
    let models = conformance::models().unwrap();
    let model = models.into_iter().find(|folder| folder.ends_with("bert-mean")).unwrap();
    let cache = std::env::temp_dir().join("vecmill-test-faults");
    let builder = Engine::builder().model(ModelRef::Folder(model)).cache(cache);
    builder
        .devices(devices)
        .policy(PolicyName::RoundRobin)
        .cpu_threads(1)
        .tokenization_workers(1)
        .start()
        .unwrap()
}

fn vector(engine: &Engine, text: &str) -> Vec<f32> {
    let mut reply = engine.embed_blocking(Request::new([text])).unwrap();
    reply.embeddings.remove(0).vector
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_gpu_that_faults_under_load_is_taken_out_and_all_are_answered() {
    const TEXTS: [&str; 3] = ["a quick brown fox", "over", "the lazy dog jumps and jumps again"];
    let alone = engine(vec![DeviceSpec::CPU]);
    let expected = TEXTS.map(|text| vector(&alone, text));
    let part = "cuda:0/sms=32".parse::<DeviceSpec>().unwrap();
    let (name, engine) = (part.to_string(), engine(vec![part, DeviceSpec::CPU]));
    let gpu = || engine.scheduling().into_iter().find(|(device, _)| **device == *name).unwrap().1;
    let slowest = AtomicUsize::new(0);
    let answered = AtomicUsize::new(0);
    let faulted = std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (engine, expected, slowest, answered) = (&engine, &expected, &slowest, &answered);
            scope.spawn(move || {
                for turn in 0..EACH {
                    let which = (client + turn) % TEXTS.len();
                    let began = Instant::now();
                    let found = vector(engine, TEXTS[which]);
                    let took = usize::try_from(began.elapsed().as_micros()).unwrap();
                    slowest.fetch_max(took, Ordering::Relaxed);
                    answered.fetch_add(1, Ordering::Relaxed);
                    assert!(cosine(&found, &expected[which]) > 0.999, "{which}");
                }
            });
        }
        while answered.load(Ordering::Relaxed) < CLIENTS * EACH / 4 {
            std::thread::yield_now();
        }
        assert!(gpu().batches > 0, "the GPU had no part in it");
        provoke_fault(&Gpu::open(0).unwrap()).unwrap();
        Instant::now()
    });
    assert_eq!(answered.into_inner(), CLIENTS * EACH);
    let health = gpu().health;
    // Now and then it is tried with a batch, which then is computed elsewhere.
    assert!(matches!(health, Health::Out | Health::Suspect), "{health:?}");
    println!(
        "{} answered, the rest after the fault in {:?}, the slowest in {:?}",
        CLIENTS * EACH,
        faulted.elapsed(),
        Duration::from_micros(slowest.into_inner() as u64)
    );
    assert_eq!(vector(&engine, TEXTS[0]).len(), expected[0].len(), "it goes on serving");
    engine.shutdown();
}
