//! How fast a device is.
//!
//! - [`Coefficients`] are the model `seconds = A + B · tokens + C · Σ length²`, as plain numbers that
//!   can be kept between runs.
//! - [`Speed`] fits them to the batches that a device has run: recursive least squares with
//!   forgetting (S. Haykin, "Adaptive Filter Theory", chapter 10), in its information form.
//!
//! The choices behind it:
//!
//! - Errors count relative to a batch's time, so that small batches tell A and large ones B.
//! - Each fit is tied a little to the one before: what the batches of late say nothing about stays
//!   as it was, and no direction can wind up. The information form has no covariance to grow.
//! - A batch that took much longer or shorter than expected is a surprise and counts as a moderate one:
//!   if it was an outlier, little harm is done. The third in one direction means that the device
//!   has changed. What was learned is kept then, scaled: devices change in all their parts, by heat,
//!   clocks or neighbours.
//! - While smaller errors agree in sign, the past is forgotten faster: a drift is followed.

use std::time::Duration;

use crate::job::{Size, float, whole};

/// How much of the past each new batch keeps: about the last fifty count.
const MEMORY: f64 = 0.98;

/// How much less of it while predictions are off in one direction: the last two or three count.
const HASTE: f64 = 0.4;

/// Mean errors, as logarithms, from which haste begins, and over which it reaches its full.
const BIAS: (f64, f64) = (0.1, 0.2);

/// The share of a new error in their mean.
const NEW_ERROR: f64 = 0.2;

/// The logarithm of the factor from which an error is a surprise, and by which one counts: 1.5.
const SURPRISE: f64 = 0.405;

/// So many surprises in one direction are a change.
const CHANGED: u32 = 3;

/// Batches after which a fit is trusted enough for anything to be a surprise.
const TRUSTED: u64 = 6;

/// How strongly a fit is tied to the one before, relative to what is known.
const TIE: f64 = 1e-3;

/// The part of a batch's time that a coefficient may gain as easily as one that makes up so much.
const EASY: f64 = 0.3;

/// What a batch at least takes: whatever was measured below it is the clock's doing.
const LEAST_SECONDS: f64 = 1e-7;

/// The part of a device's full speed from which larger batches hardly pay.
const NEARLY_FULL: f64 = 0.95;

/// A device's `seconds = A + B · tokens + C · Σ length²`. None is negative.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Coefficients {
    /// A: seconds of a batch, however small.
    pub fixed: f64,
    /// B: seconds of a token.
    pub per_token: f64,
    /// C: seconds per square of a length.
    pub per_square: f64,
}

impl Coefficients {
    /// What a batch takes.
    pub fn seconds(&self, size: Size) -> f64 {
        self.fixed + self.per_token * float(size.tokens) + self.per_square * size.squares
    }

    /// Seconds of a token in batches of inputs of this length: the fixed part apart.
    pub fn marginal(&self, length: f64) -> f64 {
        self.per_token + self.per_square * length
    }

    /// The tokens of a device's batches, of inputs of a length: so many that its speed is nearly full,
    /// larger ones would only take longer; fewer if such a batch would take longer than `bound`. At
    /// least `least`, for the longest input to fit, and at most `most`, for memory.
    ///
    /// ```
    /// use std::time::Duration;
    /// use vecmill_scheduler::Coefficients;
    ///
    /// let gpu = Coefficients { fixed: 0.001, per_token: 1e-6, per_square: 0.0 };
    /// assert_eq!(gpu.saturation_tokens(64.0, Duration::from_millis(100), 512, 65_536), 19_000);
    /// assert_eq!(gpu.saturation_tokens(64.0, Duration::from_millis(11), 512, 65_536), 10_000);
    /// ```
    #[must_use]
    pub fn saturation_tokens(
        &self,
        length: f64,
        bound: Duration,
        least: usize,
        most: usize,
    ) -> usize {
        let each = self.marginal(length).max(f64::MIN_POSITIVE);
        let saturated = NEARLY_FULL / (1.0 - NEARLY_FULL) * self.fixed / each;
        let in_time = (bound.as_secs_f64() - self.fixed) / each;
        whole(saturated.min(in_time).round()).max(least).min(most)
    }

    /// Whether these can be some device's: kept figures may be damaged.
    pub fn are_sound(&self) -> bool {
        let all = [self.fixed, self.per_token, self.per_square];
        all.iter().all(|value| value.is_finite() && *value >= 0.0)
            && all.iter().any(|value| *value > 0.0)
    }
}

