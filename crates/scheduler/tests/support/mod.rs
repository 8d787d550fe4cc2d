//! A scheduler with devices whose true speed is known, under a simulated clock.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what must hold by panicking")]

use std::collections::VecDeque;
use std::time::Duration;

use vecmill_scheduler::{
    ClassId, Coefficients, DeviceSettings, Job, JobBatch, JobTerms, Next, Scheduler, Settings,
    Size, Speed, policy::PolicyName,
};

pub const CLASS: ClassId = ClassId::FIRST;

/// A device as it really is.
#[derive(Debug)]
pub struct Truth {
    pub model: Coefficients,
    /// Whether it asks for work and finishes it.
    pub alive: bool,
    pub running: VecDeque<Run>,
    /// When it will be done with the first of these.
    done_at: Option<Duration>,
}

/// A batch that a device has.
#[derive(Debug)]
pub struct Run {
    pub class: ClassId,
    pub jobs: Vec<Job<u64>>,
    took: Duration,
}

#[derive(Debug)]
pub struct World {
    pub now: Duration,
    pub scheduler: Scheduler<u64>,
    pub devices: Vec<Truth>,
    /// Each job that was answered, by which device and when.
    pub done: Vec<(u64, usize, Duration)>,
    pub dropped: Vec<u64>,
    /// How many times as long a batch of each class takes.
    factors: Vec<f64>,
    batch: JobBatch<u64>,
    random: u64,
}

pub const GPU: Coefficients = Coefficients { fixed: 0.001, per_token: 1e-6, per_square: 1e-9 };

pub fn slower(model: Coefficients, factor: f64) -> Coefficients {
    Coefficients {
        fixed: model.fixed * factor,
        per_token: model.per_token * factor,
        per_square: model.per_square * factor,
    }
}

impl World {
    /// Devices that are believed to be as fast as they are told to be, and know nothing else.
    pub fn new(policy: PolicyName, truth: &[Coefficients], believed: &[Speed]) -> Self {
        let device = |speed: &Speed| DeviceSettings {
            batch_tokens: 4096,
            in_flight: 2,
            speed: speed.clone(),
        };
        let alive = |&model| Truth { model, alive: true, running: VecDeque::new(), done_at: None };
        Self {
            now: Duration::ZERO,
            scheduler: Scheduler::new(
                Settings { capacity: 1_000_000, ..Settings::default() },
                policy.policy(),
                believed.iter().map(device),
            ),
            devices: truth.iter().map(alive).collect(),
            done: Vec::new(),
            dropped: Vec::new(),
            factors: vec![1.0],
            batch: JobBatch::new(),
            random: 1,
        }
    }

    /// Devices whose speed was measured.
    pub fn known(policy: PolicyName, truth: &[Coefficients]) -> Self {
        let believed: Vec<_> = truth.iter().map(measured).collect();
        Self::new(policy, truth, &believed)
    }

    pub fn push(&mut self, terms: JobTerms, jobs: impl IntoIterator<Item = (u64, usize)>) {
        self.push_of(CLASS, terms, jobs);
    }

    pub fn push_of(
        &mut self,
        class: ClassId,
        terms: JobTerms,
        jobs: impl IntoIterator<Item = (u64, usize)>,
    ) {
        let jobs: Vec<_> = jobs.into_iter().map(|(id, tokens)| Job::new(tokens, id)).collect();
        self.scheduler.push(self.now, class, terms, jobs);
    }

    /// Another class, in which a batch takes so many times as long, served by these devices.
    pub fn add_class(&mut self, weight: f64, factor: f64, devices: &[usize]) -> ClassId {
        let class = self.scheduler.add_class(weight);
        self.factors.resize(class.index(), 1.0);
        self.factors.push(factor);
        for &device in devices {
            self.serve(device, class);
        }
        class
    }

    /// A device serves a class; its speed was measured.
    pub fn serve(&mut self, device: usize, class: ClassId) {
        let factor = self.factors.get(class.index()).copied().unwrap_or(1.0);
        let speed = measured(&slower(self.devices[device].model, factor));
        self.scheduler.serve(device, class, 4096, speed);
    }

    /// Has a device ask once.
    pub fn ask(&mut self, device: usize) -> Next {
        self.batch.clear();
        let next = self.scheduler.next_batch(self.now, device, None, |_| true, &mut self.batch);
        self.dropped.extend(self.batch.dropped.drain(..).map(|(job, _)| job.payload));
        assert_eq!(next == Next::Batch, !self.batch.jobs.is_empty());
        if next == Next::Batch {
            let class = self.batch.class();
            let factor = self.factors.get(class.index()).copied().unwrap_or(1.0);
            let seconds = factor * self.devices[device].model.seconds(self.batch.size());
            let jobs = std::mem::take(&mut self.batch.jobs);
            let took = Duration::from_secs_f64(seconds);
            self.devices[device].running.push_back(Run { class, jobs, took });
        }
        next
    }

