//! A device as it really is, which the scheduler only learns from the times of its batches.

use std::time::Duration;

use vecmill_scheduler::{Coefficients, DeviceSettings, Size, Speed};

/// Below this speed a device is taken for a processor: slow, but without the cost of launches.
const PROCESSOR: f64 = 0.1;

/// A processor's fixed cost, in seconds.
const PROCESSOR_FIXED: f64 = 5e-4;

/// Seconds in which the host prepares a batch, while the device may still run the one before.
pub(super) const PREPARATION: f64 = 2e-4;

/// The usual spread of the logarithm of a batch's time.
pub(super) const NOISE: f64 = 0.05;

/// Batches that a device has at most, the one that it runs and one that is ready.
const IN_FLIGHT: usize = 2;

/// What `--max-batch-tokens auto` goes by: the most a batch takes, its tokens at least and at most, and
/// the length of inputs, each as often as it has tokens.
const LONGEST_BATCH: Duration = Duration::from_millis(100);
const LEAST_TOKENS: usize = 512;
const MOST_TOKENS: usize = 16_384;
pub(super) const MEAN_LENGTH: f64 = 128.0;

/// Something that happens to a device, at a part of the run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Mishap {
    /// From the middle of the run on, it takes so many times as long.
    SlowsDown(f64),
    /// In the third quarter, all its batches fail, after the time they should have taken.
    Fails,
    /// In the third quarter it doesn't move: a batch begun then is done only after it.
    Hangs,
}

/// A device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Device {
    pub(super) model: Coefficients,
    /// The most tokens of its batches.
    pub(super) batch_tokens: usize,
    /// Batches that it has at most.
    pub(super) in_flight: usize,
    /// The spread of the logarithm of a batch's time.
    pub(super) noise: f64,
    pub(super) mishap: Option<Mishap>,
}

impl Device {
    /// A device of a part of full speed.
    pub(super) fn new(speed: f64, full: Coefficients) -> Self {
        let mut model = Coefficients {
            fixed: full.fixed / speed,
            per_token: full.per_token / speed,
            per_square: full.per_square / speed,
        };
        if speed < PROCESSOR {
            model.fixed = PROCESSOR_FIXED;
        }
        let batch_tokens =
            model.saturation_tokens(MEAN_LENGTH, LONGEST_BATCH, LEAST_TOKENS, MOST_TOKENS);
        Self { model, batch_tokens, in_flight: IN_FLIGHT, noise: NOISE, mishap: None }
    }

    /// Tokens per second in full batches.
    pub(super) fn rate(&self) -> f64 {
        let tokens = self.batch_tokens as f64;
        tokens / (self.model.fixed + self.model.marginal(MEAN_LENGTH) * tokens)
    }

    /// The most tokens, of inputs of a length, that it can do within so many seconds.
    fn tokens_within(&self, seconds: f64, length: f64) -> f64 {
        let most = self.batch_tokens as f64;
        let (fixed, each) = (self.model.fixed, self.model.marginal(length));
        let full = (seconds / (fixed + each * most)).floor();
        let rest = seconds - full * (fixed + each * most);
        full * most + ((rest - fixed) / each).max(0.0)
    }

    /// How long a batch takes when begun at a part of the run.
    pub(super) fn seconds(&self, size: Size, at: f64, random: &mut fastrand::Rng) -> f64 {
        let slower = match self.mishap {
            Some(Mishap::SlowsDown(factor)) if at >= 0.5 => factor,
            _ => 1.0,
        };
        self.model.seconds(size) * slower * (self.noise * normal(random)).exp()
    }

    /// What a scheduler is told of it after its warm-up.
    pub(super) fn settings(&self, random: &mut fastrand::Rng) -> DeviceSettings {
        let mut speed = Speed::new();
        let Self { batch_tokens, in_flight, .. } = *self;
        for round in 0..8 {
            let length = 16 << (round % 4);
            let size = Size::equal((batch_tokens >> (round / 2)).div_ceil(length), length);
            speed.observe(size, Duration::from_secs_f64(self.seconds(size, 0.0, random)));
        }
        DeviceSettings { batch_tokens, in_flight, speed }
    }
}

/// A normally distributed number, by Box and Muller's transform.
fn normal(random: &mut fastrand::Rng) -> f64 {
    let (u, v) = (1.0 - random.f64(), random.f64());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// The least time in which devices can do so many tokens, of inputs of a length: what one who knows
/// everything would take.
pub(super) fn least_makespan(devices: &[Device], tokens: f64, length: f64) -> f64 {
    let within = |seconds: f64| -> f64 {
        devices.iter().map(|device| device.tokens_within(seconds, length)).sum()
    };
    let mut high = 1e-3;
    while within(high) < tokens {
        high *= 2.0;
    }
    let mut low = high / 2.0;
    for _ in 0..50 {
        let middle = f64::midpoint(low, high);
        if within(middle) < tokens {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}