/// What has been learned of a device's speed.
#[derive(Debug, Clone, Default)]
pub struct Speed {
    /// Decayed sums of products of features, and of features, each relative to its batch's time.
    information: [[f64; 3]; 3],
    response: [f64; 3],
    /// How many batches these stand for.
    weight: f64,
    fit: [f64; 3],
    known: bool,
    observed: u64,
    /// Surprises in a row in one direction, and the sum of their errors, as logarithms.
    surprises: (u32, f64),
    bias: f64,
    last_error: f64,
    mean_error: f64,
}

impl Speed {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts from what was learned before. The first batches may correct it entirely.
    pub fn kept(kept: Coefficients) -> Self {
        if !kept.are_sound() {
            return Self::new();
        }
        let fit = [kept.fixed, kept.per_token, kept.per_square];
        Self { fit, known: true, ..Self::default() }
    }

    /// Learns from a batch.
    pub fn observe(&mut self, size: Size, took: Duration) {
        if size.tokens == 0 {
            return;
        }
        let features = [1.0, float(size.tokens), size.squares];
        let measured = took.as_secs_f64().max(LEAST_SECONDS);
        if !self.known {
            // One batch can't tell the parts from each other: time is taken as proportional.
            self.fit = [0.0, measured / float(size.tokens), 0.0];
            self.known = true;
        }
        let predicted = dot(&self.fit, &features).max(LEAST_SECONDS);
        self.judge(predicted, measured);
        let seconds = self.credible(predicted, measured);
        let hurry = ((self.bias.abs() - BIAS.0) / BIAS.1).clamp(0.0, 1.0);
        let keep = MEMORY - HASTE * hurry;
        let features = features.map(|feature| feature / seconds);
        for (row, feature) in self.information.iter_mut().zip(features) {
            for (sum, other) in row.iter_mut().zip(features) {
                *sum = *sum * keep + feature * other;
            }
        }
        for (sum, feature) in self.response.iter_mut().zip(features) {
            *sum = *sum * keep + feature;
        }
        self.weight = self.weight * keep + 1.0;
        self.observed += 1;
        self.refit();
    }

    /// The model, if anything is known.
    pub fn coefficients(&self) -> Option<Coefficients> {
        let [fixed, per_token, per_square] = self.fit;
        self.known.then_some(Coefficients { fixed, per_token, per_square })
    }

    /// Whether it may be much faster than is believed: so the last batch said.
    pub(crate) fn was_surpassed(&self) -> bool {
        self.surprises.1 < 0.0
    }

    /// Batches that it was learned from.
    pub fn observed(&self) -> u64 {
        self.observed
    }

    /// How far the last prediction was off, relative to what was measured; above zero if the batch
    /// took longer.
    pub fn last_error(&self) -> f64 {
        self.last_error
    }

    /// The mean of how far predictions were off of late, in either direction.
    pub fn mean_error(&self) -> f64 {
        self.mean_error
    }

    fn judge(&mut self, predicted: f64, measured: f64) {
        self.last_error = (measured - predicted) / measured;
        self.mean_error += NEW_ERROR * (self.last_error.abs().min(1.0) - self.mean_error);
    }

    /// What is believed of a batch's time: all of it, unless it is a surprise. Several of those in one
    /// direction are a change, which is believed to be one of the whole device.
    fn credible(&mut self, predicted: f64, measured: f64) -> f64 {
        if self.observed < TRUSTED {
            return measured;
        }
        let error = (measured / predicted).ln();
        let (surprises, sum) = self.surprises;
        self.surprises = match error.abs() > SURPRISE {
            true if sum * error > 0.0 => (surprises + 1, sum + error),
            true => (1, error),
            false => (0, 0.0),
        };
        if self.surprises.0 == CHANGED {
            self.scale((self.surprises.1 / f64::from(CHANGED)).exp());
            self.surprises = (0, 0.0);
            self.bias = 0.0;
            return measured;
        }
        let credible = error.clamp(-SURPRISE, SURPRISE);
        self.bias += NEW_ERROR * (credible - self.bias);
        predicted * credible.exp()
    }

    /// Takes all that was learned as if the device had always been slower by a factor.
    fn scale(&mut self, factor: f64) {
        self.fit = self.fit.map(|value| value * factor);
        self.response = self.response.map(|sum| sum / factor);
        self.information = self.information.map(|row| row.map(|sum| sum / (factor * factor)));
    }

