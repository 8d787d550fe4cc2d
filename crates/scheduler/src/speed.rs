//! How fast a device is.

use std::time::Duration;

/// How much of the past each new batch keeps: about the last fifty batches count.
const MEMORY: f64 = 0.98;

/// A device's `seconds = A + B · tokens`, fitted to the batches that it has run by least squares
/// with exponential forgetting (S. Haykin, "Adaptive Filter Theory", chapter 10).
#[derive(Debug, Clone, Default)]
pub struct Speed {
    weight: f64,
    tokens: f64,
    seconds: f64,
    tokens_squared: f64,
    tokens_seconds: f64,
}

impl Speed {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Learns from a batch.
    pub fn observe(&mut self, tokens: usize, took: Duration) {
        let (tokens, seconds) = (float(tokens), took.as_secs_f64());
        let forget = |sum: &mut f64, term: f64| *sum = *sum * MEMORY + term;
        forget(&mut self.weight, 1.0);
        forget(&mut self.tokens, tokens);
        forget(&mut self.seconds, seconds);
        forget(&mut self.tokens_squared, tokens * tokens);
        forget(&mut self.tokens_seconds, tokens * seconds);
    }

    /// How long `tokens` in batches of at most `batch` tokens will take; `None` before the first
    /// batch was observed.
    pub fn estimate(&self, tokens: usize, batch: usize) -> Option<Duration> {
        let (fixed, each) = self.fit()?;
        let batches = tokens.div_ceil(batch.max(1)).max(1);
        Duration::try_from_secs_f64(fixed * float(batches) + each * float(tokens)).ok()
    }

    /// The fitted A and B, neither below zero.
    fn fit(&self) -> Option<(f64, f64)> {
        if self.weight <= 0.0 || self.tokens <= 0.0 {
            return None;
        }
        let spread = self.weight * self.tokens_squared - self.tokens * self.tokens;
        let slope = (self.weight * self.tokens_seconds - self.tokens * self.seconds) / spread;
        let proportional = self.seconds / self.tokens;
        // Batches of one size say nothing about the slope: then time is taken as proportional.
        if spread <= 1e-6 * self.weight * self.tokens_squared || slope <= 0.0 {
            return Some((0.0, proportional));
        }
        let fixed = (self.seconds - slope * self.tokens) / self.weight;
        Some(if fixed >= 0.0 { (fixed, slope) } else { (0.0, proportional) })
    }
}

#[expect(clippy::cast_precision_loss, reason = "token counts are far below 2⁵²")]
fn float(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(speed: &mut Speed, fixed: f64, each: f64) {
        for round in 0..100 {
            let tokens = 100 + 37 * (round % 11);
            let seconds = fixed + each * float(tokens);
            speed.observe(tokens, Duration::from_secs_f64(seconds));
        }
    }

    fn estimate(speed: &Speed, tokens: usize, batch: usize) -> f64 {
        speed.estimate(tokens, batch).unwrap().as_secs_f64()
    }

    #[test]
    fn the_fit_finds_fixed_and_proportional_cost() {
        let mut speed = Speed::new();
        assert_eq!(speed.estimate(100, 100), None);
        run(&mut speed, 0.002, 1e-5);
        assert!((estimate(&speed, 1000, 1000) - 0.012).abs() < 1e-6);
        assert!((estimate(&speed, 1000, 100) - 0.030).abs() < 1e-6, "ten batches, ten fixed costs");
    }

    #[test]
    fn a_device_that_slows_down_is_noticed() {
        let mut speed = Speed::new();
        run(&mut speed, 0.0, 1e-5);
        run(&mut speed, 0.0, 3e-5);
        run(&mut speed, 0.0, 3e-5);
        assert!((estimate(&speed, 1000, 1000) - 0.03).abs() < 0.003);
    }

    #[test]
    fn batches_of_one_size_are_taken_as_proportional() {
        let mut speed = Speed::new();
        for _ in 0..5 {
            speed.observe(100, Duration::from_millis(10));
        }
        assert!((estimate(&speed, 200, 100) - 0.02).abs() < 1e-9);
    }
}
