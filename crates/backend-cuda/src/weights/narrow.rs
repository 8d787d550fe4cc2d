//! Linear layers in FP8 on the device: weights in e4m3, and for each output a scale and a bias.
//!
//! The choice behind it: a floating-point number that is scaled keeps its digits, so inputs all have
//! one scale, a power of two, which no kernel has to find out first. Of a weight's row, what counts
//! is where between two powers of two its numbers come to lie: several scales are tried, and the one
//! that moves the row least is taken. The kernel multiplies sums back as it adds the bias.

use vecmill_encoder::BackendError;
use vecmill_model::e4m3;

use super::{Loader, Stored};
use crate::gemm::Format;

/// `E4M3_SCALE` of `kernels/prelude.cuh`.
const INPUT_SCALE: f32 = 2.0;

/// Scales that are tried between two powers of two.
const SCALES: i16 = 8;

/// A layer's tensors on the device.
#[derive(Debug)]
pub(crate) struct NarrowLayer {
    /// In e4m3.
    pub(crate) weight: Stored,
    /// Of each output: what its sums are multiplied by, and its bias.
    pub(crate) scales_and_biases: Stored,
}

impl NarrowLayer {
    /// Loads `weight` of `inputs` columns, with a bias for each row.
    pub(super) fn load(
        weight: &[f32],
        bias: &[f32],
        inputs: usize,
        loader: &mut Loader<'_>,
    ) -> Result<Self, BackendError> {
        let (mut codes, mut pairs) = (Vec::with_capacity(weight.len()), Vec::new());
        for (row, &bias) in weight.chunks_exact(inputs.max(1)).zip(bias) {
            let scale = best_scale(row);
            codes.extend(row.iter().map(|&value| e4m3::from_f32(value * scale)));
            pairs.extend([1.0 / (scale * INPUT_SCALE), bias]);
        }
        Ok(Self {
            weight: loader.store_bytes(&codes)?,
            scales_and_biases: loader.store(&pairs, Format::F32)?,
        })
    }
}

/// The scale of a row that loses least to rounding. The first that is tried is a power of two, which
/// leaves numbers of the format as they are.
fn best_scale(row: &[f32]) -> f32 {
    let largest = row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    if largest == 0.0 || !largest.is_finite() {
        return 1.0;
    }
    let power = (e4m3::LARGEST / largest).log2().floor();
    let scale = |step: i16| (power - f32::from(step) / f32::from(SCALES)).exp2();
    let (mut best, mut least) = (scale(0), lost(row, scale(0)));
    for step in 1..SCALES {
        let lost = lost(row, scale(step));
        if lost < least {
            (best, least) = (scale(step), lost);
        }
    }
    best
}

/// The squares of what rounding takes from a row, up to the few numbers near zero.
fn lost(row: &[f32], scale: f32) -> f32 {
    let of = |&value: &f32| {
        let scaled = value * scale;
        // To four digits, ties away from zero: they cost the same either way.
        let rounded = f32::from_bits(scaled.to_bits().wrapping_add(0x8_0000) & !0xf_ffff);
        (rounded - scaled) * (rounded - scaled)
    };
    row.iter().map(of).sum::<f32>() / (scale * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(row: &[f32], scale: f32) -> f32 {
        let back = |value: f32| e4m3::to_f32(e4m3::from_f32(value * scale)) / scale;
        row.iter().map(|&value| (back(value) - value).powi(2)).sum()
    }

    #[test]
    fn what_the_format_holds_stays_what_it_is() {
        for row in [[0.0, 1.75, -0.25, 0.0625], [96.0, -3.0, 0.5, 1.0], [0.0; 4]] {
            assert_eq!(error(&row, best_scale(&row)), 0.0, "{row:?}");
        }
    }

    #[test]
    fn a_scale_loses_less_than_powers_of_two_and_saturates_nothing() {
        let mut random = fastrand::Rng::with_seed(1);
        let (mut by_best, mut by_power) = (0.0, 0.0);
        for _ in 0..20 {
            let row: Vec<f32> = (0..384).map(|_| random.f32() * random.f32() - 0.3).collect();
            let largest = row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            let (best, full) = (best_scale(&row), e4m3::LARGEST / largest);
            assert!(best <= full && best > full / 4.0, "{best} of {full}");
            by_best += error(&row, best);
            by_power += error(&row, full.log2().floor().exp2());
        }
        assert!(by_best < by_power, "{by_best} and {by_power}");
    }

    #[test]
    fn what_is_not_finite_does_not_spoil_the_rest() {
        let scale = best_scale(&[1.0, f32::INFINITY]);
        assert!(scale.is_finite() && scale > 0.0);
    }
}
