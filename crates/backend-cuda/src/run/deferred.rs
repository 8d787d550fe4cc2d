//! Normalisations that are deferred, and the layers around them: rows are kept as sums times gain, with
//! moments of each, and whoever reads them normalises what comes of them.

use half::{bf16, f16};
use vecmill_encoder::{BackendError, Buffer, Linear, LinearAddNorm, NormTensors, Normalize};
use vecmill_memory::SourceError;

use super::linear::WideLayer;
use super::{CudaBackend, failed};
use crate::gemm::{Deferral, DeferredInput, DeferredResidual, Format, HopperProduct};
use crate::kernels::{DeferredRows, ROW_MOMENTS_BYTES};
use crate::source::CudaBlock;
use crate::weights::{Loader, Tensor};

const READ: &str = "linear, of deferred rows";
const WRITE: &str = "linear, add and defer";
const NORMALIZE: &str = "normalise";

/// What a layer adds where its input's normalisation is deferred.
#[derive(Debug)]
pub(super) struct DeferredBias {
    /// Of each output: weight · gain, and weight · bias of the norm + bias.
    pairs: Tensor,
    epsilon: f32,
}

impl DeferredBias {
    /// For a layer whose weight is stored in `format`.
    pub(super) fn load(
        weight: &[f32],
        bias: &[f32],
        norm: &NormTensors,
        (format, loader): (Format, &mut Loader<'_>),
    ) -> Result<Self, BackendError> {
        let (gain, shift) = (norm.gain.to_f32(), norm.bias.to_f32());
        let rows = weight.chunks_exact(gain.len().max(1)).zip(bias);
        let pairs = rows.flat_map(|(row, &bias)| {
            let row: Vec<f64> = row.iter().map(|&w| rounded(w, format).into()).collect();
            let dot = |vector: &[f32]| -> f64 {
                row.iter().zip(vector).map(|(w, &x)| w * f64::from(x)).sum()
            };
            #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
            [dot(&gain) as f32, (dot(&shift) + f64::from(bias)) as f32]
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

impl CudaBackend {
    fn deferred_rows<'s>(
        &self,
        slab: &'s CudaBlock,
        buffer: Buffer,
    ) -> Result<DeferredRows<'s>, SourceError> {
        let beside = buffer.narrow_offset(self.lowering.format.bytes());
        let moments = slab.span(beside..beside + buffer.rows * ROW_MOMENTS_BYTES)?;
        Ok(DeferredRows { rows: self.span(slab, buffer)?, moments })
    }

    /// A layer whose input is yet to be normalised.
    pub(super) fn multiply_deferred(
        &self,
        slab: &CudaBlock,
        op: &Linear<'_, Self>,
        layer: &WideLayer,
    ) -> Result<(), BackendError> {
        let (hopper, deferred) =
            self.hopper.as_ref().zip(layer.deferred.as_ref()).ok_or_else(unfit(READ))?;
        let operands = || -> Result<_, SourceError> {
            let moments = self.deferred_rows(slab, op.input)?.moments;
            let input = DeferredInput { moments, epsilon: deferred.epsilon };
            let product = self.product(slab, op.input, (op.weights, layer), op.output)?;
            let (bias, backwards) = (deferred.pairs.span()?, self.sweeps.turn());
            Ok((HopperProduct { bias, backwards, ..product }, input))
        };
        let (product, input) = operands().map_err(failed(READ))?;
        let computed = hopper.multiply_deferred(&self.stream, &product, input, op.activation);
        computed.map_err(failed(READ))
    }

    /// A layer with its residual, whose normalisation is left to those who read it.
    pub(super) fn multiply_and_defer(
        &self,
        slab: &CudaBlock,
        op: &LinearAddNorm<'_, Self>,
        layer: &WideLayer,
    ) -> Result<(), BackendError> {
        let hopper = self.hopper.as_ref().ok_or_else(unfit(WRITE))?;
        let operands = || -> Result<_, SourceError> {
            let residual_norm = match op.residual_norm {
                Some(norm) => {
                    let moments = self.deferred_rows(slab, op.residual)?.moments;
                    Some(DeferredResidual { moments, norm: norm.operands()? })
                }
                None => None,
            };
            let deferral = Deferral {
                residual: self.span(slab, op.residual)?,
                residual_norm,
                gain: op.norm.operands()?.gain,
                moments: self.deferred_rows(slab, op.output)?.moments,
            };
            let product = self.product(slab, op.input, (op.weights, layer), op.output)?;
            Ok((HopperProduct { backwards: self.sweeps.turn(), ..product }, deferral))
        };
        let (product, deferral) = operands().map_err(failed(WRITE))?;
        let computed = hopper.multiply_and_defer(&self.stream, &product, &deferral);
        computed.map_err(failed(WRITE))
    }

    pub(super) fn normalize_deferred(
        &self,
        slab: &CudaBlock,
        op: &Normalize<'_, Self>,
    ) -> Result<(), BackendError> {
        let operands = || -> Result<_, SourceError> {
            let rows = self.deferred_rows(slab, op.input)?;
            Ok((rows, op.norm.operands()?, self.span(slab, op.output)?))
        };
        let (input, norm, output) = operands().map_err(failed(NORMALIZE))?;
        let size = ((op.output.rows, op.output.columns), self.sweeps.turn());
        let normalised = self.kernels.normalize(&self.stream, input, norm, output, size);
        normalised.map_err(failed(NORMALIZE))
    }
}

/// A layer that was not loaded for what it is asked.
fn unfit(operation: &'static str) -> impl Fn() -> BackendError {
    move || {
        let reason = "its normalisation can't be deferred: please report this".into();
        BackendError { operation, reason }
    }
}
