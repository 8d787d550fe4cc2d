//! Linear layers, loaded and computed: by our own kernels where they are faster, else by cuBLASLt.

use std::time::Duration;

use vecmill_encoder::{
    BackendError, Buffer, Copies, FeedForward, Linear, LinearAddNorm, LinearShape, Lower,
    NormTensors, StackTensors,
};
use vecmill_memory::SourceError;
use vecmill_model::Activation;

use super::deferred::DeferredBias;
use super::narrow::NarrowLayer;
use super::ways::{Size, Then};
use super::{CudaBackend, failed, scratch};
use crate::gemm::{self, Format, HopperFeedForward, HopperGemm, HopperProduct, Widths};
use crate::source::CudaBlock;
use crate::stopwatch;
use crate::weights::{Loader, Tensor};

const OPERATION: &str = "linear";
const FUSED_OPERATION: &str = "linear, add and normalise";
const BLOCK_OPERATION: &str = "feed forward";

/// A linear layer on the device.
#[derive(Debug)]
pub struct CudaLinear {
    tensors: LayerTensors,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

#[derive(Debug)]
enum LayerTensors {
    Wide(WideLayer),
    Narrow(NarrowLayer),
}

/// The tensors of a layer in the activations' format.
#[derive(Debug)]
pub(super) struct WideLayer {
    pub(super) weight: Tensor,
    /// As cuBLASLt adds it.
    bias: Tensor,
    /// In `f32`, as our own kernels add it.
    pub(super) wide_bias: Tensor,
    /// For an input whose normalisation is deferred, if that may be.
    pub(super) deferred: Option<DeferredBias>,
}

impl CudaBackend {
    pub(super) fn stack(
        &self,
        stack: StackTensors<'_>,
        loader: &mut Loader<'_>,
    ) -> Result<CudaLinear, BackendError> {
        let LinearShape { inputs, outputs, .. } = stack.shape();
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for part in stack.parts {
            weight.extend_from_slice(&part.weight.to_f32());
            let outputs = part.weight.shape().first().copied().unwrap_or(0);
            match &part.bias {
                Some(tensor) => bias.extend_from_slice(&tensor.to_f32()),
                None => bias.resize(bias.len() + outputs, 0.0),
            }
        }
        let tensors = if self.lowering.is_narrow(stack.shape()) {
            LayerTensors::Narrow(NarrowLayer::load(&weight, &bias, inputs, loader)?)
        } else {
            let input_norm = stack.input_norm.filter(|_| self.lowering.may_defer(inputs));
            LayerTensors::Wide(self.wide_layer(&weight, &bias, input_norm, loader)?)
        };
        Ok(CudaLinear { tensors, inputs, outputs })
    }

    fn wide_layer(
        &self,
        weight: &[f32],
        bias: &[f32],
        input_norm: Option<&NormTensors>,
        loader: &mut Loader<'_>,
    ) -> Result<WideLayer, BackendError> {
        let format = self.lowering.format;
        Ok(WideLayer {
            weight: loader.store(weight, format)?,
            bias: loader.store(bias, format)?,
            wide_bias: loader.store(bias, Format::F32)?,
            deferred: input_norm
                .map(|norm| DeferredBias::load(weight, bias, norm, (format, loader)))
                .transpose()?,
        })
    }

