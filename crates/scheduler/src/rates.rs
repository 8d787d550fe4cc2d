//! How fast the devices are at a class of work, kept until a speed changes.
//!
//! Rates are those of full batches of inputs as long as those of late: a device that happens to run small
//! batches is not slower for that.

use crate::job::{Size, float};
use crate::speed::{Coefficients, Speed};

/// The share of a new batch in the mean length.
const NEW_LENGTH: f64 = 0.02;

/// What a device is taken for while nothing at all is known of any.
const TYPICAL: Coefficients = Coefficients { fixed: 1e-3, per_token: 1e-6, per_square: 0.0 };

/// The devices' tokens per second.
#[derive(Debug)]
pub(crate) struct Rates {
    /// The mean length of the class's inputs of late, each as often as it has tokens.
    pub(crate) length: f64,
    /// Batches of it that all devices have run.
    pub(crate) batches: u64,
    /// Each device's rate.
    each: Vec<f64>,
    /// The fastest device's model: what is hoped of one that is not known.
    pub(crate) fastest: Option<Coefficients>,
    /// Its rate.
    most: f64,
    /// Whether these are those of the speeds that are known now.
    valid: bool,
}

impl Rates {
    pub(crate) fn new(devices: usize) -> Self {
        let each = vec![0.0; devices];
        Self { length: 0.0, batches: 0, each, fastest: None, most: 0.0, valid: false }
    }

    /// A device has run a batch.
    pub(crate) fn ran(&mut self, size: Size) {
        if size.tokens > 0 {
            let length = size.squares / float(size.tokens);
            let share = if self.length > 0.0 { NEW_LENGTH } else { 1.0 };
            self.length += share * (length - self.length);
        }
        self.batches += 1;
    }

    /// A device's speed is another.
    pub(crate) fn invalidate(&mut self) {
        self.valid = false;
    }

    /// Works them out, if a speed is another: by the devices' speeds and the most tokens of their batches.
    pub(crate) fn refresh<'a>(&mut self, devices: impl Iterator<Item = (&'a Speed, usize)>) {
        if self.valid {
            return;
        }
        (self.most, self.fastest) = (0.0, None);
        for (rate, (speed, batch_tokens)) in self.each.iter_mut().zip(devices) {
            let known = speed.coefficients();
            let model = known.unwrap_or(TYPICAL);
            let tokens = float(batch_tokens.max(1));
            let each = model.marginal(self.length);
            *rate = tokens / (model.fixed + each * tokens).max(1e-12);
            if known.is_some() && *rate > self.most {
                self.most = *rate;
                self.fastest = known;
            }
        }
        self.valid = true;
    }

    /// Tokens per second of a device.
    pub(crate) fn of(&self, device: usize) -> f64 {
        self.each[device]
    }

    /// What a second of a device is worth in those of the fastest one.
    pub(crate) fn worth(&self, device: usize) -> f64 {
        if self.most > 0.0 { (self.each[device] / self.most).min(1.0) } else { 1.0 }
    }

    /// What a device of this speed is taken for: as others while nothing is known of it.
    pub(crate) fn model(&self, speed: &Speed) -> Coefficients {
        speed.coefficients().or(self.fastest).unwrap_or(TYPICAL)
    }
}
