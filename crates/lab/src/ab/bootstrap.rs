//! How sure a figure is: bootstrap intervals over few passes.
//!
//! Passes are drawn again, with replacement, and the figure computed of each draw; the interval is
//! between two percentiles of what comes out. With five passes the plain percentiles would hold the
//! truth in about 85 of 100 experiments instead of 95, so they are moved outwards by as much as
//! Student's distribution is wider than the normal one (T. Hesterberg, "What Teachers Should Know About
//! the Bootstrap", 2015, section 4.2: the expanded percentile interval).

use serde::Serialize;

use crate::results::whole;

const DRAWS: usize = 10_000;

/// Where the normal distribution has 2.5 % of its mass above.
const NORMAL: f64 = 1.959_964;

/// A figure, and between what it lies in 95 of 100 experiments.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Estimate {
    pub(super) value: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// The mean of what passes gave.
pub(super) fn mean(values: &[f64]) -> Option<Estimate> {
    estimate(values.len(), |draw| average(draw, values))
}

/// The mean of `values` relative to that of `base`, whose passes are paired: the same requests, one
/// after the other. `None` if there is nothing to divide by.
pub(super) fn ratio(values: &[f64], base: &[f64]) -> Option<Estimate> {
    let pairs = values.len().min(base.len());
    estimate(pairs, |draw| average(draw, values) / average(draw, base))
}

fn average(draw: &[usize], values: &[f64]) -> f64 {
    draw.iter().map(|&index| values[index]).sum::<f64>() / draw.len() as f64
}

fn estimate(passes: usize, figure: impl Fn(&[usize]) -> f64) -> Option<Estimate> {
    let mut draw: Vec<usize> = (0..passes).collect();
    let value = figure(&draw);
    // The same passes give the same interval.
    let mut random = fastrand::Rng::with_seed(1);
    let mut figures = Vec::with_capacity(DRAWS);
    for _ in 0..if passes == 0 { 0 } else { DRAWS } {
        draw.fill_with(|| random.usize(..passes));
        figures.push(figure(&draw));
    }
    if !value.is_finite() || figures.iter().any(|figure| !figure.is_finite()) {
        return None;
    }
    figures.sort_unstable_by(f64::total_cmp);
    let tail = whole(DRAWS as f64 * tail(passes)) as usize;
    Some(Estimate { value, low: figures[tail], high: figures[DRAWS - 1 - tail] })
}

/// The part of draws to leave out at each end.
fn tail(passes: usize) -> f64 {
    if passes < 2 {
        return 0.0;
    }
    let passes = passes as f64;
    normal_above(student(passes - 1.0) * (passes / (passes - 1.0)).sqrt())
}

/// Where Student's distribution has 2.5 % of its mass above, by Cornish and Fisher's expansion: within
/// 1 % from three degrees of freedom on.
fn student(degrees: f64) -> f64 {
    let z = NORMAL;
    let terms = [
        z,
        (z.powi(3) + z) / 4.0,
        (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0,
        (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0,
    ];
    terms.iter().rev().fold(0.0, |sum, term| sum / degrees + term)
}

/// The normal distribution's mass above `x` ≥ 0: formula 26.2.17 of Abramowitz and Stegun, right to
/// 1e-7.
fn normal_above(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * x);
    let terms = [0.319_381_53, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
    let polynomial = terms.iter().rev().fold(0.0, |sum, term| (sum + term) * t);
    polynomial * (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(random: &mut fastrand::Rng) -> f64 {
        let (u, v) = (1.0 - random.f64(), random.f64());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// In how many of 400 experiments the interval holds the true ratio, 0.8, where the passes of both
    /// arms share most of what varies.
    fn coverage(passes: usize) -> f64 {
        let mut random = fastrand::Rng::with_seed(11);
        let held = (0..400).filter(|_| {
            let base: Vec<f64> = (0..passes).map(|_| 10.0 + normal(&mut random)).collect();
            let values: Vec<f64> =
                base.iter().map(|base| 0.8 * base + 0.1 * normal(&mut random)).collect();
            let Estimate { low, high, .. } = ratio(&values, &base).unwrap();
            (low..=high).contains(&0.8)
        });
        held.count() as f64 / 400.0
    }

    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        for passes in [5, 12, 30] {
            let coverage = coverage(passes);
            assert!((0.92..=0.985).contains(&coverage), "{passes} passes: {coverage}");
        }
    }

    #[test]
    fn pairs_take_out_what_both_arms_share() {
        let base = [100.0, 200.0, 50.0, 400.0, 130.0];
        let paired: Vec<f64> = base.iter().map(|base| base * 0.5).collect();
        let half = ratio(&paired, &base).unwrap();
        assert!((half.low - 0.5).abs() < 1e-9 && (half.high - 0.5).abs() < 1e-9);
        assert!(mean(&base).unwrap().high > 1.5 * mean(&base).unwrap().low);
    }

    #[test]
    fn without_something_to_divide_by_there_is_no_ratio() {
        assert_eq!(ratio(&[1.0, 2.0], &[0.0, 0.0]), None);
        assert_eq!(ratio(&[1.0, 2.0], &[0.0, 3.0]), None, "some draws have only the first");
        assert_eq!(mean(&[]), None);
        assert_eq!(mean(&[f64::INFINITY]), None);
    }

    #[test]
    fn distributions_are_those_of_the_tables() {
        for (degrees, table) in [(4.0, 2.776), (9.0, 2.262), (29.0, 2.045)] {
            assert!((student(degrees) - table).abs() < 0.01, "{degrees}: {}", student(degrees));
        }
        assert!((normal_above(NORMAL) - 0.025).abs() < 1e-6);
        assert!((normal_above(0.0) - 0.5).abs() < 1e-6);
    }
}
