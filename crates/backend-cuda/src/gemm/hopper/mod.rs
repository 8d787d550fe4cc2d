//! Linear layers by our own kernels on Hopper: `activation(input · weightᵀ + bias)` in one launch, or
//! `norm(input · weightᵀ + bias + residual)`, which may also be left to those who read the rows.
//!
//! - [`HopperGemm`] says which layers it takes, and computes them; [`Product`] names the operands.
//! - `variant` has the kernels' configurations.
//! - `deferred` has those around normalisations that are deferred.
//! - `rotated` has those behind which queries and keys are turned.
//! - `feed_forward` has two products with all that is between and behind them, in one launch.
//!
//! Input and weight may be FP8, and the output, if the next layer is to read it.
//!
//! The choice behind it: cuBLASLt has no exact GELU and no normalisation to fuse, and each would
//! read and write the whole output again. Where there is nothing to fuse, sizes decide, by what was
//! faster on an H200.
//!
//! **The same bits.** A row's sum is added up in the same order whatever the other rows are, so its
//! result depends on them only through their number: for more or fewer rows cuBLASLt or another
//! variant may be chosen, by measurement at the start or else by the rules of `choose`.

mod deferred;
mod feed_forward;
mod rotated;
#[cfg(test)]
mod tests;
mod variant;

use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::{Arc, Mutex, PoisonError};

use vecmill_model::Activation;

use super::Format;
use super::choose::FEW_ROWS;
use crate::compiler::{Compiler, FEED_FORWARD_SM90, GEMM_SM90, Source};
use crate::driver::DriverError;
use crate::driver::{Argument, DeviceSpan, Launch, LoadedKernel, TensorElement, TensorMap};
use crate::gpu::Gpu;
use crate::kernels::{KernelError, NormOperands, number};
use crate::stream::CudaStream;
pub(crate) use deferred::{Deferral, DeferredInput, DeferredResidual};
pub(crate) use feed_forward::FeedForward;
use feed_forward::FeedForwardKernel;
#[cfg(test)]
pub(crate) use feed_forward::used as used_feed_forward;
pub(crate) use rotated::Rotation;
pub(crate) use variant::Widths;
#[cfg(test)]
pub(crate) use variant::used;
use variant::{BLOCK_ROW_BYTES, BLOCK_THREADS, OUTPUT_BOX, Variant};

/// Matrices of 16-bit numbers without gaps have rows of whole 16 bytes, as the copy engine wants them;
/// which those of e4m3 do is [`e4m3::suits`](vecmill_model::e4m3::suits).
const COLUMN_MULTIPLE: usize = 8;

/// One product and where its operands are; matrices are row-major, without gaps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// `[rows, inputs]`
    pub(crate) input: DeviceSpan<'a>,
    /// `[outputs, inputs]`
    pub(crate) weight: DeviceSpan<'a>,
    /// `[outputs]`, in `f32`; for narrow operands `[outputs, 2]`: what the product is multiplied by,
    /// and the bias.
    pub(crate) bias: DeviceSpan<'a>,
    /// `[rows, outputs]`, half as many if they are gated.
    pub(crate) output: DeviceSpan<'a>,
    pub(crate) widths: Widths,
    /// Whether the last rows are computed first: results don't depend on it.
    pub(crate) backwards: bool,
}

/// The kernels of one number format on one device of compute capability 9.0.
#[derive(Debug)]
pub(crate) struct HopperGemm {
    device: Gpu,
    compiler: Arc<Compiler>,
    format: Format,
    element: TensorElement,
    loaded: Mutex<HashMap<Configuration, Loaded>>,
}

/// What is compiled as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Configuration {
    Product(Variant),
    FeedForward(FeedForwardKernel),
}

/// A configuration's kernel, and how many clusters of it the device runs at once.
#[derive(Debug, Clone)]
struct Loaded {
    kernel: LoadedKernel,
    clusters: usize,
}

impl HopperGemm {
    /// `None` where the kernels don't run: on other devices, and for `f32`.
    pub(crate) fn new(device: &Gpu, compiler: &Arc<Compiler>, format: Format) -> Option<Self> {
        let element = match format {
            Format::F16 => TensorElement::F16,
            Format::Bf16 => TensorElement::Bf16,
            Format::F32 => return None,
        };
        // The compiler names the very device only if it knows it.
        (compiler.architecture() == "sm_90a").then(|| Self {
            device: device.clone(),
            compiler: Arc::clone(compiler),
            format,
            element,
            loaded: Mutex::default(),
        })
    }

