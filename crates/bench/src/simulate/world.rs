//! The simulation: a clock that jumps from event to event, devices, and vecmill's own scheduler.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use vecmill_scheduler::{
    Batch, Failed, Job, Next, Priority, Scheduler, Settings, Size, Terms, policy,
};

use super::device::{Device, Mishap, PREPARATION};
use super::figures::Outcome;
use super::traffic::{Arrivals, Traffic};

/// What is simulated.
#[derive(Debug, Clone)]
pub(super) struct Experiment<'a> {
    pub(super) devices: &'a [Device],
    pub(super) arrivals: Arrivals,
    pub(super) requests: u32,
    pub(super) seed: u64,
    pub(super) policy: &'a str,
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
    start: f64,
    end: f64,
    fails: bool,
}

/// What a device does.
#[derive(Debug)]
struct Worker {
    runs: VecDeque<Run>,
    free_at: f64,
    busy: f64,
    /// When it asks again on its own; infinite if it is not waiting for a time.
    wakes: f64,
}

/// Nanoseconds, which order exactly, the device, and what happens there.
type Event = Reverse<(u64, usize, Happening)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Done,
    Wakes,
}

/// A run of the simulation.
#[derive(Debug)]
pub(super) struct World<'a> {
    experiment: Experiment<'a>,
    scheduler: Scheduler<u32>,
    random: fastrand::Rng,
    now: f64,
    /// When the last batch was done.
    last_done: f64,
    /// When the run ends, as it seems, in seconds: mishaps come at a part of it.
    span: f64,
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
        let worker = |_: &Device| Worker {
            runs: VecDeque::new(),
            free_at: 0.0,
            busy: 0.0,
            wakes: f64::INFINITY,
        };
        let span = match experiment.arrivals {
            Arrivals::Random { rate } => f64::from(experiment.requests) / rate,
            Arrivals::AtOnce => f64::INFINITY,
        };
        Ok(Self {
            scheduler: Scheduler::new(settings, policy::by_name(experiment.policy)?, devices),
            random,
            now: 0.0,
            last_done: 0.0,
            span,
            workers: experiment.devices.iter().map(worker).collect(),
            events: BinaryHeap::new(),
            requests: Vec::with_capacity(experiment.requests as usize),
            batch: Batch::new(),
            spare: Vec::new(),
            outcome: Outcome::new(experiment.requests),
            experiment,
        })
    }

    /// Runs until all requests are answered.
    pub(super) fn run(mut self) -> Outcome {
        let mut traffic = Traffic::new(self.experiment.arrivals, self.experiment.seed);
        let mut lengths = Vec::new();
        let mut next = traffic.next(&mut lengths);
        let mut to_come = self.experiment.requests;
        loop {
            let event = self.events.peek().map(|Reverse((at, _, _))| seconds(*at));
            match event {
                _ if to_come > 0 && event.is_none_or(|at| next <= at) => {
                    self.now = next;
                    self.arrive(&lengths);
                    to_come -= 1;
                    next = traffic.next(&mut lengths);
                    if to_come > 0 && next <= self.now {
                        continue; // at once
                    }
                }
                Some(at) => {
                    self.now = at;
                    self.happen();
                }
                None => break,
            }
            self.ask_all();
        }
        let busy = self.workers.iter().map(|worker| worker.busy).collect();
        let statistics = self.scheduler.statistics(self.time());
        self.outcome.finish(self.last_done, busy, &statistics);
        self.outcome
    }

    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.now)
    }

    fn arrive(&mut self, lengths: &[usize]) {
        let id = u32::try_from(self.requests.len()).unwrap_or(u32::MAX);
        let left = u32::try_from(lengths.len()).unwrap_or(u32::MAX);
        self.requests.push(Request { arrived: self.now, left });
        let priority = match self.experiment.arrivals {
            Arrivals::Random { .. } => Priority::Interactive,
            Arrivals::AtOnce => Priority::Bulk,
        };
        let terms = Terms { priority, deadline: None };
        let jobs = lengths.iter().map(|&tokens| Job::new(tokens, id));
        self.scheduler.push(self.time(), terms, jobs);
    }

    /// The next event.
    fn happen(&mut self) {
        let Some(Reverse((_, device, happening))) = self.events.pop() else { return };
        if happening == Happening::Wakes {
            if self.workers[device].wakes <= self.now {
                self.workers[device].wakes = f64::INFINITY;
            }
            return;
        }
        let Some(mut run) = self.workers[device].runs.pop_front() else { return };
        let now = self.time();
        self.last_done = self.now;
        self.workers[device].busy += run.end - run.start;
        if run.fails {
            let Failed { refused, .. } = self.scheduler.failed(now, device, run.jobs);
            self.outcome.refused += refused.len();
            return;
        }
        let took = Duration::from_secs_f64(run.end - run.start);
        self.scheduler.ran(now, device, run.size, took);
        self.outcome.ran(run.size);
        for job in run.jobs.drain(..) {
            let request = &mut self.requests[job.payload as usize];
            request.left -= 1;
            if request.left == 0 {
                let Request { arrived, .. } = *request;
                self.outcome.answer(job.payload, run.start - arrived, self.now - arrived);
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
        if self.workers[device].runs.len() >= 2 {
            return false;
        }
        let now = self.time();
        self.batch.clear();
        match self.scheduler.next_batch(now, device, || 0, |_| true, &mut self.batch) {
            Next::Batch => self.start(device),
            Next::Wait { until: Some(until) } => {
                let at = until.as_secs_f64();
                let worker = &mut self.workers[device];
                if at < worker.wakes {
                    worker.wakes = at;
                    self.events.push(Reverse((nanoseconds(at), device, Happening::Wakes)));
                }
                return false;
            }
            Next::Wait { until: None } | Next::Over => return false,
        }
        true
    }

    fn start(&mut self, device: usize) {
        let size = self.batch.size();
        let spare = self.spare.pop().unwrap_or_default();
        let jobs = std::mem::replace(&mut self.batch.jobs, spare);
        let truth = &self.experiment.devices[device];
        let start = (self.now + PREPARATION).max(self.workers[device].free_at);
        let part = start / self.span;
        let trouble = (0.5..0.75).contains(&part);
        let mut end = start + truth.seconds(size, part, &mut self.random);
        if trouble && truth.mishap == Some(Mishap::Hangs) {
            end = 0.75 * self.span + (end - start);
        }
        let fails = trouble && truth.mishap == Some(Mishap::Fails);
        let worker = &mut self.workers[device];
        worker.free_at = end;
        worker.runs.push_back(Run { jobs, size, start, end, fails });
        self.events.push(Reverse((nanoseconds(end), device, Happening::Done)));
    }
}

fn nanoseconds(seconds: f64) -> u64 {
    crate::results::whole((seconds * 1e9).ceil())
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}
