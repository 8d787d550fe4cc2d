//! The simulation: a clock that jumps from event to event, devices, and vecmill's own scheduler.
//!
//! The choice behind it: devices that wait notice what happens a little later, as threads do. All that
//! happens until then is noticed at once, so that asking all devices costs the less per request the
//! more of them there are.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use vecmill_lab::traffic::Arrival;
use vecmill_scheduler::{
    Batch, Failed, Job, Next, Priority, Scheduler, Settings, Size, Terms, policy,
};

use super::device::{Device, Mishap, PREPARATION};
use super::figures::{Answer, Outcome};

/// Seconds until a thread that waits for a device's work is awake.
const AWAKE: f64 = 5e-5;

/// What is simulated.
#[derive(Debug, Clone)]
pub(super) struct Experiment<'a> {
    pub(super) devices: &'a [Device],
    pub(super) policy: &'a str,
    pub(super) seed: u64,
    /// How many requests come.
    pub(super) requests: u32,
    pub(super) priority: Priority,
    /// When the run ends, as it seems, in seconds: mishaps come at a part of it.
    pub(super) span: f64,
    /// Between which seconds the devices' work counts.
    pub(super) window: (f64, f64),
}

impl Experiment<'_> {
    /// Nothing to do, without an end.
    pub(super) const EMPTY: Self = Self {
        devices: &[],
        policy: "",
        seed: 0,
        requests: 0,
        priority: Priority::Interactive,
        span: f64::INFINITY,
        window: (0.0, f64::INFINITY),
    };
}

/// A request on its way.
#[derive(Debug, Clone, Copy)]
struct Request {
    arrived: f64,
    /// Inputs that are not answered.
    left: u32,
}

/// A batch on a device.
#[derive(Debug)]
struct Run {
    jobs: Vec<Job<u32>>,
    size: Size,
    taken: f64,
    start: f64,
    end: f64,
    fails: bool,
}

/// What a device does.
#[derive(Debug)]
struct Worker {
    runs: VecDeque<Run>,
    free_at: f64,
}

/// A batch is done: nanoseconds, which order exactly, and the device.
type Event = Reverse<(u64, usize)>;

/// A run of the simulation.
#[derive(Debug)]
pub(super) struct World<'a> {
    experiment: Experiment<'a>,
    scheduler: Scheduler<u32>,
    random: fastrand::Rng,
    now: f64,
    /// When the devices ask for work.
    asks: f64,
    workers: Vec<Worker>,
    events: BinaryHeap<Event>,
    requests: Vec<Request>,
    batch: Batch<u32>,
    spare: Vec<Vec<Job<u32>>>,
    outcome: Outcome,
}

impl<'a> World<'a> {
    pub(super) fn new(experiment: Experiment<'a>) -> Result<Self, policy::UnknownPolicy> {
        let mut random = fastrand::Rng::with_seed(experiment.seed ^ 0x5eed);
        let devices: Vec<_> =
            experiment.devices.iter().map(|device| device.settings(&mut random)).collect();
        let settings = Settings { capacity: usize::MAX, ..Settings::default() };
        let worker = |_: &Device| Worker { runs: VecDeque::new(), free_at: 0.0 };
        Ok(Self {
            scheduler: Scheduler::new(settings, policy::by_name(experiment.policy)?, devices),
            random,
            now: 0.0,
            asks: f64::INFINITY,
            workers: experiment.devices.iter().map(worker).collect(),
            events: BinaryHeap::new(),
            requests: Vec::with_capacity(experiment.requests as usize),
            batch: Batch::new(),
            spare: Vec::new(),
            outcome: Outcome::new(experiment.requests, experiment.devices.len()),
            experiment,
        })
    }

