//! The kernels of `kernels/`, compiled for one device and number format, and how each is launched.
//!
//! - `attention` chooses among several for it; `rotate` and `elements` have what most models lack.
//!
//! The choice behind it: what a file's head says of grid, block and limits is written here once, in
//! one function per operation; operands come checked.

mod attention;
mod elements;
mod rotate;

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError};

use vecmill_model::{Activation, Pooling, Poolings, Window};

use crate::compiler::{ACTIVATION, CompileError, Compiler, LINEAR_ANY, NORM, POOL, Source};
use crate::driver::{Argument, DeviceSpan, Launch, LoadedKernel, Module};
use crate::driver::{DriverError, LaunchError};
use crate::gemm::Format;
use crate::gpu::Gpu;
use crate::row_order::RowOrder;
use crate::stream::CudaStream;
use attention::Attention;
pub(crate) use attention::MIXES;
#[cfg(test)]
pub(crate) use attention::{HOPPER_HEAD_SIZE, hopper_shared_bytes};
pub(crate) use elements::Gated;
pub(crate) use rotate::{MAX_PAIRS, turns_of_head};

/// Why a kernel did not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

impl From<DriverError> for KernelError {
    fn from(error: DriverError) -> Self {
        Self::Launch(error.into())
    }
}

/// All kernels of one number format on one device.
#[derive(Debug)]
pub(crate) struct Kernels {
    compiler: Arc<Compiler>,
    format: Format,
    multiprocessors: usize,
    norm: Arc<Module>,
    pool: Arc<Module>,
    activation: Arc<Module>,
    /// Whether rows can be written in e4m3.
    fp8: bool,
    /// By name, made with the first step that needs them.
    rare: Mutex<HashMap<&'static str, Arc<Module>>>,
    attention: Attention,
    found: Mutex<HashMap<String, LoadedKernel>>,
}

/// Operands of [`Kernels::embed`].
pub(crate) struct EmbedOperands<'a> {
    pub(crate) ids: DeviceSpan<'a>,
    pub(crate) places: DeviceSpan<'a>,
    pub(crate) word_table: DeviceSpan<'a>,
    pub(crate) position_table: Option<DeviceSpan<'a>>,
    pub(crate) type_table: Option<DeviceSpan<'a>>,
}

/// Rows to normalise.
#[derive(Clone, Copy)]
pub(crate) struct Addends<'a> {
    pub(crate) input: DeviceSpan<'a>,
    /// Added to them.
    pub(crate) residual: Option<DeviceSpan<'a>>,
    /// Where the sum goes, if it is wanted as well.
    pub(crate) sum: Option<DeviceSpan<'a>>,
}

/// A layer normalisation's parameters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormOperands<'a> {
    pub(crate) gain: DeviceSpan<'a>,
    pub(crate) bias: DeviceSpan<'a>,
    pub(crate) epsilon: f32,
}

/// Rows whose normalisation is deferred.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeferredRows<'a> {
    /// Sums times gain.
    pub(crate) rows: DeviceSpan<'a>,
    /// `[rows, 4, 2]` in `f32`: of each quarter of a row the sum of what was not normalised, and that of
    /// its squares.
    pub(crate) moments: DeviceSpan<'a>,
}

/// Bytes of a row's moments.
pub(crate) const ROW_MOMENTS_BYTES: usize = 4 * 2 * size_of::<f32>();

/// Where normalised rows go.
#[derive(Clone, Copy)]
pub(crate) struct Written<'a> {
    pub(crate) wide: DeviceSpan<'a>,
    /// A second time, in e4m3: only with kernels that were made for that.
    pub(crate) narrow: Option<DeviceSpan<'a>>,
}

/// Where the rows of [`Kernels::attention`] go.
#[derive(Clone, Copy)]
pub(crate) struct Attended<'a> {
    pub(crate) rows: DeviceSpan<'a>,
    /// Whether they are in e4m3.
    pub(crate) narrow: bool,
}

/// Which rows belong together, and how many there are.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'a> {
    pub(crate) starts: DeviceSpan<'a>,
    pub(crate) sequences: usize,
    pub(crate) tokens: usize,
    pub(crate) longest: usize,
}

/// Heads, what they see, and their biases by distance.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a> {
    pub(crate) heads: usize,
    pub(crate) head_size: usize,
    pub(crate) window: Window,
    pub(crate) bias: Option<DistanceBias<'a>>,
}

/// What is added to scores by distance.
#[derive(Clone, Copy)]
pub(crate) enum DistanceBias<'a> {
    /// `[heads, 2 · reach + 1]`, and the reach.
    Table(DeviceSpan<'a>, usize),
    /// −slope · distance.
    Alibi,
}

