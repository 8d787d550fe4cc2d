//! Gated linear layers: in one launch, by our own kernels, or a gate behind a product.

use vecmill_encoder::BackendError;
use vecmill_memory::SourceError;
use vecmill_model::Activation;

use super::linear::{Product, product};
use super::narrow::narrow_product;
use super::operands::Matrix;
use super::{CudaBackend, failed};
use crate::gemm::HopperProduct;
use crate::kernels::Gated;
use crate::lower::Form;
use crate::source::CudaBlock;
use crate::weights::LayerTensors;

const LINEAR: &str = "gated linear";
const GATE: &str = "gate";

impl CudaBackend {
    /// In one launch.
    pub(super) fn multiply_gated(
        &self,
        slab: &CudaBlock,
        op: &Product<'_>,
    ) -> Result<(), BackendError> {
        let Some(hopper) = &self.hopper else {
            let reason = "there is no kernel for it here: please report this".into();
            return Err(BackendError { operation: LINEAR, reason });
        };
        let (product, deferred) = match &op.layer.tensors {
            LayerTensors::Wide(layer) if op.input.is_deferred() => {
                let (product, input) = self.deferred_product(slab, op, layer)?;
                (product, Some(input))
            }
            LayerTensors::Wide(layer) => {
                let product = product(slab, op.input, (op.layer, layer), op.output);
                (self.turned(product.map_err(failed(LINEAR))?), None)
            }
            LayerTensors::Narrow(layer) => {
                let product = narrow_product(slab, op, layer);
                (self.turned(product.map_err(failed(LINEAR))?), None)
            }
        };
        let computed = hopper.multiply_gated(&self.stream, &product, deferred, op.activation);
        computed.map_err(failed(LINEAR))
    }

    fn turned<'a>(&self, product: HopperProduct<'a>) -> HopperProduct<'a> {
        HopperProduct { backwards: self.row_order.turn(), ..product }
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
