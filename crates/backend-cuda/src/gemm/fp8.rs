//! Operands in FP8 (e4m3: four bits of exponent, three of mantissa), and the scales that make them
//! what they stand for.
//!
//! The choice behind it: input and weight only. Output, bias and residual stay in 16 bits, so that
//! nothing else of an encoder changes. The library's faster, coarser way of adding up stays off.
//!
//! It takes sizes that are multiples of 16, on devices from compute capability 8.9 on; scales per
//! row only on 9.0, by cuBLAS 12.9 or later. Elsewhere there is no algorithm.

use super::{ACTIVATION_ALIGNMENT, Format, GemmError, Linear};
use crate::driver::DeviceSpan;
use crate::driver::cublaslt::{ScaleAddresses, ScaleMode};

/// Says that input and weight are FP8, a byte per element, and what each is to be multiplied by.
#[derive(Debug, Clone, Copy)]
pub struct Scales<'a> {
    /// How many factors there are.
    pub granularity: Granularity,
    /// Factors of the input, in `f32`.
    pub input: DeviceSpan<'a>,
    /// Factors of the weight, in `f32`.
    pub weight: DeviceSpan<'a>,
}

/// What shares a factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// The whole matrix.
    Matrix,
    /// A row: a token of the input, an output of the weight.
    Row,
}

/// An operand's name, place, least length and alignment.
type Operand<'a> = (&'static str, DeviceSpan<'a>, usize, u32);

impl<'a> Scales<'a> {
    /// The factors, as operands of a product.
    pub(super) fn operands(&self, linear: &Linear<'_>) -> Result<[Operand<'a>; 2], GemmError> {
        if linear.format == Format::F32 {
            return Err(linear.no_algorithm());
        }
        let (inputs, weights) = match self.granularity {
            Granularity::Matrix => (1, 1),
            Granularity::Row => (linear.rows, linear.outputs),
        };
        let bytes = |factors: usize| factors.saturating_mul(size_of::<f32>());
        Ok([
            ("input's scales", self.input, bytes(inputs), ACTIVATION_ALIGNMENT),
            ("weight's scales", self.weight, bytes(weights), ACTIVATION_ALIGNMENT),
        ])
    }

    pub(super) fn addresses(&self) -> ScaleAddresses {
        let (input, weight) = (self.input.address(), self.weight.address());
        ScaleAddresses { mode: self.granularity.mode(), input, weight }
    }

    /// Addresses that are aligned as all scales are, to choose an algorithm.
    pub(super) fn alignments(&self) -> ScaleAddresses {
        let address = u64::from(ACTIVATION_ALIGNMENT);
        ScaleAddresses { mode: self.granularity.mode(), input: address, weight: address }
    }
}

impl Granularity {
    fn mode(self) -> ScaleMode {
        match self {
            Self::Matrix => ScaleMode::Matrix,
            Self::Row => ScaleMode::Row,
        }
    }
}
