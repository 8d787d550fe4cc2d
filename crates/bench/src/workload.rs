//! A service's day in small: requests of real lengths that come in bursts, batched by vecmill's own
//! scheduler, run by a device whose speed was measured. Time is simulated, so a day takes seconds and is
//! the same each time.

use std::time::Duration;

use vecmill_encoder::Shape;
use vecmill_scheduler::policy::RoundRobin;
use vecmill_scheduler::{
    Batch, DeviceSettings, Job, Next, Scheduler, Settings, Size, Speed, Terms,
};

use crate::lengths::Lengths;
use crate::results::whole;

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
        let mut scheduler = self.scheduler();
        let mut batch = Batch::new();
        let mut runs: Vec<Run> = Vec::with_capacity(self.batches);
        let mut streams: Vec<Option<(u64, Size)>> = vec![None; self.streams as usize];
        let mut next = arrivals.next_request();
        let mut now = 0;
        while runs.len() < self.batches {
            let time = Duration::from_nanos(now);
            while next.at <= now {
                scheduler.push(time, Terms::default(), next.texts.iter().map(|&n| Job::new(n, ())));
                next = arrivals.next_request();
            }
            for stream in &mut streams {
                if let Some((_, size)) = stream.take_if(|(end, _)| *end <= now) {
                    scheduler.ran(time, 0, size, Duration::ZERO);
                }
            }
            batch.clear();
            let busy = streams.iter().flatten().count();
            let idle = streams.iter().position(Option::is_none);
            if let Some(stream) = idle
                && scheduler.next_batch(time, 0, || 0, |()| true, &mut batch) == Next::Batch
            {
                let shape = shape(&batch.jobs);
                let end = now + self.nanoseconds(shape.tokens, busy);
                streams[stream] = Some((end, batch.size()));
                let stream = u32::try_from(stream).unwrap_or(u32::MAX);
                runs.push(Run { stream, start: now, end, shape });
                continue;
            }
            let freed = streams.iter().flatten().map(|(end, _)| *end).min();
            now = freed.map_or(next.at, |at| at.min(next.at)).max(now + 1);
        }
        runs
    }

    /// One device, whose streams take what waits as soon as they are free.
    fn scheduler(&self) -> Scheduler<()> {
        let device = DeviceSettings {
            batch_tokens: self.batch_tokens,
            in_flight: self.streams as usize,
            speed: Speed::new(),
        };
        let settings = Settings { capacity: usize::MAX, ..Settings::default() };
        Scheduler::new(settings, Box::new(RoundRobin::default()), [device])
    }

    /// Batches in flight share the device.
    fn nanoseconds(&self, tokens: usize, others: usize) -> u64 {
        let share = (others + 1) as f64;
        let seconds = self.seconds + self.seconds_per_token * tokens as f64 * share;
        whole(seconds * 1e9)
    }
}

fn shape(jobs: &[Job<()>]) -> Shape {
    Shape {
        tokens: jobs.iter().map(|job| job.tokens).sum(),
        sequences: jobs.len(),
        longest: jobs.iter().map(|job| job.tokens).max().unwrap_or(0),
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
