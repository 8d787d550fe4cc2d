//! Linear layers: by our own kernels where they are faster, else by cuBLASLt.

use std::ops::Range;
use std::time::Duration;

use vecmill_encoder::BackendError;
use vecmill_memory::SourceError;
use vecmill_model::Activation;

use super::narrow::narrow_product;
use super::operands::Matrix;

use super::{CudaBackend, failed, scratch};
use crate::gemm::{
    self, DeferredInput, HopperFeedForward, HopperGemm, HopperProduct, Size, Then, Widths,
    own_norm_pays, own_pays,
};
use crate::lower::Form;
use crate::source::CudaBlock;
use crate::stopwatch;
use crate::weights::{CudaLinear, CudaNorm, LayerTensors, WideLayer};

const OPERATION: &str = "linear";
const FUSED_OPERATION: &str = "linear, add and normalise";
const BLOCK_OPERATION: &str = "feed forward";

/// `output = activation(input · weightᵀ + bias)`
pub(super) struct Product<'a> {
    pub(super) layer: &'a CudaLinear,
    pub(super) activation: Activation,
    pub(super) input: Matrix,
    pub(super) output: Matrix,
    pub(super) scratch: Range<usize>,
}

/// `output = norm(input · weightᵀ + bias + residual)`
pub(super) struct Normed<'a> {
    pub(super) layer: &'a CudaLinear,
    pub(super) input: Matrix,
    pub(super) residual: Matrix,
    /// What normalises the residual, if that is deferred; the output then is, too.
    pub(super) residual_norm: Option<&'a CudaNorm>,
    pub(super) norm: &'a CudaNorm,
    pub(super) output: Matrix,
    pub(super) scratch: Range<usize>,
}

/// `output = norm(down(activation(up(input))) + input)`
pub(super) struct Block<'a> {
    pub(super) up: &'a CudaLinear,
    pub(super) activation: Activation,
    pub(super) down: &'a CudaLinear,
    pub(super) input: Matrix,
    /// What normalises the input, if that is deferred; the output then is, too.
    pub(super) input_norm: Option<&'a CudaNorm>,
    pub(super) norm: &'a CudaNorm,
    /// What is between the layers, unless they are one kernel.
    pub(super) between: Option<Matrix>,
    pub(super) output: Matrix,
    pub(super) scratch: Range<usize>,
}

impl CudaBackend {
    pub(super) fn multiply(&self, slab: &CudaBlock, op: &Product<'_>) -> Result<(), BackendError> {
        let &CudaLinear { ref tensors, inputs, outputs } = op.layer;
        let layer = match tensors {
            LayerTensors::Narrow(layer) => return self.multiply_narrow(slab, op, layer),
            LayerTensors::Wide(layer) => layer,
        };
        if op.input.is_deferred() {
            return self.multiply_deferred(slab, op, layer);
        }
        let library = self.library_product(slab, op, layer).map_err(failed(OPERATION))?;
        let own = self.own_product(slab, op, layer).map_err(failed(OPERATION))?;
        let Some((hopper, own)) = own else {
            return self.multiply_by_library(&library);
        };
        let rows = op.input.rows();
        let size = Size::new(rows, (inputs, outputs), Then::Activation(op.activation));
        let rule = || own_pays(rows, inputs, outputs, op.activation);
        if self.measured.is_own(size, rule, || self.measure(&library, (hopper, own)))? {
            return self.multiply_by_own(hopper, own, op.activation);
        }
        self.multiply_by_library(&library)
    }

