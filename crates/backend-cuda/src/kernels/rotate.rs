//! Rotary positions: `rotate.cu`.
//!
//! The choice behind it: frequencies are few numbers, which are made on the host when a step is launched
//! and go with it by value. Only sequences longer than a model was trained with may have other ones, which
//! the device makes: so a text's numbers do not depend on its neighbours.

use std::f64::consts::TAU;

use vecmill_model::{Heads, Rotary, RotaryScaling};

use super::{KernelError, Kernels, Packed, launch, number};
use crate::compiler::ROTATE;
use crate::driver::{Argument, DeviceSpan};
use crate::stream::CudaStream;

/// Pairs of columns that `rotate.cu` has room for.
pub(crate) const MAX_PAIRS: usize = 128;

/// Rows of a block, and its threads.
const ROWS: usize = 16;
const THREADS: u32 = 256;

impl Kernels {
    /// Turns the queries and keys of rows; `[input, output]`, which may be one.
    pub(crate) fn rotate(
        &self,
        stream: &CudaStream,
        [input, output]: [DeviceSpan<'_>; 2],
        sequences: Packed<'_>,
        (heads, rotary): (Heads, Rotary),
    ) -> Result<(), KernelError> {
        let (slots, slots_each) = super::attention::slots(sequences.lengths(), ROWS);
        let turns = turns(rotary);
        let arguments = [
            Argument::Span(input),
            Argument::Span(output),
            Argument::Span(sequences.starts),
            number(sequences.sequences),
            number(slots_each),
            number(heads.columns()),
            number(heads.queries + heads.keys),
            number(heads.size),
            number(rotary.dims / 2),
            Argument::Words(&turns),
        ];
        // Of no meaning there, but `sequences.cuh` asks for it.
        let module = self.rare(ROTATE, &["HEAD_SIZE=1".to_owned()])?;
        let kernel = self.kernel(&module, "vecmill_rotate")?;
        launch(&kernel, stream, slots, THREADS, 0, &arguments)
    }
}

/// `Turns` of `rotate.cu`.
fn turns(rotary: Rotary) -> Vec<u32> {
    let (factor, trained) = match rotary.scaling {
        RotaryScaling::DynamicNtk { factor, trained } => (factor, trained),
        _ => (1.0, usize::MAX),
    };
    let mut words = Vec::with_capacity(6 + 2 * MAX_PAIRS);
    for number in [rotary.theta, factor] {
        let bits = number.to_bits();
        words.extend([bits, bits >> 32].map(|half| (half & 0xffff_ffff) as u32));
    }
    words.extend([trained, rotary.dims].map(|n| u32::try_from(n).unwrap_or(u32::MAX)));
    // Short sequences all have the same.
    for frequency in rotary.frequencies(0) {
        words.extend(in_two_parts(f64::from(frequency) / TAU).map(f32::to_bits));
    }
    words.resize(6 + 2 * MAX_PAIRS, 0);
    words
}

/// `Turns` of `gemm_sm90.cu`, of so many pairs.
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
pub(crate) fn turns_of_head(rotary: Rotary, pairs: usize) -> Vec<u32> {
    let frequencies = rotary.frequencies(0).into_iter();
    let turns = frequencies.map(|frequency| ((f64::from(frequency) / TAU) as f32).to_bits());
    let mut turns: Vec<u32> = turns.collect();
    turns.resize(pairs, 0);
    turns
}

/// A number as the sum of two in single precision.
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
fn in_two_parts(number: f64) -> [f32; 2] {
    let high = number as f32;
    [high, (number - f64::from(high)) as f32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_laid_out_as_the_kernel_reads_them() {
        let rotary = |scaling| Rotary { dims: 64, theta: 160_000.0, scaling };
        let plain = turns(rotary(RotaryScaling::None));
        assert_eq!(plain.len(), 6 + 2 * MAX_PAIRS);
        let theta = u64::from(plain[0]) | u64::from(plain[1]) << 32;
        assert_eq!((f64::from_bits(theta), plain[4], plain[5]), (160_000.0, u32::MAX, 64));
        assert_eq!(f32::from_bits(plain[6]), (1.0 / TAU) as f32);
        let both = f64::from(f32::from_bits(plain[6])) + f64::from(f32::from_bits(plain[7]));
        assert!((both * TAU - 1.0).abs() < 1e-14, "{both}");
        assert!(plain[6 + 64..].iter().all(|&word| word == 0), "32 pairs");
        let trained = turns(rotary(RotaryScaling::DynamicNtk { factor: 2.0, trained: 512 }));
        assert_eq!((trained[4], &trained[6..]), (512, &plain[6..]));
    }
}
