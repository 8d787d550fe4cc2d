//! Gated linear layers: in one launch, by our own kernels, or a gate behind a product.

use vecmill_encoder::BackendError;
use vecmill_memory::SourceError;
use vecmill_model::Activation;

use super::linear::Product;
use super::operands::Matrix;
use super::{CudaBackend, failed};
use crate::kernels::Gated;
use crate::lower::Form;
use crate::source::CudaBlock;

const LINEAR: &str = "gated linear";
const GATE: &str = "gate";

impl CudaBackend {
    /// In one launch.
    pub(super) fn multiply_gated(
        &self,
        slab: &CudaBlock,
        op: &Product<'_>,
    ) -> Result<(), BackendError> {
        let (hopper, product, deferred) = self.own_operands(slab, op, LINEAR)?;
        let computed = hopper.multiply_gated(&self.stream, &product, deferred, op.activation);
        computed.map_err(failed(LINEAR))
    }

    /// The gate alone.
    pub(super) fn gate(
        &self,
        slab: &CudaBlock,
        gate: (Activation, usize),
        [halves, output]: [Matrix; 2],
    ) -> Result<(), BackendError> {
        let operands = || -> Result<_, SourceError> {
            let narrow = matches!(output.form, Form::Narrow | Form::Both);
            let wide = (output.form != Form::Narrow).then(|| output.wide(slab)).transpose()?;
            let narrow = narrow.then(|| output.narrow(slab)).transpose()?;
            Ok((halves.wide(slab)?, Gated { wide, narrow }))
        };
        let (input, gated) = operands().map_err(failed(GATE))?;
        self.row_order.forwards();
        let size = (output.rows(), self.columns(halves) / 2);
        let computed = self.kernels.gate(&self.stream, gate, input, gated, size);
        computed.map_err(failed(GATE))
    }
}
