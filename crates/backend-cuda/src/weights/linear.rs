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
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
}

/// A normalisation's.
pub(crate) struct NormNumbers<'a> {
    pub(crate) gain: Cow<'a, [f32]>,
    pub(crate) bias: Cow<'a, [f32]>,
    pub(crate) epsilon: f32,
}

impl LayerNumbers<'_> {
    pub(crate) fn load_narrow(&self, loader: &mut Loader<'_>) -> Result<CudaLinear, BackendError> {
        let &Self { inputs, outputs, weight, bias } = self;
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
        let &Self { inputs, outputs, weight, bias } = self;
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
