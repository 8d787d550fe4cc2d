//! Linear layers in FP8: weights and inputs in e4m3, outputs in f16, or in e4m3 for the next layer;
//! and where the inputs lie that other kernels write for them.

use vecmill_encoder::BackendError;
use vecmill_memory::SourceError;

use super::linear::Product;
use super::operands::Matrix;
use super::{CudaBackend, failed};
use crate::gemm::{HopperProduct, Widths};
use crate::kernels::{Attended, Written};
use crate::lower::Form;
use crate::source::CudaBlock;
use crate::weights::NarrowLayer;

const OPERATION: &str = "linear";

impl CudaBackend {
    /// Where a normalisation writes.
    pub(super) fn written<'s>(
        &self,
        slab: &'s CudaBlock,
        output: Matrix,
    ) -> Result<Written<'s>, SourceError> {
        let both = (output.form == Form::Both).then(|| output.narrow(slab));
        Ok(Written { wide: output.wide(slab)?, narrow: both.transpose()? })
    }

    /// Where attention writes.
    pub(super) fn attended<'s>(
        &self,
        slab: &'s CudaBlock,
        output: Matrix,
    ) -> Result<Attended<'s>, SourceError> {
        let narrow = output.form == Form::Narrow;
        let rows = if narrow { output.narrow(slab)? } else { output.wide(slab)? };
        Ok(Attended { rows, narrow })
    }

    pub(super) fn multiply_narrow(
        &self,
        slab: &CudaBlock,
        op: &Product<'_>,
        layer: &NarrowLayer,
    ) -> Result<(), BackendError> {
        let Some(hopper) = &self.hopper else {
            let reason = "layers in FP8 were loaded for another device: please report this".into();
            return Err(BackendError { operation: OPERATION, reason });
        };
        let product = narrow_product(slab, op, layer).map_err(failed(OPERATION))?;
        self.multiply_by_own(hopper, product, op.activation)
    }
}

/// Operands of our own kernels.
pub(super) fn narrow_product<'a>(
    slab: &'a CudaBlock,
    op: &Product<'a>,
    layer: &'a NarrowLayer,
) -> Result<HopperProduct<'a>, SourceError> {
    let (output, widths) = match op.output.form {
        Form::Narrow | Form::Both => (op.output.narrow(slab)?, Widths::NarrowToNarrow),
        Form::Wide | Form::Deferred { .. } => (op.output.wide(slab)?, Widths::Narrow),
    };
    Ok(HopperProduct {
        rows: op.input.rows(),
        inputs: op.layer.inputs,
        outputs: op.layer.outputs,
        input: op.input.narrow(slab)?,
        weight: layer.weight.span()?,
        bias: layer.scales_and_biases.span()?,
        output,
        widths,
        backwards: false,
    })
}