impl Kernels {
    /// Compiles what every model needs; attention follows with the first head size. With `fp8`,
    /// normalised rows can be written in e4m3 as well.
    pub(crate) fn new(
        device: &Gpu,
        compiler: Arc<Compiler>,
        format: Format,
        fp8: bool,
    ) -> Result<Self, CompileError> {
        let load = |source| compiler.load(source, format, &[]);
        Ok(Self {
            norm: compiler.load(NORM, format, &output_defines(fp8))?,
            pool: load(POOL)?,
            activation: load(ACTIVATION)?,
            fp8,
            rare: Mutex::default(),
            attention: Attention::new(device, Arc::clone(&compiler), format),
            found: Mutex::default(),
            multiprocessors: device.info().multiprocessors as usize,
            compiler,
            format,
        })
    }

    pub(crate) fn embed(
        &self,
        stream: &CudaStream,
        operands: &EmbedOperands<'_>,
        norm: NormOperands<'_>,
        output: Written<'_>,
        (rows, columns): (usize, usize),
    ) -> Result<(), KernelError> {
        let arguments = [
            Argument::Span(operands.ids),
            Argument::Span(operands.places),
            Argument::Span(operands.word_table),
            optional(operands.position_table),
            optional(operands.type_table),
            Argument::Span(norm.gain),
            Argument::Span(norm.bias),
            Argument::Span(output.wide),
            optional(output.narrow),
            number(rows),
            number(columns),
            Argument::F32(norm.epsilon),
        ];
        self.norm_rows("embed", stream, (rows, columns), &arguments)
    }

    /// Normalises rows, or their sums with a residual.
    pub(crate) fn add_norm(
        &self,
        stream: &CudaStream,
        Addends { input, residual, sum }: Addends<'_>,
        norm: NormOperands<'_>,
        output: Written<'_>,
        ((rows, columns), backwards): ((usize, usize), bool),
    ) -> Result<(), KernelError> {
        let arguments = [
            Argument::Span(input),
            optional(residual),
            optional(sum),
            Argument::Span(norm.gain),
            Argument::Span(norm.bias),
            Argument::Span(output.wide),
            optional(output.narrow),
            number(rows),
            number(columns),
            Argument::F32(norm.epsilon),
            number(backwards.into()),
        ];
        self.norm_rows("add_norm", stream, (rows, columns), &arguments)
    }