    /// Runs until all requests, which come in the order of their times, are answered.
    pub(super) fn run(mut self, requests: impl Iterator<Item = Arrival>) -> Outcome {
        let mut requests = requests.take(self.experiment.requests as usize);
        let mut next = requests.next();
        loop {
            let done = self.events.peek().map_or(f64::INFINITY, |Reverse((at, _))| seconds(*at));
            match next {
                Some(request) if request.at <= done.min(self.asks) => {
                    self.now = request.at;
                    self.arrive(&request.lengths);
                    next = requests.next();
                }
                _ if done <= self.asks && done.is_finite() => {
                    self.now = done;
                    self.finish();
                }
                _ if self.asks.is_finite() => {
                    self.now = std::mem::replace(&mut self.asks, f64::INFINITY);
                    self.ask_all();
                }
                _ => break,
            }
        }
        let statistics = self.scheduler.statistics(self.time());
        self.outcome.finish(self.experiment.window, &statistics);
        self.outcome
    }

    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.now)
    }

    /// Devices that wait will notice that something has happened.
    fn notice(&mut self) {
        self.asks = self.asks.min(self.now + AWAKE);
    }

    fn arrive(&mut self, lengths: &[usize]) {
        let id = u32::try_from(self.requests.len()).unwrap_or(u32::MAX);
        let left = u32::try_from(lengths.len()).unwrap_or(u32::MAX);
        self.requests.push(Request { arrived: self.now, left });
        let terms = Terms { priority: self.experiment.priority, deadline: None };
        let jobs = lengths.iter().map(|&tokens| Job::new(tokens, id));
        self.scheduler.push(self.time(), terms, jobs);
        self.notice();
    }

    /// A batch is done.
    fn finish(&mut self) {
        let Some(Reverse((_, device))) = self.events.pop() else { return };
        let Some(mut run) = self.workers[device].runs.pop_front() else { return };
        self.notice();
        let now = self.time();
        self.outcome.ran(device, (run.start, run.end), self.experiment.window);
        if run.fails {
            let Failed { refused, .. } = self.scheduler.failed(now, device, run.jobs);
            self.outcome.refused += refused.len();
            return;
        }
        let took = Duration::from_secs_f64(run.end - run.start);
        self.scheduler.ran(now, device, run.size, took);
        self.outcome.did(device, run.size, (run.end, self.experiment.window));
        for job in run.jobs.drain(..) {
            let request = &mut self.requests[job.payload as usize];
            request.left -= 1;
            if request.left == 0 {
                let after = |time: f64| (time - request.arrived) as f32;
                self.outcome.answers.push(Answer {
                    request: job.payload,
                    taken: after(run.taken),
                    waited: after(run.start),
                    latency: after(self.now),
                });
            }
        }
        self.spare.push(run.jobs);
    }

    fn ask_all(&mut self) {
        for device in 0..self.workers.len() {
            while self.ask(device) {}
        }
    }

    /// Has a device ask for work; says whether it got some.
    fn ask(&mut self, device: usize) -> bool {
        if self.workers[device].runs.len() >= self.experiment.devices[device].in_flight {
            return false;
        }
        let now = self.time();
        self.batch.clear();
        match self.scheduler.next_batch(now, device, 0, |_| true, &mut self.batch) {
            Next::Batch => {
                self.start(device);
                true
            }
            Next::Wait { until } => {
                let again = until.map_or(f64::INFINITY, |until| until.as_secs_f64());
                self.asks = self.asks.min(again);
                false
            }
            Next::Over => false,
        }
    }

    fn start(&mut self, device: usize) {
        let size = self.batch.size();
        let spare = self.spare.pop().unwrap_or_default();
        let jobs = std::mem::replace(&mut self.batch.jobs, spare);
        let truth = &self.experiment.devices[device];
        let taken = self.now;
        let start = (taken + PREPARATION).max(self.workers[device].free_at);
        let part = start / self.experiment.span;
        let trouble = (0.5..0.75).contains(&part);
        let mut end = start + truth.seconds(size, part, &mut self.random);
        if trouble && truth.mishap == Some(Mishap::Hangs) {
            end = 0.75 * self.experiment.span + (end - start);
        }
        let fails = trouble && truth.mishap == Some(Mishap::Fails);
        let worker = &mut self.workers[device];
        worker.free_at = end;
        worker.runs.push_back(Run { jobs, size, taken, start, end, fails });
        self.events.push(Reverse((nanoseconds(end), device)));
    }
}

fn nanoseconds(seconds: f64) -> u64 {
    vecmill_lab::results::whole((seconds * 1e9).ceil())
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}
