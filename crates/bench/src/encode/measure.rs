//! Throughput with batches in flight, and the latency of one text.

use std::collections::VecDeque;
use std::error::Error;
use std::time::{Duration, Instant};

use serde::Serialize;
use vecmill_encoder::{Backend, Batch, Encoder, Started};
use vecmill_lab::histogram::percentile;
use vecmill_lab::lengths::Lengths;
use vecmill_memory::{Pool, Statistics};

/// Batches of the same kind that take turns, so that none finds its own numbers in a cache.
const BATCHES: usize = 4;

/// Texts that take turns, and how often one of them is encoded.
const SHORT_TEXTS: usize = 16;
const SHORT_RUNS: usize = 1000;
const SHORT_WARM_UP: usize = 100;

/// How long a batch may wait for memory.
const PATIENCE: Duration = Duration::from_secs(10);

const SEED: u64 = 1;

/// An encoder with memory to run on.
#[derive(Debug)]
pub(super) struct Bench<'a, B: Backend> {
    pub(super) encoder: &'a Encoder<B>,
    pub(super) pool: &'a Pool<B::Source>,
    /// Batches that are started before the first is collected.
    pub(super) in_flight: usize,
    /// Most tokens of a batch.
    pub(super) tokens: usize,
}

/// Speed with texts of some lengths.
#[derive(Debug, Serialize)]
pub(super) struct Throughput {
    pub(super) lengths: Lengths,
    tokens_per_batch: usize,
    texts_per_batch: usize,
    /// The median over windows.
    pub(super) tokens_per_second: f64,
    pub(super) embeddings_per_second: f64,
    pub(super) slowest_window: f64,
    pub(super) fastest_window: f64,
    windows: Vec<f64>,
    pub(super) memory: Memory,
}

/// What the pool did while speed was measured.
#[derive(Debug, Serialize)]
pub(super) struct Memory {
    pub(super) driver_calls: u64,
    /// What the plan of one batch says.
    planned_bytes: usize,
    /// The most that the pool has held so far.
    peak_held_bytes: usize,
}

/// How long one text takes.
#[derive(Debug, Serialize)]
pub(super) struct Latency {
    pub(super) tokens: usize,
    runs: usize,
    min_ms: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

impl<B: Backend> Bench<'_, B> {
    /// Runs batches for the time of all windows, after a warm-up.
    pub(super) fn throughput(
        &self,
        lengths: Lengths,
        warm_up: Duration,
        window: Duration,
        windows: usize,
    ) -> Result<Throughput, Box<dyn Error>> {
        let mut random = fastrand::Rng::with_seed(SEED);
        let batches: Vec<_> = (0..BATCHES).map(|_| self.batch(lengths, &mut random)).collect();
        let mut running = Running::new(self, &batches);
        running.run_for(warm_up)?;
        let before = driver_calls(&self.pool.statistics());
        let mut done = Vec::with_capacity(windows);
        for _ in 0..windows.max(1) {
            done.push(running.run_for(window)?);
        }
        let after = self.pool.statistics();
        running.finish()?;
        let mut rates: Vec<f64> = done.iter().map(|count| count.per_second(count.tokens)).collect();
        let windows = rates.clone();
        rates.sort_unstable_by(f64::total_cmp);
        let tokens_per_second = rates[rates.len() / 2];
        let tokens: usize = batches.iter().map(Batch::tokens).sum();
        let texts: usize = batches.iter().map(Batch::sequences).sum();
        let plans = batches.iter().map(|batch| self.encoder.peak_bytes(batch.shape()));
        Ok(Throughput {
            lengths,
            tokens_per_batch: tokens / BATCHES,
            texts_per_batch: texts / BATCHES,
            tokens_per_second,
            embeddings_per_second: tokens_per_second * texts as f64 / tokens as f64,
            slowest_window: rates[0],
            fastest_window: rates[rates.len() - 1],
            windows,
            memory: Memory {
                driver_calls: driver_calls(&after) - before,
                planned_bytes: plans.max().unwrap_or(0),
                peak_held_bytes: after.peak_held_bytes,
            },
        })
    }

