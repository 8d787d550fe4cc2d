//! Linear layers on the device, in the format of activations; those whose input may come deferred have
//! what they then add.

use std::borrow::Cow;

use half::{bf16, f16};
use vecmill_encoder::BackendError;

use super::narrow::NarrowLayer;
use super::{Loader, Stored};
use crate::gemm::Format;

/// A linear layer on the device.
#[derive(Debug)]
pub(crate) struct CudaLinear {
    pub(crate) tensors: LayerTensors,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

#[derive(Debug)]
pub(crate) enum LayerTensors {
    Wide(WideLayer),
    Narrow(NarrowLayer),
}

/// The tensors of a layer in the activations' format.
#[derive(Debug)]
pub(crate) struct WideLayer {
    pub(crate) weight: Stored,
    /// As cuBLASLt adds it.
    pub(crate) bias: Stored,
    /// In `f32`, as our own kernels add it.
    pub(crate) wide_bias: Stored,
    /// For an input whose normalisation is deferred, if that may be.
    pub(crate) deferred: Option<DeferredBias>,
}

/// What a layer adds where its input's normalisation is deferred.
#[derive(Debug)]
pub(crate) struct DeferredBias {
    /// Of each output: weight · gain, and weight · bias of the norm + bias.
    pub(crate) pairs: Stored,
    pub(crate) epsilon: f32,
}

/// A layer's numbers on the host, row by row.
pub(crate) struct LayerNumbers<'a> {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) weight: Cow<'a, [f32]>,
    pub(crate) bias: Cow<'a, [f32]>,
}

/// A normalisation's.
pub(crate) struct NormNumbers<'a> {
    pub(crate) gain: Cow<'a, [f32]>,
    pub(crate) bias: Cow<'a, [f32]>,
    pub(crate) epsilon: f32,
}

/// Of a gated layer with so many outputs, how many gates are stored beside each other before the ups that
/// belong to them: as many as columns of a matrix that a tensor core makes, so that a thread that has a
/// gate has its up as well.
pub(crate) fn gate_group(outputs: usize) -> usize {
    const MATRIX: usize = 8;
    if outputs.is_multiple_of(MATRIX) { MATRIX } else { outputs }
}

impl LayerNumbers<'_> {
    /// Of a gated layer, whose gates come first: gates and ups by turns, in [groups](gate_group).
    pub(crate) fn gates_by_turns(self) -> Self {
        let Self { inputs, outputs, weight, bias } = self;
        let group = gate_group(outputs / 2).max(1);
        let by_turns = |values: &[f32], row: usize| -> Vec<f32> {
            let (gates, ups) = values.split_at(values.len() / 2);
            let groups = gates.chunks(group * row).zip(ups.chunks(group * row));
            groups.flat_map(|(gates, ups)| [gates, ups].concat()).collect()
        };
        let weight = by_turns(&weight, inputs.max(1)).into();
        Self { inputs, outputs, weight, bias: by_turns(&bias, 1).into() }
    }

    pub(crate) fn load_narrow(&self, loader: &mut Loader<'_>) -> Result<CudaLinear, BackendError> {
        let &Self { inputs, outputs, ref weight, ref bias } = self;
        let layer = NarrowLayer::load(weight, bias, inputs, loader)?;
        Ok(CudaLinear { tensors: LayerTensors::Narrow(layer), inputs, outputs })
    }

    /// In `format`; with the norm of the input, if that may be deferred.
    pub(crate) fn load_wide(
        &self,
        input_norm: Option<&NormNumbers<'_>>,
        format: Format,
        loader: &mut Loader<'_>,
    ) -> Result<CudaLinear, BackendError> {
        let &Self { inputs, outputs, ref weight, ref bias } = self;
        let layer = WideLayer {
            weight: loader.store(weight, format)?,
            bias: loader.store(bias, format)?,
            wide_bias: loader.store(bias, Format::F32)?,
            deferred: input_norm
                .map(|norm| DeferredBias::load(weight, bias, norm, (format, loader)))
                .transpose()?,
        };
        Ok(CudaLinear { tensors: LayerTensors::Wide(layer), inputs, outputs })
    }
}

impl DeferredBias {
    /// For a layer whose weight is stored in `format`.
    fn load(
        weight: &[f32],
        bias: &[f32],
        norm: &NormNumbers<'_>,
        (format, loader): (Format, &mut Loader<'_>),
    ) -> Result<Self, BackendError> {
        let rows = weight.chunks_exact(norm.gain.len().max(1)).zip(bias);
        let pairs = rows.flat_map(|(row, &bias)| {
            let row: Vec<f64> = row.iter().map(|&w| rounded(w, format).into()).collect();
            let dot = |vector: &[f32]| -> f64 {
                row.iter().zip(vector).map(|(w, &x)| w * f64::from(x)).sum()
            };
            #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
            [dot(&norm.gain) as f32, (dot(&norm.bias) + f64::from(bias)) as f32]
        });
        let pairs = loader.store(&pairs.collect::<Vec<_>>(), Format::F32)?;
        Ok(Self { pairs, epsilon: norm.epsilon })
    }
}

/// A weight as it is stored, and so multiplied.
fn rounded(weight: f32, format: Format) -> f32 {
    match format {
        Format::F16 => f16::from_f32(weight).to_f32(),
        Format::Bf16 => bf16::from_f32(weight).to_f32(),
        Format::F32 => weight,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_and_ups_come_by_turns_in_groups() {
        let numbers = |outputs: u16| LayerNumbers {
            inputs: 2,
            outputs: outputs.into(),
            weight: (0..2 * outputs).map(f32::from).collect::<Vec<_>>().into(),
            bias: (0..outputs).map(f32::from).collect::<Vec<_>>().into(),
        };
        let rows = |numbers: &LayerNumbers<'_>| -> Vec<f32> {
            let firsts = numbers.weight.chunks(2).map(|row| row[0] / 2.0);
            assert!(firsts.clone().eq(numbers.bias.iter().copied()));
            firsts.collect()
        };
        let by_turns = numbers(32).gates_by_turns();
        let expected = [0..8, 16..24, 8..16, 24..32]
            .map(|rows: std::ops::Range<u16>| rows.map(f32::from).collect::<Vec<_>>());
        assert_eq!(rows(&by_turns), expected.concat());
        let odd = numbers(6).gates_by_turns();
        assert_eq!(rows(&odd), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "no groups fit");
    }
}
