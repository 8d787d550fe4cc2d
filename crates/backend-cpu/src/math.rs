//! Elementary functions on slices, written so that the compiler turns them into vector code.
//!
//! All of them are free of branches and are inlined into callers that [`pulp`] compiles once per
//! instruction set.

use vecmill_model::Activation;

/// How many partial sums a reduction keeps: wide enough for two AVX-512 registers, and the same on
/// every processor, so that sums round the same everywhere.
const LANES: usize = 32;

/// Applies `activation` to every element.
#[inline(always)]
#[expect(
    clippy::redundant_closure,
    reason = "a function's name would become a call through a shim that is not vectorised"
)]
pub(crate) fn activate(activation: Activation, values: &mut [f32]) {
    match activation {
        Activation::Identity => {}
        Activation::Gelu => map(values, |x| gelu(x)),
        Activation::GeluTanh => map(values, |x| gelu_tanh(x)),
        Activation::Relu => map(values, |x| x.max(0.0)),
        Activation::Silu => map(values, |x| x / (1.0 + exp(-x))),
        Activation::Tanh => map(values, |x| tanh(x)),
    }
}

#[inline(always)]
fn map(values: &mut [f32], function: impl Fn(f32) -> f32) {
    for value in values {
        *value = function(*value);
    }
}

/// eˣ to about one unit in the last place: range reduction by powers of two, then the degree-6
/// polynomial of Cephes' `expf` (S. Moshier). Underflows to 0 below −87.3; inputs above 88.3 give
/// the largest finite result.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 · 2²³ leaves the rounded integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let power = shifted - ROUND;
    let r = power.mul_add(-LN2_LOW, power.mul_add(-LN2_HIGH, clamped));
    let p = 1.987_569_1e-4_f32
        .mul_add(r, 1.398_199_9e-3)
        .mul_add(r, 8.333_452e-3)
        .mul_add(r, 4.166_579_6e-2)
        .mul_add(r, 1.666_666_5e-1)
        .mul_add(r, 5e-1);
    let mantissa = p.mul_add(r * r, r) + 1.0;
    let result = f32::from_bits(mantissa.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < -87.3 { 0.0 } else { result }
}

/// The error function, as a ratio of polynomials of degree 13 and 8 (coefficients as in Eigen's
/// `erf`, a minimax fit on ±4); past 3.9 it is ±1 to half a unit in the last place.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let s = x * x;
    let numerator = (-2.726_142e-10_f32)
        .mul_add(s, 2.770_681_4e-8)
        .mul_add(s, -2.101_024e-6)
        .mul_add(s, -5.692_506_5e-5)
        .mul_add(s, -7.349_906e-4)
        .mul_add(s, -2.954_6e-3)
        .mul_add(s, -1.609_603_3e-2);
    let denominator = (-1.456_607_2e-5_f32)
        .mul_add(s, -2.133_740_5e-4)
        .mul_add(s, -1.682_827e-3)
        .mul_add(s, -7.373_329e-3)
        .mul_add(s, -1.426_473_9e-2);
    if x.abs() > 3.9 { x.signum() } else { x * numerator / denominator }
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    // Small arguments by the odd series: `1 - 2 / (e²ˣ + 1)` would lose their digits.
    let s = x * x;
    let small =
        x * (-0.053_968_254_f32).mul_add(s, 0.133_333_33).mul_add(s, -0.333_333_34).mul_add(s, 1.0);
    let large = 1.0 - 2.0 / (exp(2.0 * x.clamp(-20.0, 20.0)) + 1.0);
    if s < 0.04 { small } else { large }
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + tanh(SQRT_2_OVER_PI * (0.044_715 * x * x).mul_add(x, x)))
}

/// Cosine and sine of an angle in whole turns, to about one unit in the last place of single precision: the
/// next quarter turn is taken off in double precision, the rest goes into the polynomials of Cephes'
/// `cosf` and `sinf` (S. Moshier).
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "what is left is rounded on purpose")]
pub(crate) fn cos_sin(turns: f64) -> (f32, f32) {
    // Adding 1.5 · 2⁵² leaves the rounded integer in the low bits of the mantissa.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let quarters = 4.0 * turns;
    let shifted = quarters + ROUND;
    let x = ((quarters - (shifted - ROUND)) * std::f64::consts::FRAC_PI_2) as f32;
    let s = x * x;
    let sin = (-1.951_529_6e-4_f32).mul_add(s, 8.332_161e-3).mul_add(s, -1.666_665_5e-1);
    let sin = (sin * s).mul_add(x, x);
    let cos = 2.443_315_7e-5_f32.mul_add(s, -1.388_731_6e-3).mul_add(s, 4.166_664_6e-2);
    let cos = (cos * s).mul_add(s, (-0.5_f32).mul_add(s, 1.0));
    let quarter = shifted.to_bits();
    let (cos, sin) = if quarter & 1 == 0 { (cos, sin) } else { (sin, cos) };
    let cos = if (quarter + 1) & 2 == 0 { cos } else { -cos };
    let sin = if quarter & 2 == 0 { sin } else { -sin };
    (cos, sin)
}

