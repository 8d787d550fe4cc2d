//! FP8 in the format e4m3: a sign, four bits of exponent, three of mantissa; no infinity
//! (P. Micikevicius et al., "FP8 Formats for Deep Learning", arXiv:2209.05433).
//!
//! The choice behind it: numbers are scaled before they are rounded, and scales are the user's
//! business; here are only the format and which layers it suits.

/// The largest number.
pub const LARGEST: f32 = 448.0;

/// Half the spacing of the numbers next to zero.
pub const UNDERFLOW: f64 = 1.0 / 1024.0;

/// Unit roundoff.
pub const ROUNDOFF: f64 = 1.0 / 16.0;

/// The least number that has all digits.
const LEAST_NORMAL: f32 = 1.0 / 64.0;

/// Whether a linear layer's matrices have rows of whole 16 bytes, as matrix instructions and the
/// copy engines that feed them want it.
pub fn suits(inputs: usize, outputs: usize) -> bool {
    inputs.is_multiple_of(16) && outputs.is_multiple_of(16)
}

/// The nearest number, to even where two are as near; beyond the largest, that.
pub fn from_f32(value: f32) -> u8 {
    if value.is_nan() {
        return 0x7f;
    }
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let size = value.abs().min(LARGEST);
    let code = if size < LEAST_NORMAL {
        // In units of the smallest number: none to eight, which is the code of the least normal one.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 8")]
        let units = (size * 512.0).round_ties_even() as u32;
        units
    } else {
        // An `f32` has 20 digits more, and exponents that count from 120 less.
        let bits = size.to_bits();
        let nearest = (bits + 0x7_ffff + (bits >> 20 & 1)) >> 20;
        nearest - (120 << 3)
    };
    #[expect(clippy::cast_possible_truncation, reason = "at most 0x7e")]
    let code = code as u8;
    sign | code
}

/// The number of these bits.
pub fn to_f32(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let size = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (8.0 + mantissa) * 2.0_f32.powi(exponent - 10),
    };
    if bits & 0x80 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_back() {
        for bits in 0..=u8::MAX {
            let value = to_f32(bits);
            if value.is_nan() {
                assert_eq!(from_f32(value), 0x7f, "{bits:#x}");
            } else {
                assert_eq!(from_f32(value), bits, "{value}");
            }
        }
        assert_eq!((to_f32(0x7e), to_f32(1)), (LARGEST, 1.0 / 512.0));
    }

    #[test]
    fn what_lies_between_goes_to_the_nearest_and_in_the_middle_to_the_even() {
        for bits in 0..0x7e_u8 {
            let (low, high) = (to_f32(bits), to_f32(bits + 1));
            let middle = low.midpoint(high);
            let even = if bits.is_multiple_of(2) { bits } else { bits + 1 };
            assert_eq!(from_f32(middle), even, "{middle}");
            assert_eq!(from_f32(middle.next_down()), bits);
            assert_eq!(from_f32(-middle.next_up()), 0x80 | (bits + 1));
        }
    }

    #[test]
    fn what_is_too_large_becomes_the_largest() {
        for value in [449.0, 480.0, 1e30, f32::INFINITY] {
            assert_eq!((from_f32(value), from_f32(-value)), (0x7e, 0xfe));
        }
    }
}