    fn norm_rows(
        &self,
        operation: &str,
        stream: &CudaStream,
        (rows, columns): (usize, usize),
        arguments: &[Argument<'_>],
    ) -> Result<(), KernelError> {
        let capacity = [256, 512, 768, 1024, 4096].into_iter().find(|&most| columns <= most);
        let capacity = capacity.filter(|_| columns.is_multiple_of(self.vector()));
        let (variant, rows_per_block) = match capacity {
            Some(4096) => ("4096".to_owned(), 1),
            Some(capacity) => (capacity.to_string(), 4),
            None => ("any".to_owned(), 4),
        };
        let blocks = rows.div_ceil(rows_per_block).min(16 * self.multiprocessors);
        let kernel = self.kernel(&self.norm, &format!("vecmill_{operation}_{variant}"))?;
        launch(&kernel, stream, blocks, 128, 0, arguments)
    }

    /// Normalises what was deferred.
    pub(crate) fn normalize(
        &self,
        stream: &CudaStream,
        input: DeferredRows<'_>,
        norm: NormOperands<'_>,
        output: DeviceSpan<'_>,
        ((rows, columns), backwards): ((usize, usize), bool),
    ) -> Result<(), KernelError> {
        let arguments = [
            Argument::Span(input.rows),
            Argument::Span(input.moments),
            Argument::Span(norm.gain),
            Argument::Span(norm.bias),
            Argument::Span(output),
            number(rows),
            number(columns),
            Argument::F32(norm.epsilon),
            number(backwards.into()),
        ];
        let kernel = self.kernel(&self.norm, "vecmill_normalize")?;
        let blocks = rows.div_ceil(4).min(16 * self.multiprocessors);
        launch(&kernel, stream, blocks, 128, 0, &arguments)
    }

    pub(crate) fn pool(
        &self,
        stream: &CudaStream,
        poolings: Poolings,
        [input, output]: [DeviceSpan<'_>; 2],
        sequences: Packed<'_>,
        columns: usize,
    ) -> Result<(), KernelError> {
        let row = poolings.count() * columns;
        for (index, pooling) in poolings.iter().enumerate() {
            let into = (output, row, index * columns);
            self.pool_one(stream, pooling, input, into, sequences, columns)?;
        }
        Ok(())
    }

    /// Pools by one of several, into columns of rows of so many, from the last on.
    fn pool_one(
        &self,
        stream: &CudaStream,
        pooling: Pooling,
        input: DeviceSpan<'_>,
        (output, row, first): (DeviceSpan<'_>, usize, usize),
        sequences: Packed<'_>,
        columns: usize,
    ) -> Result<(), KernelError> {
        let vector = self.vector();
        let width = if columns.is_multiple_of(vector) { 8 * vector } else { 32 };
        let strips = columns.div_ceil(width);
        let (name, blocks_each) = match pooling {
            Pooling::Mean => ("vecmill_pool_mean", strips),
            Pooling::Max => ("vecmill_pool_max", strips),
            Pooling::Cls => ("vecmill_pool_cls", 1),
            Pooling::LastToken => ("vecmill_pool_last", 1),
            Pooling::MeanSqrtLen => ("vecmill_pool_mean_sqrt", strips),
            Pooling::WeightedMean => ("vecmill_pool_weighted", strips),
        };
        let arguments = [
            Argument::Span(input),
            Argument::Span(sequences.starts),
            Argument::Span(output),
            number(columns),
            number(row),
            number(first),
        ];
        let kernel = self.kernel(&self.pool, name)?;
        launch(&kernel, stream, sequences.sequences * blocks_each, 256, 0, &arguments)
    }

    /// Applies `activation` to `count` values in place.
    pub(crate) fn activate(
        &self,
        stream: &CudaStream,
        activation: Activation,
        values: DeviceSpan<'_>,
        count: usize,
    ) -> Result<(), KernelError> {
        if activation == Activation::Identity {
            return Ok(());
        }
        let name = format!("vecmill_{}", activation_name(activation));
        let kernel = self.kernel(&self.activation, &name)?;
        let blocks = count.div_ceil(512 * self.vector());
        launch(
            &kernel,
            stream,
            blocks,
            256,
            0,
            &[Argument::Span(values), Argument::U64(count as u64)],
        )
    }

    /// Whether rows are a multiple of 16 bytes: for others cuBLASLt rounds twice, or refuses.
    pub(crate) fn suit_tensor_cores(&self, inputs: usize, outputs: usize) -> bool {
        inputs.is_multiple_of(self.vector()) && outputs.is_multiple_of(self.vector())
    }

    /// A linear layer of any size; `[input, weight, bias, output]`.
    pub(crate) fn linear_any(
        &self,
        stream: &CudaStream,
        activation: Activation,
        operands: [DeviceSpan<'_>; 4],
        [rows, inputs, outputs]: [usize; 3],
    ) -> Result<(), KernelError> {
        let module = self.rare(LINEAR_ANY, &[])?;
        let name = format!("vecmill_linear_{}", activation_name(activation));
        let mut arguments = operands.map(Argument::Span).to_vec();
        arguments.extend([rows, inputs, outputs].map(number));
        let blocks = rows.div_ceil(16) * outputs.div_ceil(16);
        launch(&self.kernel(&module, &name)?, stream, blocks, 256, 0, &arguments)
    }

    /// From queries, keys and values to the output.
    pub(crate) fn attention(
        &self,
        stream: &CudaStream,
        rows: (DeviceSpan<'_>, Attended<'_>),
        sequences: Packed<'_>,
        heads: Heads<'_>,
        row_order: &RowOrder,
    ) -> Result<(), KernelError> {
        self.attention.run(stream, rows, sequences, heads, row_order)
    }

    /// Kernels that were launched so far.
    pub(crate) fn ways_taken(&self) -> usize {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner).len();
        found + self.attention.ways_taken()
    }

    fn rare(&self, source: Source, defines: &[String]) -> Result<Arc<Module>, CompileError> {
        let mut modules = self.rare.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(source.name()) {
            return Ok(Arc::clone(module));
        }
        let module = self.compiler.load(source, self.format, defines)?;
        modules.insert(source.name(), Arc::clone(&module));
        Ok(module)
    }

    fn kernel(&self, module: &Arc<Module>, called: &str) -> Result<LoadedKernel, KernelError> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = found.get(called) {
            return Ok(kernel.clone());
        }
        let kernel = module.kernel(&name(called))?;
        found.insert(called.to_owned(), kernel.clone());
        Ok(kernel)
    }

    /// Elements in 16 bytes.
    fn vector(&self) -> usize {
        16 / self.format.bytes()
    }
}

/// The macros of kernels that write e4m3, or do not.
fn output_defines(narrow: bool) -> Vec<String> {
    vec![format!("FP8_OUTPUT={}", u8::from(narrow))]
}

/// What kernels call it.
fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Identity => "identity",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_tanh",
        Activation::Relu => "relu",
        Activation::Silu => "silu",
        Activation::Tanh => "tanh",
    }
}

fn name(name: &str) -> CString {
    CString::new(name).unwrap_or_default() // names of kernels have no zeros
}

fn optional(span: Option<DeviceSpan<'_>>) -> Argument<'_> {
    span.map_or(Argument::Null, Argument::Span)
}

pub(crate) fn number(value: usize) -> Argument<'static> {
    Argument::U32(u32::try_from(value).unwrap_or(u32::MAX))
}

fn launch(
    kernel: &LoadedKernel,
    stream: &CudaStream,
    blocks: usize,
    threads: u32,
    shared_bytes: usize,
    arguments: &[Argument<'_>],
) -> Result<(), KernelError> {
    let shared_bytes = u32::try_from(shared_bytes).unwrap_or(u32::MAX);
    let launch = Launch { blocks, threads, shared_bytes, early: true };
    Ok(kernel.launch(stream.raw(), launch, arguments)?)
}