/// Sum of `term` over all elements.
#[inline(always)]
pub(crate) fn sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    fold(values, 0.0, |sum, x| sum + term(x), |a, b| a + b)
}

/// The largest element, −∞ for none.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    fold(values, f32::NEG_INFINITY, |a, b| a.max(b), |a, b| a.max(b))
}

#[inline(always)]
fn fold(
    values: &[f32],
    start: f32,
    step: impl Fn(f32, f32) -> f32,
    join: impl Fn(f32, f32) -> f32,
) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [start; LANES];
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = step(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = step(*lane, x);
    }
    lanes.into_iter().fold(start, join)
}

/// Turns scores into weights that sum to one.
#[inline(always)]
pub(crate) fn softmax(scores: &mut [f32]) {
    let largest = max(scores);
    for score in &mut *scores {
        *score = exp(*score - largest);
    }
    let scale = 1.0 / sum(scores, |x| x);
    for score in scores {
        *score *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks `function` against `reference` over ±`range`, within `ulps` of the result, or of
    /// `floor` where that is larger.
    fn compare(
        function: impl Fn(f32) -> f32,
        reference: impl Fn(f64) -> f64,
        range: f32,
        ulps: f64,
        floor: f64,
    ) {
        for step in -20_000i16..=20_000 {
            let x = f32::from(step) / 20_000.0 * range;
            let want = reference(f64::from(x));
            let error = (f64::from(function(x)) - want).abs();
            let bound = ulps * f64::from(f32::EPSILON) * want.abs().max(floor);
            assert!(error <= bound, "f({x}) = {}, expected {want}", function(x));
        }
    }

    /// erf by its Taylor series, exact to f64 for the arguments used here.
    fn erf_reference(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn exp_is_accurate() {
        compare(exp, f64::exp, 87.0, 2.0, f64::MIN_POSITIVE);
        assert_eq!((exp(-1000.0), exp(f32::NEG_INFINITY), exp(0.0)), (0.0, 0.0, 1.0));
        assert!(exp(1000.0).is_finite());
    }

    #[test]
    fn erf_and_gelu_are_accurate() {
        compare(erf, erf_reference, 4.0, 4.0, f64::MIN_POSITIVE);
        // Where the sum 1 + erf cancels, the error is relative to x, not to the small result.
        let reference = |x: f64| 0.5 * x * (1.0 + erf_reference(x / std::f64::consts::SQRT_2));
        compare(gelu, reference, 5.0, 4.0, 5.0);
        assert_eq!((gelu(10.0), gelu(-10.0)), (10.0, 0.0));
    }

    #[test]
    fn tanh_is_accurate() {
        compare(tanh, f64::tanh, 9.0, 8.0, f64::MIN_POSITIVE);
        assert_eq!((tanh(40.0), tanh(-40.0)), (1.0, -1.0));
    }

    #[test]
    fn cosine_and_sine_are_accurate_far_from_zero_too() {
        for step in -50_000i32..=50_000 {
            let turns = f64::from(step) * 0.017_320_508_075_688_77;
            let (cos, sin) = cos_sin(turns);
            let exact = (std::f64::consts::TAU * turns.fract()).sin_cos();
            let off = (f64::from(cos) - exact.1).abs().max((f64::from(sin) - exact.0).abs());
            assert!(off < 1.2e-7, "{turns}: {off}");
        }
    }

    #[test]
    fn reductions_see_every_element() {
        let values: Vec<f32> = (0..67u8).map(f32::from).collect();
        assert_eq!((sum(&values, |x| x), max(&values)), (2211.0, 66.0));
        let mut scores = values;
        softmax(&mut scores);
        assert!((sum(&scores, |x| x) - 1.0).abs() < 1e-6 && scores[66] > scores[65]);
    }
}
