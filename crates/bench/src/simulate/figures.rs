//! What came of a simulated run.

use serde::Serialize;
use vecmill_scheduler::{DeviceStatistics, Size};

/// The first part of the requests is not counted: queues fill.
const WARM_UP: f64 = 0.1;

/// When a request was answered, in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    /// Its number.
    pub(super) request: u32,
    /// Until a device took the last of its batches.
    pub(super) taken: f32,
    /// Until the last of its batches began.
    pub(super) waited: f32,
    /// Until all of it was answered.
    pub(super) latency: f32,
}

/// What a device did in the time that counts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Done {
    pub(super) busy: f64,
    pub(super) tokens: u64,
    pub(super) batches: u64,
}

/// What is written down while it runs.
#[derive(Debug)]
pub(super) struct Outcome {
    /// How many requests come.
    requests: u32,
    pub(super) answers: Vec<Answer>,
    /// All that was done.
    pub(super) done: Size,
    pub(super) refused: usize,
    /// When the last batch was done.
    last_done: f64,
    /// The time that counts.
    seconds: f64,
    pub(super) devices: Vec<Done>,
    weights: Vec<f64>,
    mean_errors: Vec<f64>,
}

impl Outcome {
    pub(super) fn new(requests: u32, devices: usize) -> Self {
        Self {
            requests,
            answers: Vec::with_capacity(requests as usize),
            done: Size::default(),
            refused: 0,
            last_done: 0.0,
            seconds: 0.0,
            devices: vec![Done::default(); devices],
            weights: Vec::new(),
            mean_errors: Vec::new(),
        }
    }

    /// A device was at work from one time to another, of which counts what is in a window.
    pub(super) fn ran(&mut self, device: usize, (start, end): (f64, f64), window: (f64, f64)) {
        self.last_done = end;
        self.devices[device].busy += (end.min(window.1) - start.max(window.0)).max(0.0);
    }

    /// A device has done a batch, at a time that may be in the window that counts.
    pub(super) fn did(&mut self, device: usize, size: Size, (end, window): (f64, (f64, f64))) {
        self.done.inputs += size.inputs;
        self.done.tokens += size.tokens;
        self.done.squares += size.squares;
        if (window.0..=window.1).contains(&end) {
            self.devices[device].tokens += size.tokens as u64;
            self.devices[device].batches += 1;
        }
    }

    pub(super) fn finish(&mut self, window: (f64, f64), devices: &[DeviceStatistics]) {
        self.seconds = window.1.min(self.last_done) - window.0;
        self.weights = devices.iter().map(|device| device.weight).collect();
        self.mean_errors = devices.iter().map(|device| device.mean_error).collect();
    }

    /// Of each device, the share of the time that it was at work.
    pub(super) fn busy(&self) -> Vec<f64> {
        self.devices.iter().map(|device| device.busy / self.seconds).collect()
    }

    pub(super) fn figures(self) -> Figures {
        let first = f64::from(self.requests) * WARM_UP;
        let counts = |answer: &&Answer| f64::from(answer.request) >= first.floor();
        let counted = || self.answers.iter().filter(counts);
        let mut latencies: Vec<f32> = counted().map(|answer| answer.latency).collect();
        latencies.sort_unstable_by(f32::total_cmp);
        let count = latencies.len().max(1);
        let at = |part: f64| {
            let index = vecmill_lab::results::whole(part * count as f64) as usize;
            latencies.get(index.min(count - 1)).copied().map_or(0.0, f64::from)
        };
        let all: f64 = latencies.iter().copied().map(f64::from).sum();
        let waited: f64 = counted().map(|answer| f64::from(answer.waited)).sum();
        let busy = self.busy();
        let most = busy.iter().copied().fold(0.0, f64::max);
        let least = busy.iter().copied().fold(f64::INFINITY, f64::min);
        Figures {
            mean_wait_ms: 1e3 * waited / count as f64,
            mean_ms: 1e3 * all / count as f64,
            p50_ms: 1e3 * at(0.5),
            p99_ms: 1e3 * at(0.99),
            tokens_per_second: self.done.tokens as f64 / self.seconds,
            seconds: self.seconds,
            spread: most - least,
            busy,
            weights: self.weights,
            mean_errors: self.mean_errors,
            answered: self.answers.len(),
            refused: self.refused,
        }
    }
}

/// A run in figures.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figures {
    /// Until the last batch of a request began.
    pub(super) mean_wait_ms: f64,
    pub(super) mean_ms: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) tokens_per_second: f64,
    /// Until the last request was answered.
    pub(super) seconds: f64,
    /// Between the busiest device's share of the time and the idlest one's.
    pub(super) spread: f64,
    /// Of each device, the share of the time that it ran.
    pub(super) busy: Vec<f64>,
    /// Of each device, its learned weight at the end.
    pub(super) weights: Vec<f64>,
    /// Of each device, how far predictions were off at the end.
    pub(super) mean_errors: Vec<f64>,
    pub(super) answered: usize,
    pub(super) refused: usize,
}
