//! Layers around norms that are left to their readers: rows are kept as sums times gain, with moments of
//! each, and whoever reads them normalises what comes of them.

use vecmill_encoder::BackendError;
use vecmill_memory::SourceError;

use super::linear::{Normed, Product, product};
use super::operands::Matrix;
use super::{CudaBackend, failed};
use crate::gemm::{Deferral, DeferredInput, DeferredResidual, HopperProduct};
use crate::kernels::DeferredRows;
use crate::source::CudaBlock;
use crate::weights::{CudaNorm, WideLayer};

const READ: &str = "linear, of deferred rows";
const WRITE: &str = "linear, add and defer";
const NORMALIZE: &str = "normalise";

impl CudaBackend {
    /// A layer whose input is yet to be normalised.
    pub(super) fn multiply_deferred(
        &self,
        slab: &CudaBlock,
        op: &Product<'_>,
        layer: &WideLayer,
    ) -> Result<(), BackendError> {
        let hopper = self.hopper.as_ref().ok_or_else(unfit(READ))?;
        let (product, input) = self.deferred_product(slab, op, layer)?;
        let computed = hopper.multiply_deferred(&self.stream, &product, input, op.activation);
        computed.map_err(failed(READ))
    }

    /// A layer's operands, and its input's moments.
    pub(super) fn deferred_product<'a>(
        &self,
        slab: &'a CudaBlock,
        op: &Product<'a>,
        layer: &'a WideLayer,
    ) -> Result<(HopperProduct<'a>, DeferredInput<'a>), BackendError> {
        let deferred = layer.deferred.as_ref().ok_or_else(unfit(READ))?;
        let operands = || -> Result<_, SourceError> {
            let input =
                DeferredInput { moments: op.input.moments(slab)?, epsilon: deferred.epsilon };
            let product = product(slab, op.input, (op.layer, layer), op.output)?;
            let (bias, backwards) = (deferred.pairs.span()?, self.row_order.turn());
            Ok((HopperProduct { bias, backwards, ..product }, input))
        };
        operands().map_err(failed(READ))
    }

    /// A layer with its residual, whose normalisation is left to those who read it.
    pub(super) fn multiply_and_defer(
        &self,
        slab: &CudaBlock,
        op: &Normed<'_>,
        layer: &WideLayer,
    ) -> Result<(), BackendError> {
        let hopper = self.hopper.as_ref().ok_or_else(unfit(WRITE))?;
        let operands = || -> Result<_, SourceError> {
            let residual_norm = match op.residual_norm {
                Some(norm) => {
                    let moments = op.residual.moments(slab)?;
                    Some(DeferredResidual { moments, norm: norm.operands()? })
                }
                None => None,
            };
            let deferral = Deferral {
                residual: op.residual.wide(slab)?,
                residual_norm,
                gain: op.norm.operands()?.gain,
                moments: op.output.moments(slab)?,
            };
            let product = product(slab, op.input, (op.layer, layer), op.output)?;
            Ok((HopperProduct { backwards: self.row_order.turn(), ..product }, deferral))
        };
        let (product, deferral) = operands().map_err(failed(WRITE))?;
        let computed = hopper.multiply_and_defer(&self.stream, &product, &deferral);
        computed.map_err(failed(WRITE))
    }

    pub(super) fn normalize_deferred(
        &self,
        slab: &CudaBlock,
        [input, output]: [Matrix; 2],
        norm: &CudaNorm,
    ) -> Result<(), BackendError> {
        let operands = || -> Result<_, SourceError> {
            let rows = DeferredRows { rows: input.wide(slab)?, moments: input.moments(slab)? };
            Ok((rows, norm.operands()?, output.wide(slab)?))
        };
        let (rows, norm, written) = operands().map_err(failed(NORMALIZE))?;
        let size = ((output.rows(), self.columns(output)), self.row_order.turn());
        let normalised = self.kernels.normalize(&self.stream, rows, norm, written, size);
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
