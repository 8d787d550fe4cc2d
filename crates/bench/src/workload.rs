//! A service's day in small: requests of real lengths that come in bursts, batched in order of arrival,
//! run by a device whose speed was measured. Time is simulated, so a day takes seconds and is
//! the same each time.

use std::collections::VecDeque;

use vecmill_encoder::Shape;
use vecmill_lab::lengths::Lengths;
use vecmill_lab::results::whole;

/// What comes in and what it runs on.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    /// The same seed makes the same requests.
    pub(crate) seed: u64,
    /// Batches to run.
    pub(crate) batches: usize,
    /// Batches in flight at once, each on a stream of its own.
    pub(crate) streams: u32,
    /// The most tokens of a batch.
    pub(crate) batch_tokens: usize,
    /// The most tokens of a text.
    pub(crate) longest: usize,
    /// What a batch takes: seconds, and seconds per token while it has the device to itself.
    pub(crate) seconds: f64,
    /// See `seconds`.
    pub(crate) seconds_per_token: f64,
}

/// A batch that ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// The stream it ran on.
    pub(crate) stream: u32,
    /// From when, in nanoseconds.
    pub(crate) start: u64,
    /// Until when.
    pub(crate) end: u64,
    /// Its size.
    pub(crate) shape: Shape,
}

/// Parts of the cycle in which traffic comes: their length, in the time that the device takes for a
/// million tokens, and the tokens that come in that time, in millions.
const CYCLE: [(f64, f64); 5] = [(1.2, 0.35), (0.3, 2.0), (0.9, 0.6), (0.15, 4.0), (0.6, 0.02)];

impl Workload {
    /// Runs until the batches are done.
    pub(crate) fn run(&self) -> Vec<Run> {
        let mut arrivals = Arrivals::new(self);
        let mut waiting = VecDeque::new();
        let mut runs: Vec<Run> = Vec::with_capacity(self.batches);
        let mut free_at = vec![0u64; self.streams as usize];
        let mut next = arrivals.next_request();
        let mut now = 0;
        while runs.len() < self.batches {
            while next.at <= now {
                waiting.extend(next.texts);
                next = arrivals.next_request();
            }
            let idle = free_at.iter().position(|&at| at <= now);
            if let (Some(stream), false) = (idle, waiting.is_empty()) {
                let shape = self.next_batch(&mut waiting);
                let busy = free_at.iter().filter(|&&at| at > now).count();
                let end = now + self.nanoseconds(shape.tokens, busy);
                free_at[stream] = end;
                let stream = u32::try_from(stream).unwrap_or(u32::MAX);
                runs.push(Run { stream, start: now, end, shape });
                continue;
            }
            let freed = free_at.iter().copied().filter(|&at| at > now).min();
            let wake = if waiting.is_empty() { None } else { freed };
            now = wake.map_or(next.at, |at| at.min(next.at)).max(now + 1);
        }
        runs
    }

    /// The oldest texts that fit together.
    fn next_batch(&self, waiting: &mut VecDeque<usize>) -> Shape {
        let mut shape = Shape { tokens: 0, sequences: 0, longest: 0 };
        while let Some(&tokens) = waiting.front()
            && shape.tokens + tokens <= self.batch_tokens
        {
            waiting.pop_front();
            shape.tokens += tokens;
            shape.sequences += 1;
            shape.longest = shape.longest.max(tokens);
        }
        shape
    }

    /// Batches in flight share the device.
    fn nanoseconds(&self, tokens: usize, others: usize) -> u64 {
        let share = (others + 1) as f64;
        let seconds = self.seconds + self.seconds_per_token * tokens as f64 * share;
        whole(seconds * 1e9)
    }
}

struct Request {
    at: u64,
    texts: Vec<usize>,
}

/// Requests as a Poisson process whose rate follows the cycle.
struct Arrivals {
    random: fastrand::Rng,
    tokens_per_second: f64,
    longest: usize,
    clock: f64,
}

impl Arrivals {
    fn new(workload: &Workload) -> Self {
        Self {
            random: fastrand::Rng::with_seed(workload.seed),
            tokens_per_second: 1.0 / workload.seconds_per_token,
            longest: workload.longest,
            clock: 0.0,
        }
    }

    fn next_request(&mut self) -> Request {
        // One request in ten carries many texts.
        let texts = if self.random.f64() < 0.1 { self.random.usize(8..=64) } else { 1 };
        let texts: Vec<usize> =
            (0..texts).map(|_| Lengths::Mixed.draw(self.longest, &mut self.random)).collect();
        let mean_tokens = 61.0 * (0.9 + 0.1 * 36.0);
        let rate = self.load() * self.tokens_per_second / mean_tokens;
        self.clock += -(1.0 - self.random.f64()).ln() / rate;
        Request { at: whole(self.clock * 1e9), texts }
    }

    fn load(&self) -> f64 {
        let cycle: f64 = CYCLE.iter().map(|(length, _)| length).sum();
        let mut into = self.clock * self.tokens_per_second / 1e6 % cycle;
        for (length, load) in CYCLE {
            if into < length {
                return load;
            }
            into -= length;
        }
        CYCLE[0].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> Workload {
        Workload {
            seed: 1,
            batches: 2000,
            streams: 3,
            batch_tokens: 16_384,
            longest: 512,
            seconds: 0.001,
            seconds_per_token: 1.0 / 10.8e6,
        }
    }

    #[test]
    fn the_same_seed_makes_the_same_day() {
        assert_eq!(workload().run(), workload().run());
        assert_ne!(workload().run(), Workload { seed: 2, ..workload() }.run());
    }

    #[test]
    fn streams_run_one_batch_at_a_time_and_all_are_used() {
        let runs = workload().run();
        for stream in 0..3 {
            let own: Vec<_> = runs.iter().filter(|run| run.stream == stream).collect();
            assert!(own.len() > 100);
            assert!(own.windows(2).all(|pair| pair[0].end <= pair[1].start));
        }
    }

    #[test]
    fn batches_are_of_all_sizes_up_to_the_limit() {
        let runs = workload().run();
        assert!(runs.iter().all(|run| run.shape.tokens <= 16_384));
        let full = runs.iter().filter(|run| run.shape.tokens > 15_000).count();
        let small = runs.iter().filter(|run| run.shape.tokens < 1_000).count();
        assert!(full > 100 && small > 100, "{full} full, {small} small");
        let texts: usize = runs.iter().map(|run| run.shape.sequences).sum();
        let tokens: usize = runs.iter().map(|run| run.shape.tokens).sum();
        let mean = tokens as f64 / texts as f64;
        assert!((57.0..65.0).contains(&mean), "mean length {mean}");
    }
}
