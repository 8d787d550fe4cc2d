//! The simulation: a clock that jumps from event to event, devices, and vecmill's own scheduler.
//!
//! The choice behind it: devices that wait notice what happens a little later, as threads do. All that
//! happens until then is noticed at once, so that asking all devices costs the less per request the
//! more of them there are.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use vecmill_lab::traffic::Arrival;
use vecmill_scheduler::policy::{PolicyName, UnknownPolicy};
use vecmill_scheduler::{
    ClassId, DeviceSettings, Failed, Job, JobBatch, JobTerms, Next, Priority, Scheduler, Settings,
    Size,
};

use super::device::{Device, Mishap, PREPARATION};
use super::figures::{Answer, Outcome};

/// Seconds until a thread that waits for a device's work is awake.
const AWAKE: f64 = 5e-5;

/// Another class of work: what the devices are to it, in the same order.
#[derive(Debug, Clone)]
pub(super) struct OtherClass {
    pub(super) devices: Vec<Device>,
    pub(super) weight: f64,
    pub(super) priority: Priority,
}

/// What is simulated.
#[derive(Debug, Clone)]
pub(super) struct Experiment<'a> {
    /// The devices, as they are to the first class.
    pub(super) devices: &'a [Device],
    /// Classes beside the first one.
    pub(super) others: &'a [OtherClass],
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
        others: &[],
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
    class: ClassId,
    arrived: f64,
    /// Inputs that are not answered.
    left: u32,
}

/// A batch on a device.
#[derive(Debug)]
struct Run {
    class: ClassId,
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
    batch: JobBatch<u32>,
    spare: Vec<Vec<Job<u32>>>,
    outcome: Outcome,
}

impl<'a> World<'a> {
    pub(super) fn new(experiment: Experiment<'a>) -> Result<Self, UnknownPolicy> {
        let mut random = fastrand::Rng::with_seed(experiment.seed ^ 0x5eed);
        let devices: Vec<_> =
            experiment.devices.iter().map(|device| device.settings(&mut random)).collect();
        let settings = Settings { capacity: usize::MAX, ..Settings::default() };
        let mut scheduler =
            Scheduler::new(settings, experiment.policy.parse::<PolicyName>()?.policy(), devices);
        for other in experiment.others {
            let class = scheduler.add_class(other.weight);
            for (index, device) in other.devices.iter().enumerate() {
                let DeviceSettings { batch_tokens, speed, .. } = device.settings(&mut random);
                scheduler.serve(index, class, batch_tokens, speed);
            }
        }
        let worker = |_: &Device| Worker { runs: VecDeque::new(), free_at: 0.0 };
        Ok(Self {
            scheduler,
            random,
            now: 0.0,
            asks: f64::INFINITY,
            workers: experiment.devices.iter().map(worker).collect(),
            events: BinaryHeap::new(),
            requests: Vec::with_capacity(experiment.requests as usize),
            batch: JobBatch::new(),
            spare: Vec::new(),
            outcome: Outcome::new(experiment.requests, experiment.devices.len()),
            experiment,
        })
    }

    /// Runs until all requests, which come in the order of their times, are answered.
    pub(super) fn run(self, requests: impl Iterator<Item = Arrival>) -> Outcome {
        self.run_classes(requests.map(|request| (ClassId::FIRST, request)))
    }

    /// The same, with the class of each.
    pub(super) fn run_classes(
        mut self,
        requests: impl Iterator<Item = (ClassId, Arrival)>,
    ) -> Outcome {
        let mut requests = requests.take(self.experiment.requests as usize);
        let mut next = requests.next();
        loop {
            let done = self.events.peek().map_or(f64::INFINITY, |Reverse((at, _))| seconds(*at));
            match next {
                Some((class, request)) if request.at <= done.min(self.asks) => {
                    self.now = request.at;
                    self.arrive(class, &request.lengths);
                    next = requests.next();
                    if next.is_none() {
                        let classes = self.scheduler.classes();
                        let had = |class| self.scheduler.class_statistics(class).fastest_seconds;
                        self.outcome.had = classes.map(had).collect();
                    }
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
        let statistics = self.scheduler.statistics(self.time(), ClassId::FIRST);
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

    fn arrive(&mut self, class: ClassId, lengths: &[usize]) {
        let id = u32::try_from(self.requests.len()).unwrap_or(u32::MAX);
        let left = u32::try_from(lengths.len()).unwrap_or(u32::MAX);
        self.requests.push(Request { class, arrived: self.now, left });
        let other =
            class.index().checked_sub(1).map(|index| self.experiment.others[index].priority);
        let priority = other.unwrap_or(self.experiment.priority);
        let terms = JobTerms { priority, deadline: None };
        let jobs = lengths.iter().map(|&tokens| Job::new(tokens, id));
        self.scheduler.push(self.time(), class, terms, jobs);
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
        self.scheduler.ran(now, device, run.class, run.size, took);
        self.outcome.did(device, run.size, (run.end, self.experiment.window));
        for job in run.jobs.drain(..) {
            let request = &mut self.requests[job.payload as usize];
            request.left -= 1;
            if request.left == 0 {
                let after = |time: f64| (time - request.arrived) as f32;
                self.outcome.answers.push(Answer {
                    class: request.class,
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
        match self.scheduler.next_batch(now, device, None, |_| true, &mut self.batch) {
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
        let (size, class) = (self.batch.size(), self.batch.class());
        let spare = self.spare.pop().unwrap_or_default();
        let jobs = std::mem::replace(&mut self.batch.jobs, spare);
        let other = class.index().checked_sub(1).map(|index| &self.experiment.others[index]);
        let truth = other.map_or(&self.experiment.devices[device], |other| &other.devices[device]);
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
        worker.runs.push_back(Run { class, jobs, size, taken, start, end, fails });
        self.events.push(Reverse((nanoseconds(end), device)));
    }
}

fn nanoseconds(seconds: f64) -> u64 {
    vecmill_lab::results::whole((seconds * 1e9).ceil())
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}
