//! Devices on faults: in [`memory`] others take theirs, in [`overlap`] batches overlap, in
//! [`failures`] they fail, in [`deaths`] threads end, in [`sensors`] their sensors say so.

mod deaths;
mod failures;
mod memory;
mod overlap;
mod sensors;

use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use vecmill_backend_cpu::CpuBackend;
use vecmill_backend_cuda::GpuState;
use vecmill_encoder::{Encoder, Shape};
use vecmill_memory::Pool;
use vecmill_model::Model;
use vecmill_scheduler::policy::{Policy, PolicyName};
use vecmill_scheduler::{DeviceSettings, Speed};
use vecmill_testing::{FaultPlan, Faulty};

use super::*;
use crate::early::EarlyRequests;
use crate::engine::{Core, Engine, Parts};
use crate::error::RequestError;
use crate::info::Info;
use crate::metrics::Metrics;
use crate::models::{Models, Served};
use crate::queue::Queue;
use crate::recording::RefusalRecordings;
use crate::request::{Input, Prompt, Reply, Request};
use crate::tokenize::Tokenizer;

const CLASS: ClassId = ClassId::FIRST;
const MIB: usize = 1 << 20;
const BATCH_TOKENS: usize = 16_384;
const INPUT_TOKENS: usize = 40;

/// Devices on faults, and their engine's core.
struct Rig {
    core: Arc<Core>,
    devices: Vec<Arc<Device<Faulty<CpuBackend>>>>,
    faults: Vec<FaultPlan>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

struct Setup {
    devices: Vec<&'static str>,
    budget: usize,
    patience: Duration,
    recordings: Option<RefusalRecordings>,
    batch_tokens: usize,
    policy: Box<dyn Policy>,
    /// Token ids that the engine takes, if not those that the model has.
    vocabulary: Option<usize>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            devices: vec!["cpu"],
            budget: 64 * MIB,
            patience: Duration::from_secs(600),
            recordings: None,
            batch_tokens: BATCH_TOKENS,
            policy: PolicyName::EarliestFinish.policy(),
            vocabulary: None,
        }
    }
}

type Answer = Result<Reply, RequestError>;

