//! Requests as services see them: one input mostly, 32 in one of ten, of real lengths.

use crate::lengths::Lengths;

/// The most tokens of an input.
const LONGEST: usize = 512;

/// Inputs of one request in ten.
const MANY: usize = 32;

/// How requests come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Arrivals {
    /// As a Poisson process, so many in a second.
    Random {
        /// Requests per second.
        rate: f64,
    },
    /// All at once.
    AtOnce,
}

/// Requests, the same for the same seed.
#[derive(Debug)]
pub(super) struct Traffic {
    arrivals: Arrivals,
    random: fastrand::Rng,
    clock: f64,
}

impl Traffic {
    pub(super) fn new(arrivals: Arrivals, seed: u64) -> Self {
        Self { arrivals, random: fastrand::Rng::with_seed(seed), clock: 0.0 }
    }

    /// The next request: when it comes, in seconds, and its inputs' lengths, into `lengths`.
    pub(super) fn next(&mut self, lengths: &mut Vec<usize>) -> f64 {
        if let Arrivals::Random { rate } = self.arrivals {
            self.clock += -(1.0 - self.random.f64()).ln() / rate;
        }
        let inputs = if self.random.f64() < 0.1 { MANY } else { 1 };
        lengths.clear();
        lengths.extend((0..inputs).map(|_| Lengths::Mixed.draw(LONGEST, &mut self.random)));
        self.clock
    }
}

/// The mean number of tokens of a request.
pub(super) fn mean_tokens() -> f64 {
    let mut traffic = Traffic::new(Arrivals::AtOnce, 0);
    let mut lengths = Vec::new();
    let requests = 20_000;
    let mut tokens = 0;
    for _ in 0..requests {
        traffic.next(&mut lengths);
        tokens += lengths.iter().sum::<usize>();
    }
    tokens as f64 / f64::from(requests)
}
