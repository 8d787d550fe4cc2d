//! What becomes of batches when memory runs short.

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use vecmill_backend_cpu::CpuBackend;
use vecmill_encoder::conformance::{Pressed, Pressure};
use vecmill_encoder::{Model, Shape};
use vecmill_memory::Statistics;

use super::*;
use crate::core::Parts;
use crate::error::Fault;
use crate::request::{Input, Prompt, Reply, Request};
use crate::tokenizer::Tokenizer;

const MIB: usize = 1 << 20;
const BATCH_TOKENS: usize = 16_384;

/// A device of which others take memory, and its engine's core.
struct Rig {
    core: Arc<Core>,
    device: Arc<Device<Pressed<CpuBackend>>>,
    pressure: Pressure,
    thread: Option<std::thread::JoinHandle<()>>,
}

type Answer = Result<Reply, RequestError>;

impl Rig {
    fn new(budget: usize, patience: Duration, traces: Option<RefusalTraces>) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/bert-mean");
        let model = Model::open(&folder).unwrap();
        let max_tokens = model.max_input_tokens();
        let pressure = Pressure::default();
        let backend = Pressed::new(CpuBackend::new(1).unwrap(), pressure.clone());
        let pool = Pool::new(backend.source(), budget);
        let encoder = Encoder::load(backend, &model, None, &|_, _| {}).unwrap();
        let largest = Shape { tokens: BATCH_TOKENS, sequences: BATCH_TOKENS, longest: max_tokens };
        let encoder = encoder.with_largest(largest);
        let core = Core::new(Parts {
            tokenizer: Tokenizer::open(&folder, &model.pipeline, max_tokens).unwrap(),
            tokenizers: rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap(),
            limits: encoder.limits(),
            pipeline: model.pipeline,
            default_prompt: Prompt::None,
            batch_tokens: BATCH_TOKENS,
            queue_capacity: 10_000,
        });
        let weights = pool.reserve(0).unwrap();
        let device = Device::new("cpu", encoder, pool, weights, BATCH_TOKENS, traces).unwrap();
        let device = Arc::new(device.with_patience(patience));
        Self { core, device, pressure, thread: None }
    }

    fn patient() -> Self {
        Self::new(64 * MIB, Duration::from_secs(600), None)
    }

    /// Starts the device's thread; until then, requests wait, so that they make one batch.
    fn start(&mut self) {
        let device: Arc<dyn Worker> = self.device.clone();
        self.thread = Some(spawn(device, Arc::clone(&self.core)).unwrap());
    }

    fn ask(&self, inputs: usize) -> Receiver<Answer> {
        let (sender, receiver) = channel();
        let answer = Box::new(move |answer| sender.send(answer).unwrap());
        self.core.submit(Request::new((0..inputs).map(input)), answer);
        receiver
    }

    /// Waits until everything that was asked for has been tokenised.
    fn queued(&self, inputs: usize) {
        while self.core.backlog().0 < inputs {
            std::thread::yield_now();
        }
    }

    fn statistics(&self) -> Statistics {
        self.device.memory().pool
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        let memory = vec![("cpu".to_owned(), self.device.memory())];
        self.core.metrics.write(&mut text, self.core.backlog(), memory).unwrap();
        text
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.core.close();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        self.device.stop();
    }
}

/// Forty tokens that differ from input to input.
fn input(index: usize) -> Input {
    let token = |place: usize| u32::try_from(5 + (index * 7 + place * 3) % 300).unwrap();
    Input::Tokens((0..40).map(token).collect())
}

fn vectors(answer: Answer) -> Vec<Vec<f32>> {
    answer.unwrap().embeddings.into_iter().map(|embedding| embedding.vector).collect()
}

#[test]
fn a_batch_that_gets_no_memory_is_split_and_its_vectors_are_right() {
    let mut rig = Rig::patient();
    let answer = rig.ask(400);
    rig.queued(400);
    rig.pressure.leave(4 * MIB);
    rig.start();
    let split = vectors(answer.recv().unwrap());
    let seen = rig.statistics();
    assert!(seen.peak_held_bytes <= 4 * MIB && seen.leases.refused > 0, "{seen:?}");
    assert!(rig.metrics().contains("vecmill_batches_total{device=\"cpu\",outcome=\"split\"}"));

    rig.pressure.leave(usize::MAX);
    assert_eq!(split, vectors(rig.ask(400).recv().unwrap()), "in one batch as in parts");
    let seen = rig.statistics();
    assert_eq!((seen.overruns, seen.refused_with_room, seen.leased_bytes), (0, 0, 0));
}