    /// The least squares fit without negative parts: those that would be are left out.
    fn refit(&mut self) {
        let mut used = [0, 1, 2].map(|i| self.information[i][i] > 0.0);
        for _ in 0..3 {
            let fit = self.solve(used);
            let least = (0..3).filter(|&i| used[i]).min_by(|&i, &j| fit[i].total_cmp(&fit[j]));
            let Some(least) = least else { return };
            if fit[least] >= 0.0 {
                if fit.iter().all(|value| value.is_finite()) {
                    self.fit = fit;
                }
                return;
            }
            used[least] = false;
        }
    }

    /// Solves for the used coefficients, tied to the fit before; the others are zero, or stay if no
    /// batch told anything about them.
    fn solve(&self, used: [bool; 3]) -> [f64; 3] {
        let scale = [0, 1, 2].map(|i| self.information[i][i].sqrt().max(f64::MIN_POSITIVE));
        let mut matrix = [[0.0; 4]; 3];
        for i in 0..3 {
            matrix[i][i] = 1.0;
            if !used[i] {
                continue;
            }
            for j in (0..3).filter(|&j| used[j]) {
                matrix[i][j] = self.information[i][j] / (scale[i] * scale[j]);
            }
            // Relative to its size: a device that turns slower does so in all its parts.
            let part = self.fit[i] * scale[i] / self.weight.sqrt();
            let tie = TIE / part.max(EASY).powi(2);
            matrix[i][i] += tie;
            matrix[i][3] = self.response[i] / scale[i] + tie * self.fit[i] * scale[i];
        }
        let solution = eliminate(matrix);
        [0, 1, 2].map(|i| match (used[i], self.information[i][i] > 0.0) {
            (true, _) => solution[i] / scale[i],
            (false, true) => 0.0,
            (false, false) => self.fit[i],
        })
    }
}