    /// Encodes one text after the other, each alone.
    pub(super) fn latency(&self, tokens: usize) -> Result<Latency, Box<dyn Error>> {
        let mut random = fastrand::Rng::with_seed(SEED);
        let texts: Vec<Batch> = (0..SHORT_TEXTS)
            .map(|_| [self.ids(tokens, &mut random)].into_iter().collect())
            .collect();
        let mut samples = Vec::with_capacity(SHORT_RUNS);
        for text in texts.iter().cycle().take(SHORT_WARM_UP + SHORT_RUNS) {
            let start = Instant::now();
            let vector = self.encoder.encode(text, self.pool, PATIENCE)?;
            samples.push(u64::try_from(start.elapsed().as_nanos())?);
            check(&vector)?;
        }
        let samples = &mut samples[SHORT_WARM_UP..];
        samples.sort_unstable();
        let ms = |part| percentile(samples, part) as f64 / 1e6;
        let (min_ms, p50_ms, p99_ms) = (ms(0.0), ms(0.5), ms(0.99));
        Ok(Latency { tokens, runs: SHORT_RUNS, min_ms, p50_ms, p99_ms })
    }

    /// As many texts of random tokens as fit a batch.
    fn batch(&self, lengths: Lengths, random: &mut fastrand::Rng) -> Batch {
        let mut batch = Batch::new();
        loop {
            let length = lengths.draw(self.encoder.limits().max_tokens, random);
            if batch.sequences() > 0 && batch.tokens() + length > self.tokens {
                return batch;
            }
            batch.push(&self.ids(length, random));
        }
    }

    fn ids(&self, length: usize, random: &mut fastrand::Rng) -> Vec<u32> {
        let vocabulary = u32::try_from(self.encoder.limits().vocabulary).unwrap_or(u32::MAX);
        (0..length).map(|_| random.u32(..vocabulary)).collect()
    }
}

/// Batches in turn, some of them on the device.
struct Running<'a, B: Backend> {
    bench: &'a Bench<'a, B>,
    next: std::iter::Cycle<std::slice::Iter<'a, Batch>>,
    started: VecDeque<(&'a Batch, Started<B>)>,
}

/// What came back in a stretch of time.
struct Count {
    tokens: usize,
    elapsed: Duration,
}

impl Count {
    fn per_second(&self, count: usize) -> f64 {
        count as f64 / self.elapsed.as_secs_f64()
    }
}

impl<'a, B: Backend> Running<'a, B> {
    fn new(bench: &'a Bench<'a, B>, batches: &'a [Batch]) -> Self {
        Self { bench, next: batches.iter().cycle(), started: VecDeque::new() }
    }

    /// From one batch's end to another's, at least `time` later.
    fn run_for(&mut self, time: Duration) -> Result<Count, Box<dyn Error>> {
        let (start, mut tokens) = (Instant::now(), 0);
        loop {
            while self.started.len() < self.bench.in_flight
                && let Some(batch) = self.next.next()
            {
                let started = self.bench.encoder.start(batch, self.bench.pool, PATIENCE)?;
                self.started.push_back((batch, started));
            }
            tokens += self.collect()?;
            let elapsed = start.elapsed();
            if elapsed >= time {
                return Ok(Count { tokens, elapsed });
            }
        }
    }

    /// Waits for the oldest batch, and returns its tokens.
    fn collect(&mut self) -> Result<usize, Box<dyn Error>> {
        let Some((batch, started)) = self.started.pop_front() else { return Ok(0) };
        let vectors = self.bench.encoder.collect(started)?;
        check(&vectors[..self.bench.encoder.limits().dimensions])?;
        Ok(batch.tokens())
    }

    fn finish(&mut self) -> Result<(), Box<dyn Error>> {
        while !self.started.is_empty() {
            self.collect()?;
        }
        Ok(())
    }
}

fn check(vector: &[f32]) -> Result<(), &'static str> {
    let usable = vector.iter().all(|number| number.is_finite()) && vector.iter().any(|&n| n != 0.0);
    if usable { Ok(()) } else { Err("a vector is not finite, or all zeros") }
}

fn driver_calls(statistics: &Statistics) -> u64 {
    statistics.calls.iter().map(|(_, calls)| calls).sum()
}