    /// Whether [`multiply`](Self::multiply) can compute a layer of this size.
    pub(crate) fn fits(inputs: usize, outputs: usize) -> bool {
        let fits = |columns: usize| columns > 0 && columns.is_multiple_of(COLUMN_MULTIPLE);
        fits(inputs) && fits(outputs)
    }

    /// The variants of a layer.
    #[cfg(test)]
    pub(crate) fn variants(
        rows: usize,
        inputs: usize,
        outputs: usize,
    ) -> (Variant, Variant, Option<Variant>) {
        let activation = Activation::Gelu;
        let activated = Variant::activated(rows, activation, Widths::Wide);
        let deferred = Variant::behind_deferred(rows, activation);
        (activated, deferred, Variant::normalised(rows, inputs, outputs))
    }

    /// Whether [`multiply_norm`](Self::multiply_norm) can compute a layer of this size.
    pub(crate) fn fits_norm(inputs: usize, outputs: usize) -> bool {
        Self::fits(inputs, outputs) && Variant::normalised(1, inputs, outputs).is_some()
    }

    /// `output = activation(input · weightᵀ + bias)`, on `stream` behind the work so far.
    pub(crate) fn multiply(
        &self,
        stream: &CudaStream,
        product: &Product<'_>,
        activation: Activation,
    ) -> Result<(), KernelError> {
        if product.rows == 0 {
            return Ok(());
        }
        let variant = Variant::activated(product.rows, activation, product.widths);
        self.launch_activated(stream, product, variant, None, &[])
    }

    /// Whether that and the gates of such a layer are faster than a product of the library's and a gate
    /// behind it: where tiles are many enough.
    pub(crate) fn gating_pays(rows: usize) -> bool {
        rows >= FEW_ROWS
    }

    /// `activation(gate) · up` of columns of `norm(input) · weightᵀ + bias` that are eight gates and their
    /// eight ups by turns: the output has half as many. The input is normalised, or `deferred` is what
    /// is to be known of that; then `bias` is what [`multiply_deferred`](Self::multiply_deferred) wants.
    pub(crate) fn multiply_gated(
        &self,
        stream: &CudaStream,
        product: &Product<'_>,
        deferred: Option<DeferredInput<'_>>,
        activation: Activation,
    ) -> Result<(), KernelError> {
        if product.rows == 0 {
            return Ok(());
        }
        let variant = Variant::plain(product.rows, product.widths, deferred.is_some());
        self.launch_activated(stream, product, variant.gated(activation), deferred, &[])
    }

    fn launch_activated(
        &self,
        stream: &CudaStream,
        product: &Product<'_>,
        variant: Variant,
        deferred: Option<DeferredInput<'_>>,
        more: &[Argument<'_>],
    ) -> Result<(), KernelError> {
        let [input, weight, output] = self.maps(product, variant)?;
        let arguments = [
            Argument::TensorMap(&input),
            Argument::TensorMap(&weight),
            Argument::TensorMap(&output),
            Argument::Span(product.bias),
            number(product.rows),
            number(product.outputs),
            number(product.inputs),
            number(product.backwards.into()),
            deferred.map_or(Argument::Null, |input| Argument::Span(input.moments)),
            Argument::F32(deferred.map_or(0.0, |input| input.epsilon)),
        ];
        self.launch_product(stream, product, variant, &[&arguments, more].concat())
    }

    /// `output = norm(input · weightᵀ + bias + residual)`, on `stream` behind the work so far;
    /// `residual` is as large as the output, and elsewhere. Operands are wide.
    pub(crate) fn multiply_norm(
        &self,
        stream: &CudaStream,
        product: &Product<'_>,
        residual: DeviceSpan<'_>,
        norm: NormOperands<'_>,
    ) -> Result<(), KernelError> {
        if product.rows == 0 {
            return Ok(());
        }
        let &Product { rows, inputs, outputs, .. } = product;
        let unfit = || DriverError::invalid("a fused normalisation");
        let variant = Variant::normalised(rows, inputs, outputs).ok_or_else(unfit)?;
        let [input, weight, output] = self.maps(product, variant)?;
        let size = (product.rows, product.outputs);
        let residual = self.map(residual, self.element, size, OUTPUT_BOX)?;
        let arguments = [
            Argument::TensorMap(&input),
            Argument::TensorMap(&weight),
            Argument::TensorMap(&output),
            Argument::TensorMap(&residual),
            Argument::Span(product.bias),
            Argument::Span(norm.gain),
            Argument::Span(norm.bias),
            Argument::F32(norm.epsilon),
            number(product.rows),
            number(product.outputs),
            number(product.inputs),
            number(product.backwards.into()),
        ];
        self.launch_product(stream, product, variant, &arguments)
    }

    /// Of input, weight and output.
    fn maps<'a>(
        &self,
        product: &Product<'a>,
        variant: Variant,
    ) -> Result<[TensorMap<'a>; 3], KernelError> {
        let &Product { rows, inputs, outputs, input, weight, output, widths, .. } = product;
        let element = |narrow| if narrow { TensorElement::E4m3 } else { self.element };
        let (factor, sum) = (element(widths.narrow()), element(widths.narrow_output()));
        let block = |box_rows| (box_rows, BLOCK_ROW_BYTES / factor.bytes());
        let output_box = (OUTPUT_BOX.0, variant.stored_columns(OUTPUT_BOX.1));
        Ok([
            self.map(input, factor, (rows, inputs), block(variant.input_box_rows()))?,
            self.map(weight, factor, (outputs, inputs), block(variant.weight_box_rows()))?,
            self.map(output, sum, (rows, variant.stored_columns(outputs)), output_box)?,
        ])
    }