    pub fn check(&mut self) {
        self.batch.clear();
        self.scheduler.check(self.now, &mut self.batch);
        self.dropped.extend(self.batch.dropped.drain(..).map(|(job, _)| job.payload));
    }

    /// The oldest batch of a device is done.
    pub fn finish(&mut self, device: usize) {
        let Some(run) = self.end(device) else { return };
        self.scheduler.ran(self.now, device, run.class, Size::of(&run.jobs), run.took);
        self.done.extend(run.jobs.iter().map(|job| (job.payload, device, self.now)));
    }

    /// A device fails at its oldest batch; what is refused is returned.
    pub fn fail(&mut self, device: usize) -> Vec<u64> {
        let Some(run) = self.end(device) else { return Vec::new() };
        let failed = self.scheduler.failed(self.now, device, run.jobs);
        failed.refused.into_iter().map(|job| job.payload).collect()
    }

    /// A device has its oldest batch no longer.
    pub fn end(&mut self, device: usize) -> Option<Run> {
        self.devices[device].done_at = None;
        self.devices[device].running.pop_front()
    }

    /// Lets the devices that are alive work until `end`, or until nothing waits or runs on them;
    /// `arrivals` is asked for the time of the next request, and to push it.
    ///
    /// # Panics
    /// If all of them wait for ever, and work with them.
    pub fn run(&mut self, end: Duration, mut arrivals: impl FnMut(&mut Self) -> Option<Duration>) {
        let mut next_arrival = arrivals(self);
        let (mut steps, mut last) = (0, self.now);
        loop {
            steps = if self.now == last { steps + 1 } else { 0 };
            last = self.now;
            assert!(steps < 1000, "time stands still");
            let mut event = next_arrival.unwrap_or(Duration::MAX);
            for device in 0..self.devices.len() {
                while self.devices[device].alive {
                    let dropped = self.dropped.len();
                    match self.ask(device) {
                        Next::Batch => {}
                        // As the engine does: what stood behind the dropped ones was not looked at.
                        Next::Wait { .. } if self.dropped.len() > dropped => {}
                        Next::Wait { until } => {
                            event = event.min(until.unwrap_or(Duration::MAX));
                            break;
                        }
                        Next::Over => return,
                    }
                }
            }
            for device in self.devices.iter_mut().filter(|device| device.alive) {
                if let Some(run) = device.running.front() {
                    event = event.min(*device.done_at.get_or_insert(self.now + run.took));
                }
            }
            if event == Duration::MAX {
                assert_eq!(self.scheduler.backlog(), (0, 0), "all wait for ever");
                return;
            }
            if event > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(event);
            if next_arrival.is_some_and(|at| at <= self.now) {
                next_arrival = arrivals(self);
            }
            for device in 0..self.devices.len() {
                if self.devices[device].done_at.is_some_and(|at| at <= self.now) {
                    self.finish(device);
                }
            }
        }
    }

    /// A number below `most`, from a sequence without much order.
    pub fn random(&mut self, most: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % most
    }

    /// Requests of mixed sizes at a share of the devices' whole speed, until `end`.
    pub fn run_load(&mut self, load: f64, end: Duration) {
        let size = Size::equal(64, 64);
        let rate: f64 =
            self.devices.iter().map(|device| size.tokens as f64 / device.model.seconds(size)).sum();
        let pause = 8.0 * 64.0 / (load * rate);
        let (mut at, mut id) = (self.now, 0);
        self.run(end, |world| {
            if world.now >= at && id > 0 {
                let inputs = if world.random(4) == 0 { 26 } else { 2 };
                let lengths: Vec<_> = (0..inputs).map(|_| 8 + world.random(113) as usize).collect();
                world.push(JobTerms::default(), lengths.into_iter().map(|tokens| (id, tokens)));
            }
            id += 1;
            at = world.now
                + Duration::from_secs_f64(pause * (0.5 + world.random(1000) as f64 / 1000.0));
            Some(at)
        });
    }
}

/// What is known of a device after its warm-up.
pub fn measured(model: &Coefficients) -> Speed {
    let mut speed = Speed::new();
    for round in 0..12 {
        let size = Size::equal(1 + 5 * round, 16 << (round % 4));
        speed.observe(size, Duration::from_secs_f64(model.seconds(size)));
    }
    speed
}