impl Rig {
    fn of(mut setup: Setup) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/bert-mean");
        let model = Model::open(&folder).unwrap();
        let faults: Vec<FaultPlan> = setup.devices.iter().map(|_| FaultPlan::default()).collect();
        let names = setup.devices.clone();
        let devices = names.into_iter().zip(&faults);
        let devices: Vec<_> =
            devices.map(|(name, faults)| device(name, &model, faults, &mut setup)).collect();
        let max_tokens = model.max_input_tokens();
        let mut limits = devices[0].limits(CLASS).unwrap();
        limits.vocabulary = setup.vocabulary.unwrap_or(limits.vocabulary);
        let served = Served::new(
            CLASS,
            Tokenizer::open(&folder, &model.pipeline, max_tokens).unwrap(),
            (model.pipeline, Prompt::None),
            limits,
            Info { model_id: "model".to_owned(), ..Info::default() },
        );
        let models = Models::with(served.unwrap());
        let early = EarlyRequests::new(Duration::ZERO, 0);
        let tokenizers = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let core = Core::new(models, tokenizers, queue(&devices, setup.policy), early);
        Self { core: Arc::new(core), devices, faults, threads: Vec::new() }
    }

    /// The only device.
    fn device(&self) -> &Arc<Device<Faulty<CpuBackend>>> {
        &self.devices[0]
    }

    /// What the only device goes through.
    fn faults(&self) -> &FaultPlan {
        &self.faults[0]
    }

    /// Starts the devices' threads; until then, requests wait, so that they make one batch.
    fn start(&mut self) {
        for index in 0..self.devices.len() {
            self.start_device(index);
        }
    }

    fn start_device(&mut self, index: usize) {
        let device: Arc<dyn Worker> = self.devices[index].clone();
        self.threads.push(spawn(device, Arc::clone(&self.core.queue), index).unwrap());
    }

    /// A whole engine of it, which starts the devices' threads. It ends with the engine.
    fn engine(&self) -> Engine {
        let devices = self.devices.iter().map(|device| device.clone() as Arc<dyn Worker>);
        let parts = Parts {
            core: Arc::clone(&self.core),
            info: Info::default(),
            devices: devices.collect(),
            speeds: Vec::new(),
            sensors: Vec::new(),
            experiment: None,
            loader: None,
        };
        Engine::run(parts).unwrap()
    }

    fn ask(&self, inputs: usize) -> Receiver<Answer> {
        let (sender, receiver) = channel();
        let answer = Box::new(move |answer, _: Option<_>| sender.send(answer).unwrap());
        self.core.submit(Request::new((0..inputs).map(input)), answer);
        receiver
    }

    /// Waits until everything that was asked for has been tokenised.
    fn queued(&self, inputs: usize) {
        wait_until(|| self.core.queue.backlog().0 >= inputs);
    }

    fn statistics(&self) -> Statistics {
        self.device().memory().pool
    }

    fn metrics(&self) -> String {
        self.metrics_with(Vec::new())
    }

    /// With what devices say of themselves.
    fn metrics_with(&self, states: Vec<(String, GpuState)>) -> String {
        let mut text = String::new();
        let devices = self.devices.iter();
        let memory = devices.map(|device| (device.name().to_owned(), device.memory())).collect();
        let queue = &self.core.queue;
        let names = self.devices.iter().map(|device| device.name().to_owned());
        let scheduling = names.zip(queue.statistics()).collect();
        queue.metrics.write(&mut text, queue.backlog(), scheduling, states, memory).unwrap();
        text
    }
}

fn queue(devices: &[Arc<Device<Faulty<CpuBackend>>>], policy: Box<dyn Policy>) -> Arc<JobQueue> {
    let settings = |device: &Arc<Device<_>>| DeviceSettings {
        batch_tokens: device.batch_tokens(CLASS),
        in_flight: 8, // how many there are is the faults' business
        speed: Speed::new(),
    };
    let devices = devices.iter().map(|device| (device.name().to_owned(), settings(device)));
    Arc::new(Queue::new(10_000, policy, devices.collect(), Metrics::new(None)))
}

fn device(
    name: &str,
    model: &Model,
    faults: &FaultPlan,
    setup: &mut Setup,
) -> Arc<Device<Faulty<CpuBackend>>> {
    let backend = Faulty::new(CpuBackend::new(1).unwrap(), faults.clone());
    // The budget is for batches: weights are in a pool of their own.
    let [weights, pool] = [1 << 30, setup.budget].map(|budget| Pool::new(backend.source(), budget));
    let encoder = Encoder::load(backend, model, None, &weights, &|_, _| {}).unwrap();
    let (tokens, longest) = (setup.batch_tokens, model.max_input_tokens());
    let encoder = encoder.with_largest(Shape { tokens, sequences: tokens, longest });
    let resident = Resident::new(encoder, tokens);
    let device = Device::new(name, resident, pool, setup.recordings.take()).unwrap();
    Arc::new(Device { patience: setup.patience, ..device })
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.core.queue.close();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        for device in &self.devices {
            device.stop();
        }
    }
}

/// Forty tokens that differ from input to input.
fn input(index: usize) -> Input {
    let token = |place: usize| u32::try_from(5 + (index * 7 + place * 3) % 300).unwrap();
    Input::Tokens((0..INPUT_TOKENS).map(token).collect())
}

fn vectors(answer: Answer) -> Vec<Vec<f32>> {
    answer.unwrap().embeddings.into_iter().map(|embedding| embedding.vector).collect()
}

fn wait_until(holds: impl Fn() -> bool) {
    while !holds() {
        std::thread::yield_now();
    }
}
