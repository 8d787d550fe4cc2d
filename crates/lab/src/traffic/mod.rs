//! Requests: when each is due, and how many tokens its inputs have.
//!
//! - [`Mix`] makes them, as services see them: one input mostly, many in some, of real lengths.
//! - `trace` reads and writes those of a file.
//!
//! The choice behind it: what `vecmill ab` sends to devices and what a simulation has them do are the
//! same requests at the same times, for the same seed.

mod trace;

pub use trace::TraceError;

use crate::lengths::Lengths;

/// Inputs of a large request.
const LARGE: usize = 32;

/// What made requests look like: arrivals by Poisson, lengths lognormal with a median of 40 tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mix {
    /// The part of requests that have 32 inputs; the others have one.
    pub large: f64,
    /// The most tokens of an input.
    pub longest: usize,
    /// The same seed makes the same requests.
    pub seed: u64,
}

/// A request to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    /// Seconds after the start.
    pub at: f64,
    /// Tokens of each input.
    pub lengths: Vec<usize>,
}

impl Arrival {
    /// Tokens of all inputs.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }
}

/// Requests in the order of their times.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Traffic {
    /// Each request, the earliest first.
    pub arrivals: Vec<Arrival>,
}

impl Mix {
    /// The same requests for the same seed and repeat, without end; each is due after the last by a
    /// time that is 1 on average.
    pub fn requests(self, repeat: u64) -> impl Iterator<Item = Arrival> {
        let mut random = fastrand::Rng::with_seed(self.seed.wrapping_add(repeat));
        let mut at = 0.0;
        std::iter::from_fn(move || {
            at -= (1.0 - random.f64()).ln();
            let inputs = if random.f64() < self.large { LARGE } else { 1 };
            let draw = |_| Lengths::Mixed.draw(self.longest, &mut random);
            Some(Arrival { at, lengths: (0..inputs).map(draw).collect() })
        })
    }

    /// Tokens of a request, on average over many.
    pub fn mean_tokens(self) -> f64 {
        const MANY: usize = 100_000;
        let tokens: usize = self.requests(0).take(MANY).map(|request| request.tokens()).sum();
        tokens as f64 / MANY as f64
    }
}

impl Traffic {
    /// `rate` requests per second, on average, for so many seconds.
    pub fn poisson(mix: Mix, repeat: u64, rate: f64, seconds: f64) -> Self {
        let due = mix.requests(repeat).map(|request| Arrival { at: request.at / rate, ..request });
        Self { arrivals: due.take_while(|request| request.at < seconds).collect() }
    }

    /// So many requests, all due at once.
    pub fn bulk(mix: Mix, repeat: u64, requests: usize) -> Self {
        let due = mix.requests(repeat).map(|request| Arrival { at: 0.0, ..request });
        Self { arrivals: due.take(requests).collect() }
    }

    /// When the last request is due.
    pub fn seconds(&self) -> f64 {
        self.arrivals.last().map_or(0.0, |request| request.at)
    }

    /// Tokens of all requests.
    pub fn tokens(&self) -> usize {
        self.arrivals.iter().map(Arrival::tokens).sum()
    }

    /// The same requests in such a time that they are so many in a second.
    pub fn of_requests(self, per_second: f64) -> Self {
        let requests = self.arrivals.len() as f64;
        self.lasting(requests / per_second)
    }

    /// The same requests in such a time that they have so many tokens in a second.
    pub fn of_tokens(self, per_second: f64) -> Self {
        let tokens = self.tokens() as f64;
        self.lasting(tokens / per_second)
    }

    /// The same requests, the last of which is due after so many seconds; or all at once, if they are.
    fn lasting(mut self, seconds: f64) -> Self {
        let own = self.seconds();
        if own > 0.0 {
            self.arrivals.iter_mut().for_each(|request| request.at *= seconds / own);
        }
        self
    }

    /// The requests with inputs cut to a model's limit.
    pub fn cut(mut self, longest: usize) -> Self {
        let lengths = self.arrivals.iter_mut().flat_map(|request| &mut request.lengths);
        lengths.for_each(|length| *length = longest.min(*length));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIX: Mix = Mix { large: 0.1, longest: 512, seed: 7 };

    #[test]
    fn made_requests_come_at_the_rate_and_are_as_large_as_said() {
        let traffic = Traffic::poisson(MIX, 0, 1000.0, 20.0);
        let requests = traffic.arrivals.len() as f64;
        assert!((requests - 20_000.0).abs() < 500.0, "{requests}");
        assert!(traffic.arrivals.is_sorted_by(|a, b| a.at <= b.at));
        let large = traffic.arrivals.iter().filter(|request| request.lengths.len() == 32).count();
        assert!((large as f64 / requests - 0.1).abs() < 0.01);
        assert!((traffic.tokens() as f64 / requests / MIX.mean_tokens() - 1.0).abs() < 0.05);
        let gaps: Vec<f64> = traffic.arrivals.windows(2).map(|two| two[1].at - two[0].at).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "gaps are exponential");
    }

    #[test]
    fn a_seed_and_a_repeat_make_the_same_requests_at_any_rate() {
        let slow = Traffic::poisson(MIX, 3, 10.0, 8.0);
        let fast = Traffic::poisson(MIX, 3, 20.0, 4.0);
        assert_eq!(slow.arrivals.len(), fast.arrivals.len());
        for (slow, fast) in slow.arrivals.iter().zip(&fast.arrivals) {
            assert!((slow.at - 2.0 * fast.at).abs() < 1e-9);
            assert_eq!(slow.lengths, fast.lengths);
        }
        assert_ne!(slow, Traffic::poisson(MIX, 4, 10.0, 8.0));
    }

    #[test]
    fn requests_are_stretched_to_a_pace_unless_they_come_at_once() {
        let own = Traffic::poisson(MIX, 0, 100.0, 50.0);
        let (requests, tokens) = (own.arrivals.len() as f64, own.tokens() as f64);
        let seconds = |traffic: Traffic| traffic.seconds();
        assert!((seconds(own.clone().of_requests(10.0)) - requests / 10.0).abs() < 1e-6);
        assert!((seconds(own.of_tokens(500.0)) - tokens / 500.0).abs() < 1e-6);
        let at_once = Traffic::bulk(MIX, 0, 10);
        assert_eq!(at_once.clone().of_tokens(500.0), at_once);
    }
}
