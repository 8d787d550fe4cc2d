//! Matrix products by cuBLASLt: `output = activation(input · weightᵀ + bias)`.
//!
//! - [`Gemm`] is the library on one device; a [`Linear`] names one product's operands.
//! - `shape` has formats, sizes and [`RowRange`]s; `choose` says which kernel, and remembers
//!   an algorithm per range; `tune` times candidates where the library's own estimate is not enough.
//! - `hopper` has kernels of our own, for compute capability 9.0.
//!
//! The choice behind it: row counts differ with every batch, and asking the library for an algorithm
//! costs more than a small product. So it is asked once per range, eight of which make an octave,
//! and an answer counts only if it holds for the fewest and the most rows of the range.
//!
//! **Precision.** Products and sums are `f32`, for `f32` operands without TF32. Sums that are
//! computed in parts are added in `f32` as well. The library adds a bias in the format of the
//! output: in f16 and bf16 it is rounded when it is loaded, which moves a result by at most the
//! unit roundoff of that format times the bias, as its own rounding does.
//!
//! Where rows are no multiple of 16 bytes, the library may round a 16-bit product before it adds the
//! bias, or refuse: such layers are for `kernels/linear_any.cu`.
//!
//! **The same bits.** An algorithm adds up the same products in the same order for each row, so
//! within a range a row's result does not depend on the other rows. Batches of different ranges,
//! and processes that have tuned differently, may use different algorithms: there results agree
//! within the rounding of sums, and not to the last bit. So it is between cuBLASLt and `hopper`,
//! which are chosen by the number of rows.

mod choose;
mod error;
mod hopper;
mod shape;
mod tune;

use std::sync::{Mutex, MutexGuard, PoisonError};

use vecmill_model::Activation;

use crate::driver::DeviceSpan;
use crate::driver::cublaslt::{
    Algorithm, Candidate, Function, Limits, MatmulError, MatmulLibrary, Operands, Product,
    Specification,
};
use crate::gpu::Gpu;
use crate::stream::CudaStream;
use choose::{Algorithms, Key};
pub(crate) use choose::{Measured, Size, Then, own_norm_pays, own_pays, row_class};
pub use error::GemmError;
pub(crate) use hopper::{
    Deferral, DeferredInput, DeferredResidual, FeedForward as HopperFeedForward, HopperGemm,
    Product as HopperProduct, Rotation, Widths,
};
#[cfg(test)]
pub(crate) use hopper::{used, used_feed_forward};
pub use shape::{Format, RowRange};
pub(crate) use shape::{workspace_bytes, workspace_limit};
pub use tune::Tuned;

/// What addresses of activations and biases must be multiples of.
pub const ACTIVATION_ALIGNMENT: u32 = 64;
/// What addresses of weights must be multiples of.
#[expect(clippy::cast_possible_truncation, reason = "it is small")]
pub const WEIGHT_ALIGNMENT: u32 = vecmill_encoder::WEIGHT_ALIGNMENT as u32;

/// How many algorithms the library is asked for.
const CANDIDATES: usize = 16;

/// One product and where its operands are. All matrices are row-major and without gaps.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// Of all matrices, and of the bias.
    pub format: Format,
    /// Rows of input and output.
    pub rows: usize,
    /// Columns of the input.
    pub inputs: usize,
    /// Columns of the output.
    pub outputs: usize,
    /// `[rows, inputs]`
    pub input: DeviceSpan<'a>,
    /// `[outputs, inputs]`
    pub weight: DeviceSpan<'a>,
    /// `[outputs]`, added to each row.
    pub bias: Option<DeviceSpan<'a>>,
    /// Applied to each element.
    pub activation: Activation,
    /// `[rows, outputs]`
    pub output: DeviceSpan<'a>,
    /// As long as [`Gemm::workspace_bytes`] says.
    pub workspace: DeviceSpan<'a>,
}