#[test]
fn where_there_is_no_memory_at_all_every_caller_is_told_when_to_come_back() {
    let mut rig = Rig::new(64 * MIB, Duration::ZERO, None);
    rig.pressure.leave(0);
    let answers = [rig.ask(3), rig.ask(1), rig.ask(60)];
    rig.start();
    for answer in answers {
        let error = answer.recv().unwrap().unwrap_err();
        assert_eq!(error.fault(), Fault::Load, "{error}");
        assert!(error.retry_after().is_some() && error.to_string().contains("others use it"));
    }
    rig.pressure.leave(usize::MAX);
    assert_eq!(vectors(rig.ask(3).recv().unwrap()).len(), 3, "and it works again");
}

#[test]
fn memory_that_comes_free_in_time_is_waited_for() {
    let mut rig = Rig::patient();
    rig.pressure.leave(0);
    let answer = rig.ask(2);
    rig.start();
    while rig.statistics().leases.refused < 5 {
        std::thread::yield_now();
    }
    assert!(answer.try_recv().is_err(), "nobody is turned away while there is patience");
    rig.pressure.leave(usize::MAX);
    assert_eq!(vectors(answer.recv().unwrap()).len(), 2);
}

#[test]
fn a_batch_waits_for_another_ones_memory() {
    let mut rig = Rig::new(2 * MIB, Duration::from_secs(600), None);
    let device = Arc::clone(&rig.device);
    let other = device.pool.lease(1, &()).unwrap();
    let answer = rig.ask(1);
    rig.start();
    drop(other);
    assert_eq!(vectors(answer.recv().unwrap()).len(), 1);
    assert_eq!(rig.statistics().leases.refused, 0);

    let mut rig = Rig::new(2 * MIB, Duration::ZERO, None);
    let device = Arc::clone(&rig.device);
    let _other = device.pool.lease(1, &()).unwrap();
    let answer = rig.ask(1);
    rig.start();
    let error = answer.recv().unwrap().unwrap_err();
    assert!(matches!(error, RequestError::NoMemory { .. }), "{error:?}");
}

#[test]
fn an_input_that_the_budget_can_never_hold_is_told_the_numbers() {
    let mut rig = Rig::new(MIB, Duration::from_secs(600), None);
    let answer = rig.ask(2);
    rig.start();
    let error = answer.recv().unwrap().unwrap_err();
    let RequestError::InputTooLarge { needed, available, .. } = error else { panic!("{error:?}") };
    assert_eq!((needed, available), (2 * MIB, MIB));
    assert_eq!(error.fault(), Fault::Server);
}

#[test]
fn a_refusal_leaves_a_trace() {
    let folder = tempfile::tempdir().unwrap();
    let traces = RefusalTraces::new(folder.path().to_owned());
    let mut rig = Rig::new(64 * MIB, Duration::ZERO, Some(traces));
    rig.pressure.leave(0);
    let answer = rig.ask(4);
    rig.start();
    assert!(answer.recv().unwrap().is_err());
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap).collect();
    assert_eq!(files.len(), 1, "one in a minute");
    let trace = Trace::read(&*std::fs::read(files[0].path()).unwrap()).unwrap();
    assert!(!trace.events.is_empty());
}

#[test]
fn batches_are_even_where_that_saves_memory() {
    let rig = Rig::patient();
    let answer = rig.ask(100); // 4,000 tokens
    rig.queued(100);
    let take = |limit, warm| {
        let batch = rig.core.next_batch(limit, || warm).unwrap();
        batch.iter().map(|job| job.tokens).sum::<usize>()
    };
    assert_eq!(take(3_000, 2_000), 2_000, "two batches either way");
    assert_eq!(take(3_000, 1_000), 2_000, "one batch is not split");
    assert!(answer.recv().unwrap().is_err(), "its inputs were dropped");

    assert_eq!(rig.device.warm_tokens(), 0, "nothing is held yet");
    drop(rig.device.pool.lease(6 * MIB, &()).unwrap());
    let warm = rig.device.warm_tokens();
    let needs = |tokens| {
        let shape = Shape { tokens, sequences: tokens, longest: 128 };
        rig.device.encoder.plan(shape).peak_bytes()
    };
    assert!(needs(warm) <= 6 * MIB && warm > 1_000 && warm < BATCH_TOKENS, "{warm}");
}