    /// Times both ways of a product, and has the library's best algorithm used from now on.
    fn measure(
        &self,
        library: &gemm::Linear<'_>,
        (hopper, own): (&HopperGemm, HopperProduct<'_>),
    ) -> Result<[Duration; 2], BackendError> {
        if self.kernels.suit_tensor_cores(library.inputs, library.outputs) {
            self.gemm.tune(&self.stream, library).map_err(failed(OPERATION))?;
        }
        let library_time = self.time(|| self.multiply_by_library(library))?;
        let own_time = self.time(|| self.multiply_by_own(hopper, own, library.activation))?;
        Ok([library_time, own_time])
    }

    /// The time that the device takes for what `work` gives to the stream, when that lasts.
    fn time(
        &self,
        work: impl FnMut() -> Result<(), BackendError>,
    ) -> Result<Duration, BackendError> {
        stopwatch::lasting(&self.device, &self.stream, failed(OPERATION), work)
    }

    pub(super) fn multiply_by_own(
        &self,
        hopper: &HopperGemm,
        product: HopperProduct<'_>,
        activation: Activation,
    ) -> Result<(), BackendError> {
        let product = HopperProduct { backwards: self.row_order.turn(), ..product };
        hopper.multiply(&self.stream, &product, activation).map_err(failed(OPERATION))
    }

    fn multiply_by_library(&self, product: &gemm::Linear<'_>) -> Result<(), BackendError> {
        self.row_order.forwards();
        let &gemm::Linear { rows, inputs, outputs, input, weight, output, activation, .. } =
            product;
        if let (false, Some(bias)) = (self.kernels.suit_tensor_cores(inputs, outputs), product.bias)
        {
            let (operands, sizes) = ([input, weight, bias, output], [rows, inputs, outputs]);
            let computed = self.kernels.linear_any(&self.stream, activation, operands, sizes);
            return computed.map_err(failed(OPERATION));
        }
        let remaining = self.gemm.multiply(&self.stream, product).map_err(failed(OPERATION))?;
        let activated = self.kernels.activate(&self.stream, remaining, output, rows * outputs);
        activated.map_err(failed(OPERATION))
    }

    pub(super) fn multiply_norm(
        &self,
        slab: &CudaBlock,
        op: &Normed<'_>,
    ) -> Result<(), BackendError> {
        let &Normed { layer: weights, ref input, output, .. } = op;
        let layer = match (&weights.tensors, output.form) {
            (LayerTensors::Wide(layer), Form::Deferred { .. }) => {
                return self.multiply_and_defer(slab, op, layer);
            }
            (LayerTensors::Wide(layer), Form::Wide) => layer,
            _ => return self.multiply_norm_in_two(slab, op),
        };
        let hopper = self.hopper.as_ref();
        let fits = |_: &&HopperGemm| HopperGemm::fits_norm(weights.inputs, weights.outputs);
        let Some(hopper) = hopper.filter(fits) else {
            return self.multiply_norm_in_two(slab, op);
        };
        let size = Size::new(input.rows(), (weights.inputs, weights.outputs), Then::Norm);
        let rule = || own_norm_pays(input.rows(), weights.outputs);
        let measure = || {
            let apart = self.time(|| self.multiply_norm_in_two(slab, op))?;
            Ok([apart, self.time(|| self.multiply_norm_by_own(slab, op, (hopper, layer)))?])
        };
        if self.measured.is_own(size, rule, measure)? {
            return self.multiply_norm_by_own(slab, op, (hopper, layer));
        }
        self.multiply_norm_in_two(slab, op)
    }

    /// In two launches: what is projected lies where the output comes.
    fn multiply_norm_in_two(&self, slab: &CudaBlock, op: &Normed<'_>) -> Result<(), BackendError> {
        let &Normed { layer, input, residual, norm, output, ref scratch, .. } = op;
        let (activation, scratch) = (Activation::Identity, scratch.clone());
        let sum = output.only_wide();
        self.multiply(slab, &Product { layer, activation, input, output: sum, scratch })?;
        self.add_norm(slab, (sum, Some(residual), None), norm, output)
    }

    /// In one launch.
    fn multiply_norm_by_own(
        &self,
        slab: &CudaBlock,
        op: &Normed<'_>,
        (hopper, layer): (&HopperGemm, &WideLayer),
    ) -> Result<(), BackendError> {
        let operands = || -> Result<_, SourceError> {
            let product = product(slab, op.input, (op.layer, layer), op.output)?;
            Ok((product, op.residual.wide(slab)?, op.norm.operands()?))
        };
        let (product, residual, norm) = operands().map_err(failed(FUSED_OPERATION))?;
        let product = HopperProduct { backwards: self.row_order.turn(), ..product };
        let computed = hopper.multiply_norm(&self.stream, &product, residual, norm);
        computed.map_err(failed(FUSED_OPERATION))
    }

    /// Our own kernels and the tensors of two layers, where they may be computed as one.
    fn fusable<'a>(
        &'a self,
        up: &'a CudaLinear,
        down: &'a CudaLinear,
    ) -> Option<(&'a HopperGemm, [&'a WideLayer; 2])> {
        // Of narrow copies, which FP8 also has of wide layers' outputs, the kernel knows nothing.
        let hopper = self.hopper.as_ref().filter(|_| !self.lowering.fp8)?;
        match (&up.tensors, &down.tensors) {
            (LayerTensors::Wide(up), LayerTensors::Wide(down)) => Some((hopper, [up, down])),
            _ => None,
        }
    }

    /// In one launch if there is no memory for two.
    pub(super) fn multiply_twice(
        &self,
        slab: &CudaBlock,
        op: &Block<'_>,
    ) -> Result<(), BackendError> {
        let (rows, hidden, intermediate) = (op.input.rows(), op.up.inputs, op.up.outputs);
        let fusable = self.fusable(op.up, op.down);
        if let (Some((hopper, _)), true) = (fusable, self.measured.tuning()) {
            // Sizes that are practised may be none of those that are fused.
            let ready = hopper.prepare_to_fuse(rows, hidden, intermediate, op.activation);
            ready.map_err(failed(BLOCK_OPERATION))?;
        }
        if let Some(between) = op.between {
            return self.multiply_twice_apart(slab, op, between);
        }
        let Some((hopper, [up, down])) = fusable else {
            let reason = "it has no memory for what is between its layers: please report this";
            return Err(BackendError { operation: BLOCK_OPERATION, reason: reason.into() });
        };
        let block = || -> Result<_, SourceError> {
            Ok(HopperFeedForward {
                rows,
                hidden,
                intermediate,
                input: op.input.wide(slab)?,
                up: (up.weight.span()?, up.wide_bias.span()?),
                activation: op.activation,
                down: (down.weight.span()?, down.wide_bias.span()?),
                norm: op.norm.operands()?,
                output: op.output.wide(slab)?,
                backwards: self.row_order.turn(),
            })
        };
        let block = block().map_err(failed(BLOCK_OPERATION))?;
        hopper.feed_forward(&self.stream, &block).map_err(failed(BLOCK_OPERATION))
    }

    fn multiply_twice_apart(
        &self,
        slab: &CudaBlock,
        op: &Block<'_>,
        between: Matrix,
    ) -> Result<(), BackendError> {
        let &Block { up, activation, down, input, input_norm, norm, output, ref scratch, .. } = op;
        let scratch = || scratch.clone();
        let first = Product { layer: up, activation, input, output: between, scratch: scratch() };
        self.multiply(slab, &first)?;
        let second = Normed {
            layer: down,
            input: between,
            residual: input,
            residual_norm: input_norm,
            norm,
            output,
            scratch: scratch(),
        };
        self.multiply_norm(slab, &second)
    }

    /// Our own kernels and their operands, for a layer that nothing else can compute as it is wanted.
    pub(super) fn own_operands<'a>(
        &'a self,
        slab: &'a CudaBlock,
        op: &Product<'a>,
        operation: &'static str,
    ) -> Result<(&'a HopperGemm, HopperProduct<'a>, Option<DeferredInput<'a>>), BackendError> {
        let Some(hopper) = &self.hopper else {
            let reason = "there is no kernel for it here: please report this".into();
            return Err(BackendError { operation, reason });
        };
        let product = match &op.layer.tensors {
            LayerTensors::Wide(layer) if op.input.is_deferred() => {
                let (product, input) = self.deferred_product(slab, op, layer)?;
                return Ok((hopper, product, Some(input)));
            }
            LayerTensors::Wide(layer) => product(slab, op.input, (op.layer, layer), op.output),
            LayerTensors::Narrow(layer) => narrow_product(slab, op, layer),
        };
        let product = product.map_err(failed(operation))?;
        Ok((hopper, HopperProduct { backwards: self.row_order.turn(), ..product }, None))
    }

    /// Our own kernels and their operands, where they can compute this layer.
    fn own_product<'a>(
        &'a self,
        slab: &'a CudaBlock,
        op: &Product<'a>,
        layer: &'a WideLayer,
    ) -> Result<Option<(&'a HopperGemm, HopperProduct<'a>)>, SourceError> {
        let hopper = self.hopper.as_ref();
        let hopper = hopper.filter(|_| HopperGemm::fits(op.layer.inputs, op.layer.outputs));
        let Some(hopper) = hopper else { return Ok(None) };
        Ok(Some((hopper, product(slab, op.input, (op.layer, layer), op.output)?)))
    }

    fn library_product<'a>(
        &self,
        slab: &'a CudaBlock,
        op: &Product<'a>,
        WideLayer { weight, bias, .. }: &'a WideLayer,
    ) -> Result<gemm::Linear<'a>, SourceError> {
        let &CudaLinear { inputs, outputs, .. } = op.layer;
        Ok(gemm::Linear {
            format: self.lowering.format,
            rows: op.input.rows(),
            inputs,
            outputs,
            input: op.input.wide(slab)?,
            weight: weight.span()?,
            bias: Some(bias.span()?),
            activation: op.activation,
            output: op.output.wide(slab)?,
            workspace: scratch(slab, op.scratch.clone())?,
        })
    }
}

/// Operands of our own kernels.
pub(super) fn product<'a>(
    slab: &'a CudaBlock,
    input: Matrix,
    (&CudaLinear { inputs, outputs, .. }, layer): (&CudaLinear, &'a WideLayer),
    output: Matrix,
) -> Result<HopperProduct<'a>, SourceError> {
    Ok(HopperProduct {
        rows: input.rows(),
        inputs,
        outputs,
        widths: Widths::Wide,
        input: input.wide(slab)?,
        weight: layer.weight.span()?,
        bias: layer.wide_bias.span()?,
        output: output.wide(slab)?,
        backwards: false,
    })
}