impl Linear<'_> {
    fn no_algorithm(&self) -> GemmError {
        let Self { format, rows, inputs, outputs, .. } = *self;
        GemmError::NoAlgorithm { format, rows, inputs, outputs }
    }
}

/// cuBLASLt on one device. All methods may be called from any thread; calls take turns.
#[derive(Debug)]
pub struct Gemm {
    device: Gpu,
    workspace_limit: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    library: MatmulLibrary,
    algorithms: Algorithms<Choice>,
}

/// What is used for a range.
#[derive(Debug, Clone, Copy)]
struct Choice {
    /// What the algorithm applies to the sums.
    function: Function,
    algorithm: Algorithm,
}

impl Gemm {
    /// Opens the library for `device`.
    ///
    /// # Errors
    /// [`GemmError::NoLibrary`] when it is not there, [`GemmError::Failed`] when it does not start.
    pub fn open(device: &Gpu) -> Result<Self, GemmError> {
        let library = MatmulLibrary::open(device.context())??;
        let state = State { library, algorithms: Algorithms::default() };
        let workspace_limit = workspace_limit(device.info().compute_capability);
        Ok(Self { device: device.clone(), workspace_limit, state: Mutex::new(state) })
    }

    /// The library's version: `(13, 1, 0)` is 13.1.0.
    pub fn version(&self) -> (usize, usize, usize) {
        let version = self.state().library.version();
        (version / 10_000, version % 10_000 / 100, version % 100)
    }

    /// How many kinds of products there were, for each of which an algorithm was chosen.
    pub(crate) fn ways_taken(&self) -> usize {
        self.state().algorithms.len()
    }

    /// Scratch bytes for a product with `rows` rows; more rows need no less.
    pub fn workspace_bytes(&self, rows: usize, outputs: usize) -> usize {
        workspace_bytes(rows, outputs, self.workspace_limit)
    }

