//! Linear layers around a normalisation that is deferred: the sum with its residual is written once,
//! times the gain, with moments of each row; the two that read it, the next layer and the next
//! residual, normalise it as they do.
//!
//! The choice behind it: where rows are longer than one tile, a fused normalisation needs all blocks
//! of a row to wait for each other, and a kernel of its own to read and write all rows again. Behind a
//! product, which is linear, only two numbers of each row are missing (FlashNorm, arXiv:2407.09577,
//! has the same for norms without a mean). `gemm_sm90.cu` has the formula.

use vecmill_model::Activation;

use super::variant::{OUTPUT_BOX, Variant};
use super::{HopperGemm, Product};
use crate::driver::DriverError;
use crate::driver::{Argument, DeviceSpan};
use crate::kernels::{KernelError, NormOperands, number};
use crate::stream::CudaStream;

/// From so many rows on, sums are written and read once less for it; with fewer they stay in the
/// cache, and smaller tiles count for more.
const LEAST_ROWS: usize = crate::gemm::choose::MANY_ROWS;

/// What a product needs of an input whose normalisation is deferred, beside its rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeferredInput<'a> {
    /// As those of [`DeferredRows`](crate::kernels::DeferredRows).
    pub(crate) moments: DeviceSpan<'a>,
    /// Added to the variance.
    pub(crate) epsilon: f32,
}

/// A residual whose normalisation is deferred, and that.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeferredResidual<'a> {
    pub(crate) moments: DeviceSpan<'a>,
    pub(crate) norm: NormOperands<'a>,
}

/// What is behind a product whose normalisation is deferred.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deferral<'a> {
    /// `[rows, outputs]`, elsewhere than the output.
    pub(crate) residual: DeviceSpan<'a>,
    pub(crate) residual_norm: Option<DeferredResidual<'a>>,
    /// Of the normalisation.
    pub(crate) gain: DeviceSpan<'a>,
    /// Where the output's moments go.
    pub(crate) moments: DeviceSpan<'a>,
}

impl HopperGemm {
    /// Whether a normalisation of so many columns can be deferred.
    pub(crate) fn fits_deferred(columns: usize) -> bool {
        Variant::deferring(columns, false).is_some()
    }

    /// Whether that pays: as it did on an H200.
    pub(crate) fn deferring_pays(rows: usize) -> bool {
        rows >= LEAST_ROWS
    }

    /// `output = activation(norm(input) · weightᵀ + bias)`, on `stream` behind the work so far. Of each
    /// output `bias` has two values: weight · gain, and weight · bias of the norm + bias.
    pub(crate) fn multiply_deferred(
        &self,
        stream: &CudaStream,
        product: &Product<'_>,
        input: DeferredInput<'_>,
        activation: Activation,
    ) -> Result<(), KernelError> {
        if product.rows == 0 {
            return Ok(());
        }
        let variant = Variant::behind_deferred(product.rows, activation);
        self.launch_activated(stream, product, variant, Some(input), &[])
    }

    /// `output = (input · weightᵀ + bias + residual) · gain`, and the sums' moments, on `stream` behind
    /// the work so far.
    pub(crate) fn multiply_and_defer(
        &self,
        stream: &CudaStream,
        product: &Product<'_>,
        deferral: &Deferral<'_>,
    ) -> Result<(), KernelError> {
        if product.rows == 0 {
            return Ok(());
        }
        let &Product { rows, inputs, outputs, .. } = product;
        let &Deferral { residual, residual_norm, gain, moments } = deferral;
        let unfit = || DriverError::invalid("a deferred normalisation");
        let variant = Variant::deferring(outputs, residual_norm.is_some()).ok_or_else(unfit)?;
        let [input, weight, output] = self.maps(product, variant)?;
        let residual = self.map(residual, self.element, (rows, outputs), OUTPUT_BOX)?;
        let [of_moments, of_gain, of_bias] = residual_norm.map_or(
            [Argument::Null, Argument::Null, Argument::Null],
            |DeferredResidual { moments, norm }| {
                [moments, norm.gain, norm.bias].map(Argument::Span)
            },
        );
        let arguments = [
            Argument::TensorMap(&input),
            Argument::TensorMap(&weight),
            Argument::TensorMap(&output),
            Argument::TensorMap(&residual),
            Argument::Span(product.bias),
            Argument::Span(gain),
            Argument::Span(moments),
            of_moments,
            of_gain,
            of_bias,
            Argument::F32(residual_norm.map_or(0.0, |residual| residual.norm.epsilon)),
            number(rows),
            number(outputs),
            number(inputs),
            number(product.backwards.into()),
        ];
        self.launch_product(stream, product, variant, &arguments)
    }
}