    pub(super) fn multiply(
        &self,
        slab: &CudaBlock,
        op: &Linear<'_, Self>,
    ) -> Result<(), BackendError> {
        let &CudaLinear { ref tensors, inputs, outputs } = op.weights;
        let layer = match tensors {
            LayerTensors::Narrow(layer) => return self.multiply_narrow(slab, op, layer),
            LayerTensors::Wide(layer) => layer,
        };
        if op.input.copies == Copies::Deferred {
            return self.multiply_deferred(slab, op, layer);
        }
        let library = self.library_product(slab, op, layer).map_err(failed(OPERATION))?;
        let own = self.own_product(slab, op, layer).map_err(failed(OPERATION))?;
        let Some((hopper, own)) = own else {
            return self.multiply_by_library(&library);
        };
        let size = Size::new(op.input.rows, (inputs, outputs), Then::Activation(op.activation));
        let rule = || HopperGemm::pays(op.input.rows, inputs, outputs, op.activation);
        if self.ways.is_own(size, rule, || self.measure(&library, (hopper, own)))? {
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
        let product = HopperProduct { backwards: self.sweeps.turn(), ..product };
        hopper.multiply(&self.stream, &product, activation).map_err(failed(OPERATION))
    }

    fn multiply_by_library(&self, product: &gemm::Linear<'_>) -> Result<(), BackendError> {
        self.sweeps.forwards();
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
        slab: &mut CudaBlock,
        op: &LinearAddNorm<'_, Self>,
    ) -> Result<(), BackendError> {
        let &LinearAddNorm { input, weights, output, .. } = op;
        let layer = match (&weights.tensors, output.copies) {
            (LayerTensors::Wide(layer), Copies::Deferred) => {
                return self.multiply_and_defer(slab, op, layer);
            }
            (LayerTensors::Wide(layer), Copies::Wide) => layer,
            _ => return op.in_two(self, slab),
        };
        let hopper = self.hopper.as_ref();
        let fits = |_: &&HopperGemm| HopperGemm::fits_norm(weights.inputs, weights.outputs);
        let Some(hopper) = hopper.filter(fits) else {
            return op.in_two(self, slab);
        };
        let size = Size::new(input.rows, (weights.inputs, weights.outputs), Then::Norm);
        let rule = || HopperGemm::norm_pays(input.rows, weights.outputs);
        let measure = || {
            let apart = self.time(|| op.in_two(self, slab))?;
            Ok([apart, self.time(|| self.multiply_norm_by_own(slab, op, (hopper, layer)))?])
        };
        if self.ways.is_own(size, rule, measure)? {
            return self.multiply_norm_by_own(slab, op, (hopper, layer));
        }
        op.in_two(self, slab)
    }

    /// In one launch.
    fn multiply_norm_by_own(
        &self,
        slab: &CudaBlock,
        op: &LinearAddNorm<'_, Self>,
        (hopper, layer): (&HopperGemm, &WideLayer),
    ) -> Result<(), BackendError> {
        let operands = || -> Result<_, SourceError> {
            let product = self.product(slab, op.input, (op.weights, layer), op.output)?;
            Ok((product, self.span(slab, op.residual)?, op.norm.operands()?))
        };
        let (product, residual, norm) = operands().map_err(failed(FUSED_OPERATION))?;
        let product = HopperProduct { backwards: self.sweeps.turn(), ..product };
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
        slab: &mut CudaBlock,
        op: &FeedForward<'_, Self>,
    ) -> Result<(), BackendError> {
        let (rows, hidden, intermediate) = (op.input.rows, op.up.inputs, op.up.outputs);
        let fusable = self.fusable(op.up, op.down);
        if let (Some((hopper, _)), true) = (fusable, self.ways.tuning()) {
            // Sizes that are practised may be none of those that are fused.
            let ready = hopper.prepare_to_fuse(rows, hidden, intermediate, op.activation);
            ready.map_err(failed(BLOCK_OPERATION))?;
        }
        let Some((hopper, [up, down])) = fusable.filter(|_| op.between.is_none()) else {
            return op.in_two(self, slab);
        };
        let block = || -> Result<_, SourceError> {
            Ok(HopperFeedForward {
                rows,
                hidden,
                intermediate,
                input: self.span(slab, op.input)?,
                up: (up.weight.span()?, up.wide_bias.span()?),
                activation: op.activation,
                down: (down.weight.span()?, down.wide_bias.span()?),
                norm: op.norm.operands()?,
                output: self.span(slab, op.output)?,
                backwards: self.sweeps.turn(),
            })
        };
        let block = block().map_err(failed(BLOCK_OPERATION))?;
        hopper.feed_forward(&self.stream, &block).map_err(failed(BLOCK_OPERATION))
    }

    /// Our own kernels and their operands, where they can compute this layer.
    fn own_product<'a>(
        &'a self,
        slab: &'a CudaBlock,
        op: &Linear<'a, Self>,
        layer: &'a WideLayer,
    ) -> Result<Option<(&'a HopperGemm, HopperProduct<'a>)>, SourceError> {
        let hopper = self.hopper.as_ref();
        let hopper = hopper.filter(|_| HopperGemm::fits(op.weights.inputs, op.weights.outputs));
        let Some(hopper) = hopper else { return Ok(None) };
        let product = self.product(slab, op.input, (op.weights, layer), op.output)?;
        Ok(Some((hopper, product)))
    }

    /// Operands of our own kernels.
    pub(super) fn product<'a>(
        &self,
        slab: &'a CudaBlock,
        input: Buffer,
        (&CudaLinear { inputs, outputs, .. }, layer): (&CudaLinear, &'a WideLayer),
        output: Buffer,
    ) -> Result<HopperProduct<'a>, SourceError> {
        Ok(HopperProduct {
            rows: input.rows,
            inputs,
            outputs,
            widths: Widths::Wide,
            input: self.span(slab, input)?,
            weight: layer.weight.span()?,
            bias: layer.wide_bias.span()?,
            output: self.span(slab, output)?,
            backwards: false,
        })
    }

    fn library_product<'a>(
        &self,
        slab: &'a CudaBlock,
        op: &Linear<'a, Self>,
        WideLayer { weight, bias, .. }: &'a WideLayer,
    ) -> Result<gemm::Linear<'a>, SourceError> {
        let &CudaLinear { inputs, outputs, .. } = op.weights;
        Ok(gemm::Linear {
            format: self.lowering.format,
            rows: op.input.rows,
            inputs,
            outputs,
            input: self.span(slab, op.input)?,
            weight: weight.span()?,
            bias: Some(bias.span()?),
            activation: op.activation,
            output: self.span(slab, op.output)?,
            workspace: scratch(slab, op.workspace)?,
        })
    }
}