fn dot(a: &[f64; 3], b: &[f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Gauss's elimination. The diagonal dominates by the tie, so rows need no exchange.
fn eliminate(mut matrix: [[f64; 4]; 3]) -> [f64; 3] {
    for pivot in 0..3 {
        let row = matrix[pivot];
        for below in matrix.iter_mut().skip(pivot + 1) {
            let factor = below[pivot] / row[pivot];
            for (value, above) in below.iter_mut().zip(row) {
                *value -= factor * above;
            }
        }
    }
    let mut solution = [0.0; 3];
    for i in (0..3).rev() {
        let known: f64 = (i + 1..3).map(|j| matrix[i][j] * solution[j]).sum();
        solution[i] = (matrix[i][3] - known) / matrix[i][i];
    }
    solution
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRUE: Coefficients = Coefficients { fixed: 0.002, per_token: 1e-6, per_square: 3e-9 };

    /// The `round`th of many batches of unlike sizes and lengths.
    fn batch(round: usize) -> Size {
        Size::equal(1 + round * 7 % 31, 8 + round * 13 % 211)
    }

    fn run(speed: &mut Speed, model: Coefficients, rounds: usize) {
        for round in 0..rounds {
            let seconds = model.seconds(batch(round));
            speed.observe(batch(round), Duration::from_secs_f64(seconds));
        }
    }

    fn times(model: Coefficients, factor: f64) -> Coefficients {
        Coefficients {
            fixed: model.fixed * factor,
            per_token: model.per_token * factor,
            per_square: model.per_square * factor,
        }
    }

    /// The largest relative error over sizes from a word to a full batch.
    fn error(speed: &Speed, model: Coefficients) -> f64 {
        let sizes = [Size::equal(1, 8), Size::equal(8, 64), Size::equal(64, 128)];
        let fitted = speed.coefficients().unwrap();
        let off = |size| (fitted.seconds(size) / model.seconds(size) - 1.0).abs();
        sizes.map(off).into_iter().fold(0.0, f64::max)
    }

    #[test]
    fn the_fit_finds_all_three_parts() {
        let mut speed = Speed::new();
        assert_eq!(speed.coefficients(), None);
        run(&mut speed, TRUE, 200);
        let found = speed.coefficients().unwrap();
        assert!((found.fixed / TRUE.fixed - 1.0).abs() < 0.02, "{found:?}");
        assert!((found.per_token / TRUE.per_token - 1.0).abs() < 0.05, "{found:?}");
        assert!((found.per_square / TRUE.per_square - 1.0).abs() < 0.05, "{found:?}");
        assert!(speed.mean_error() < 0.01);
    }

    #[test]
    fn three_times_slower_or_faster_is_absorbed_in_20_batches() {
        for factor in [3.0, 1.0 / 3.0] {
            let mut speed = Speed::new();
            run(&mut speed, TRUE, 200);
            run(&mut speed, times(TRUE, factor), 20);
            let left = error(&speed, times(TRUE, factor));
            assert!(left < 0.1, "{factor}: {left}");
        }
    }

    #[test]
    fn a_slow_drift_is_followed() {
        let mut speed = Speed::new();
        run(&mut speed, TRUE, 100);
        for step in 0..100 {
            let now = times(TRUE, 1.0 + 2.0 * float(step) / 100.0);
            speed.observe(batch(step), Duration::from_secs_f64(now.seconds(batch(step))));
        }
        assert!(error(&speed, times(TRUE, 3.0)) < 0.25, "{}", error(&speed, times(TRUE, 3.0)));
    }

    #[test]
    fn an_outlier_does_little_harm() {
        let mut speed = Speed::new();
        run(&mut speed, TRUE, 100);
        speed.observe(batch(3), Duration::from_secs(60));
        assert!(error(&speed, TRUE) < 0.1, "{}", error(&speed, TRUE));
        run(&mut speed, TRUE, 10);
        assert!(error(&speed, TRUE) < 0.05, "{}", error(&speed, TRUE));
    }

    #[test]
    fn noise_averages_out() {
        let mut speed = Speed::new();
        for round in 0..400 {
            let noise = 1.0 + 0.1 * ((round * 37 % 100) as f64 / 50.0 - 1.0);
            let seconds = TRUE.seconds(batch(round)) * noise;
            speed.observe(batch(round), Duration::from_secs_f64(seconds));
        }
        assert!(error(&speed, TRUE) < 0.1, "{}", error(&speed, TRUE));
    }

    #[test]
    fn batches_of_one_size_are_taken_as_proportional() {
        let mut speed = Speed::new();
        for _ in 0..5 {
            speed.observe(Size::equal(1, 100), Duration::from_millis(10));
        }
        let seconds = speed.coefficients().unwrap().seconds(Size::equal(2, 100));
        assert!((seconds - 0.02).abs() < 1e-9, "{seconds}");
    }

    #[test]
    fn kept_figures_are_a_start_that_the_first_batches_correct() {
        let mut speed = Speed::kept(times(TRUE, 1000.0));
        assert_eq!(speed.coefficients(), Some(times(TRUE, 1000.0)));
        run(&mut speed, TRUE, 20);
        assert!(error(&speed, TRUE) < 0.05, "{}", error(&speed, TRUE));
        let damaged = Coefficients { per_token: f64::NAN, ..TRUE };
        assert_eq!(Speed::kept(damaged).coefficients(), None);
    }

    #[test]
    fn a_device_without_fixed_cost_takes_the_least_and_a_slow_one_too() {
        let model = Coefficients { fixed: 0.0, per_token: 1e-6, per_square: 0.0 };
        assert_eq!(model.saturation_tokens(64.0, Duration::from_secs(1), 512, 16_384), 512);
        let slow = Coefficients { fixed: 1.0, per_token: 1e-3, per_square: 0.0 };
        assert_eq!(slow.saturation_tokens(64.0, Duration::from_millis(10), 512, 16_384), 512);
        let endless = Coefficients { fixed: 1.0, ..Coefficients::default() };
        assert_eq!(endless.saturation_tokens(64.0, Duration::from_secs(9), 512, 16_384), 16_384);
    }

    proptest! {
        #[test]
        fn whatever_is_measured_the_model_stays_a_model(
            batches in prop::collection::vec(
                (prop_oneof![0usize..3, 1usize..100_000, Just(usize::MAX)],
                 prop_oneof![0usize..3, 1usize..1000],
                 prop_oneof![Just(0u64), 1u64..1_000_000_000_000, Just(u64::MAX)]),
                1..200,
            ),
        ) {
            let mut speed = Speed::new();
            for (tokens, inputs, nanoseconds) in batches {
                speed.observe(Size::equal(inputs, tokens), Duration::from_nanos(nanoseconds));
                if let Some(model) = speed.coefficients() {
                    prop_assert!(model.are_sound(), "{model:?}");
                }
                prop_assert!(speed.mean_error().is_finite() && speed.last_error().is_finite());
            }
        }

        #[test]
        fn any_start_is_left_behind(factor in -6.0f64..6.0) {
            let mut speed = Speed::kept(times(TRUE, 10f64.powf(factor)));
            run(&mut speed, TRUE, 60);
            prop_assert!(error(&speed, TRUE) < 0.1, "{}", error(&speed, TRUE));
        }
    }
}