    /// Computes a product on `stream`, behind the work so far. Returns the activation that is still
    /// to be applied to the output: `Identity` where cuBLASLt did it.
    ///
    /// # Errors
    /// [`GemmError`] when an operand is too short or misaligned, the library has no algorithm for
    /// it, or the device is lost.
    pub fn multiply(
        &self,
        stream: &CudaStream,
        linear: &Linear<'_>,
    ) -> Result<Activation, GemmError> {
        if linear.rows == 0 {
            return Ok(Activation::Identity);
        }
        self.validate(linear)?;
        let mut state = self.state();
        let State { library, algorithms } = &mut *state;
        let choice = algorithms.get_or_choose(Key::of(linear), || {
            let (function, candidates) = self.candidates(library, linear)?;
            let first = candidates.first().ok_or_else(|| linear.no_algorithm())?;
            Ok::<_, GemmError>(Choice { function, algorithm: first.algorithm })
        })?;
        let product = library.product(&to_run(linear, choice.function))?;
        run(library, stream, linear, &product, &choice.algorithm)?;
        Ok(remaining(linear.activation, choice.function))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a panic can leave behind is a choice that was not made yet.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The algorithms that hold for the whole range, by the library's estimate, and what they
    /// apply: the activation if there is one that does, else nothing.
    fn candidates(
        &self,
        library: &MatmulLibrary,
        linear: &Linear<'_>,
    ) -> Result<(Function, Vec<Candidate>), GemmError> {
        let fused = fusable(linear.activation, linear.format);
        let found = self.candidates_with(library, linear, fused)?;
        if !found.is_empty() || fused == Function::Identity {
            return Ok((fused, found));
        }
        let found = self.candidates_with(library, linear, Function::Identity)?;
        Ok((Function::Identity, found))
    }

    fn candidates_with(
        &self,
        library: &MatmulLibrary,
        linear: &Linear<'_>,
        function: Function,
    ) -> Result<Vec<Candidate>, GemmError> {
        let range = RowRange::of(linear.rows);
        let limits = Limits {
            workspace_bytes: self.workspace_bytes(range.most(), linear.outputs),
            weight_alignment: WEIGHT_ALIGNMENT,
            activation_alignment: ACTIVATION_ALIGNMENT,
        };
        let product = |rows| library.product(&to_choose(linear, rows, function));
        let propose = |rows| library.candidates(&product(rows)?, &limits, CANDIDATES);
        let holds = |rows, candidate: &Candidate| {
            let needed = library.check(&product(rows)?, &candidate.algorithm)?;
            Ok(needed.is_some_and(|bytes| bytes <= limits.workspace_bytes))
        };
        Ok(choose::valid_in(range, propose, holds)?)
    }

    /// Sizes and places of the operands, before anything is asked of the device.
    fn validate(&self, linear: &Linear<'_>) -> Result<(), GemmError> {
        let Linear { format, rows, inputs, outputs, .. } = *linear;
        if rows == 0 || inputs == 0 || outputs == 0 {
            return Err(linear.no_algorithm());
        }
        let matrix =
            |rows: usize, columns| rows.saturating_mul(columns).saturating_mul(format.bytes());
        let workspace_bytes = self.workspace_bytes(rows, outputs);
        let activation = |operand, span, needed| (operand, span, needed, ACTIVATION_ALIGNMENT);
        let operands = [
            Some(activation("input", linear.input, matrix(rows, inputs))),
            Some(("weight", linear.weight, matrix(outputs, inputs), WEIGHT_ALIGNMENT)),
            linear.bias.map(|span| activation("bias", span, matrix(1, outputs))),
            Some(activation("output", linear.output, matrix(rows, outputs))),
            Some(activation("workspace", linear.workspace, workspace_bytes)),
        ];
        operands.into_iter().flatten().try_for_each(|(operand, span, needed, alignment)| {
            if span.bytes() < needed {
                return Err(GemmError::TooShort { operand, needed, found: span.bytes() });
            }
            if !span.address().is_multiple_of(alignment.into()) {
                return Err(GemmError::Misaligned { operand, address: span.address(), alignment });
            }
            Ok(())
        })
    }
}

/// What the library shall apply of `activation`. Its GELU is the one by tanh, and that tanh may be
/// the hardware's, which is good enough for 16 bits. The others are a kernel's business, behind the
/// product.
fn fusable(activation: Activation, format: Format) -> Function {
    match activation {
        Activation::Relu => Function::Relu,
        Activation::GeluTanh if format != Format::F32 => Function::Gelu,
        _ => Function::Identity,
    }
}

/// What is left of `activation` when the library applied `function`.
fn remaining(activation: Activation, function: Function) -> Activation {
    match function {
        Function::Identity => activation,
        Function::Relu | Function::Gelu => Activation::Identity,
    }
}

/// The product itself.
fn to_run(linear: &Linear<'_>, function: Function) -> Specification {
    Specification {
        data_type: linear.format.data_type(),
        rows: linear.rows,
        inputs: linear.inputs,
        outputs: linear.outputs,
        function,
        bias: linear.bias.map(|span| span.address()),
    }
}

/// What stands for products of `rows` rows. Only the alignment of addresses counts here, and must be
/// what all have.
fn to_choose(linear: &Linear<'_>, rows: usize, function: Function) -> Specification {
    Specification {
        rows,
        bias: linear.bias.map(|_| u64::from(ACTIVATION_ALIGNMENT)),
        ..to_run(linear, function)
    }
}

fn run(
    library: &MatmulLibrary,
    stream: &CudaStream,
    linear: &Linear<'_>,
    product: &Product,
    algorithm: &Algorithm,
) -> Result<(), MatmulError> {
    let operands = Operands {
        weight: linear.weight,
        input: linear.input,
        output: linear.output,
        workspace: linear.workspace,
    };
    library.multiply(stream.raw(), product, &operands, algorithm)
}