    fn map<'a>(
        &self,
        matrix: DeviceSpan<'a>,
        element: TensorElement,
        size: (usize, usize),
        box_size: (u32, u32),
    ) -> Result<TensorMap<'a>, KernelError> {
        Ok(TensorMap::new(self.device.context(), matrix, element, size, box_size)?)
    }

    fn launch_product(
        &self,
        stream: &CudaStream,
        product: &Product<'_>,
        variant: Variant,
        arguments: &[Argument<'_>],
    ) -> Result<(), KernelError> {
        let tiles = variant.tiles(product.rows, product.outputs);
        self.launch(stream, Configuration::Product(variant), tiles, arguments)
    }

    /// Clusters go through the tiles by themselves: no more of them than run at once.
    fn launch(
        &self,
        stream: &CudaStream,
        configuration: Configuration,
        tiles: usize,
        arguments: &[Argument<'_>],
    ) -> Result<(), KernelError> {
        let Loaded { kernel, clusters } = self.loaded(configuration)?;
        let launch = configuration.launch(tiles.min(clusters));
        Ok(kernel.launch(stream.raw(), launch, arguments)?)
    }

    /// Configurations that were loaded so far.
    pub(crate) fn ways_taken(&self) -> usize {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn loaded(&self, configuration: Configuration) -> Result<Loaded, KernelError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = loaded.get(&configuration) {
            return Ok(known.clone());
        }
        let (source, name, defines) = configuration.code();
        let kernel = self.compiler.load(source, self.format, &defines)?.kernel(name)?;
        // One block fills a multiprocessor, so this many clusters are more than fit.
        let multiprocessors = self.device.info().multiprocessors as usize;
        let many = configuration.launch(multiprocessors);
        kernel.allow_shared(many.shared_bytes)?;
        let cluster = configuration.cluster();
        let clusters = kernel.resident_clusters(many, cluster)?;
        // The driver answers for the whole device also where this is a part of it.
        let clusters = clusters.min(multiprocessors / cluster as usize);
        let made = Loaded { kernel, clusters: clusters.max(1) };
        loaded.insert(configuration, made.clone());
        Ok(made)
    }
}

impl Configuration {
    /// Source, kernel and macros.
    fn code(self) -> (Source, &'static CStr, Vec<String>) {
        match self {
            Self::Product(variant) => (GEMM_SM90, variant.kernel(), variant.defines()),
            Self::FeedForward(kernel) => {
                (FEED_FORWARD_SM90, FeedForwardKernel::NAME, kernel.defines())
            }
        }
    }

    /// Blocks of a cluster.
    fn cluster(self) -> u32 {
        match self {
            Self::Product(variant) => variant.cluster(),
            Self::FeedForward(_) => 1,
        }
    }

    fn launch(self, clusters: usize) -> Launch {
        let blocks = clusters * self.cluster() as usize;
        let (threads, shared_bytes) = match self {
            Self::Product(variant) => (BLOCK_THREADS, variant.shared_bytes()),
            Self::FeedForward(kernel) => (FeedForwardKernel::THREADS, kernel.shared_bytes()),
        };
        Launch { blocks, threads, shared_bytes, early: true }
    }
}
