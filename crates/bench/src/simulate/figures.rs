//! What came of a simulated run.

use serde::Serialize;
use vecmill_scheduler::{DeviceStatistics, Size};

/// The first part of the requests is not counted: queues fill.
const WARM_UP: f64 = 0.1;

/// What is written down while it runs.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The number of the first request that counts.
    first: u32,
    /// Of each request that counts, in microseconds.
    waited: f64,
    latencies: Vec<f32>,
    pub(super) done: Size,
    pub(super) refused: usize,
    answered: u32,
    seconds: f64,
    busy: Vec<f64>,
    weights: Vec<f64>,
    mean_errors: Vec<f64>,
}

impl Outcome {
    pub(super) fn new(requests: u32) -> Self {
        let first = crate::results::whole(f64::from(requests) * WARM_UP);
        Self {
            first: u32::try_from(first).unwrap_or(u32::MAX),
            waited: 0.0,
            latencies: Vec::with_capacity(requests as usize),
            done: Size::default(),
            refused: 0,
            answered: 0,
            seconds: 0.0,
            busy: Vec::new(),
            weights: Vec::new(),
            mean_errors: Vec::new(),
        }
    }

    /// A request is answered: it waited so long for the last of its batches to begin, and took so
    /// long altogether, in seconds.
    pub(super) fn answer(&mut self, request: u32, waited: f64, latency: f64) {
        self.answered += 1;
        if request >= self.first {
            self.waited += waited;
            self.latencies.push(latency as f32);
        }
    }

    /// A batch is done.
    pub(super) fn ran(&mut self, size: Size) {
        self.done.inputs += size.inputs;
        self.done.tokens += size.tokens;
        self.done.squares += size.squares;
    }

    pub(super) fn finish(&mut self, now: f64, busy: Vec<f64>, devices: &[DeviceStatistics]) {
        self.seconds = now;
        self.busy = busy;
        self.weights = devices.iter().map(|device| device.weight).collect();
        self.mean_errors = devices.iter().map(|device| device.mean_error).collect();
    }

    pub(super) fn figures(mut self) -> Figures {
        self.latencies.sort_unstable_by(f32::total_cmp);
        let count = self.latencies.len().max(1);
        let at = |part: f64| {
            let index = crate::results::whole(part * count as f64) as usize;
            self.latencies.get(index.min(count - 1)).copied().map_or(0.0, f64::from)
        };
        let all: f64 = self.latencies.iter().copied().map(f64::from).sum();
        let busy: Vec<f64> = self.busy.iter().map(|busy| busy / self.seconds).collect();
        let most = busy.iter().copied().fold(0.0, f64::max);
        let least = busy.iter().copied().fold(f64::INFINITY, f64::min);
        Figures {
            mean_wait_ms: 1e3 * self.waited / count as f64,
            mean_ms: 1e3 * all / count as f64,
            p50_ms: 1e3 * at(0.5),
            p99_ms: 1e3 * at(0.99),
            tokens_per_second: self.done.tokens as f64 / self.seconds,
            seconds: self.seconds,
            spread: most - least,
            busy,
            weights: self.weights,
            mean_errors: self.mean_errors,
            answered: self.answered,
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
    pub(super) answered: u32,
    pub(super) refused: usize,
}
