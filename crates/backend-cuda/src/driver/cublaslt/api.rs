//! The table of cuBLASLt's functions that vecmill calls, and the numbers that they take.
//!
//! The choice behind it: as with the driver's table, everything is looked up once, a missing
//! function is an answer, and a status is a plain number. The functions and numbers below are the
//! same in CUDA 12 and 13: both headers (`cublasLt.h`, `cublas_api.h`, `library_types.h`) declare
//! them so, and the tests in `mod.rs` set every attribute in whichever library is there.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys;

use super::super::table::function_table;
use crate::libraries::{self, Missing, NvidiaLibrary, Opened};

/// What stands for a handle or a descriptor outside the library.
pub(super) type Opaque = *mut c_void;

function_table! {
    /// The functions, under shorter names.
    Api {
        version = "cublasLtGetVersion"() -> usize;
        status_text = "cublasLtGetStatusString"(u32) -> *const c_char;
        create = "cublasLtCreate"(*mut Opaque);
        destroy = "cublasLtDestroy"(Opaque);

        operation_create = "cublasLtMatmulDescCreate"(*mut Opaque, c_int, c_int);
        operation_set = "cublasLtMatmulDescSetAttribute"(
            Opaque, c_int, *const c_void, usize,
        );
        operation_destroy = "cublasLtMatmulDescDestroy"(Opaque);
        layout_create = "cublasLtMatrixLayoutCreate"(*mut Opaque, c_int, u64, u64, i64);
        layout_destroy = "cublasLtMatrixLayoutDestroy"(Opaque);
        preference_create = "cublasLtMatmulPreferenceCreate"(*mut Opaque);
        preference_set = "cublasLtMatmulPreferenceSetAttribute"(
            Opaque, c_int, *const c_void, usize,
        );
        preference_destroy = "cublasLtMatmulPreferenceDestroy"(Opaque);

        // Handle, operation, layouts of A, B, C and D; then the preference, how many, where to, how
        // many there were.
        heuristic = "cublasLtMatmulAlgoGetHeuristic"(
            Opaque, Opaque, Opaque, Opaque, Opaque, Opaque,
            Opaque, c_int, *mut Heuristic, *mut c_int,
        );
        // The same first six; then the algorithm, and what is known of it.
        check = "cublasLtMatmulAlgoCheck"(
            Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, *const Algorithm, *mut Heuristic,
        );
        // Handle, operation, alpha, A, B, beta, C, D with their layouts, algorithm, workspace, stream.
        multiply = "cublasLtMatmul"(
            Opaque, Opaque, *const c_void, *const c_void, Opaque, *const c_void, Opaque,
            *const c_void, *const c_void, Opaque, *mut c_void, Opaque,
            *const Algorithm, *mut c_void, usize, sys::CUstream,
        );
    }
}

/// `cublasLtMatmulAlgo_t`: a configured algorithm, which the library reads and nobody else.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Algorithm([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Heuristic {
    pub(super) algorithm: Algorithm,
    pub(super) workspace: usize,
    /// A `cublasStatus_t`.
    pub(super) state: u32,
    waves: f32,
    reserved: [c_int; 4],
}

impl Heuristic {
    /// Room for one.
    pub(super) const EMPTY: Self = Self {
        algorithm: Algorithm([0; 8]),
        workspace: 0,
        state: status::NOT_SUPPORTED,
        waves: 0.0,
        reserved: [0; 4],
    };
}

/// Values of `cublasStatus_t` that are told apart.
pub(super) mod status {
    pub(crate) const SUCCESS: u32 = 0;
    pub(crate) const INVALID_VALUE: u32 = 7;
    pub(crate) const ARCH_MISMATCH: u32 = 8;
    pub(crate) const NOT_SUPPORTED: u32 = 15;
}

/// `CUBLAS_COMPUTE_32F`: products and sums in `f32`, and no rounding of `f32` operands to TF32.
pub(super) const COMPUTE_F32: c_int = 68;
/// `CUBLAS_OP_T`
pub(super) const TRANSPOSED: i32 = 1;

/// Values of `cudaDataType`.
pub(super) mod data_type {
    use std::ffi::c_int;

    pub(crate) const F32: c_int = 0;
    pub(crate) const F16: c_int = 2;
    pub(crate) const BF16: c_int = 14;
}

/// Values of `cublasLtMatmulDescAttributes_t`; beside each, what it takes.
pub(super) mod operation {
    use std::ffi::c_int;

    /// `int32_t`
    pub(crate) const TRANSPOSE_A: c_int = 3;
    /// `uint32_t`
    pub(crate) const EPILOGUE: c_int = 7;
    /// A device address.
    pub(crate) const BIAS_POINTER: c_int = 8;
}

/// Bits of `cublasLtEpilogue_t`. `DEFAULT` stands alone; `BIAS` goes with either function.
pub(super) mod epilogue {
    pub(crate) const DEFAULT: u32 = 1;
    pub(crate) const RELU: u32 = 2;
    pub(crate) const BIAS: u32 = 4;
    pub(crate) const GELU: u32 = 32;
}

/// Values of `cublasLtMatmulPreferenceAttributes_t`; beside each, what it takes.
pub(super) mod preference {
    use std::ffi::c_int;

    /// `uint64_t`
    pub(crate) const WORKSPACE_BYTES: c_int = 1;
    /// `uint32_t`, bits of `cublasLtReductionScheme_t`
    pub(crate) const REDUCTIONS: c_int = 3;
    /// `uint32_t`, bytes
    pub(crate) const ALIGNMENT_A: c_int = 5;
    /// As above.
    pub(crate) const ALIGNMENTS_B_C_D: [c_int; 3] = [6, 7, 8];
}

/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`: partial sums are kept and added in `f32`.
pub(super) const REDUCE_IN_F32: u32 = 2;

impl Api {
    /// What `cublasLtGetVersion` says.
    pub(super) fn version_number(&self) -> usize {
        // SAFETY: takes nothing and returns a number.
        unsafe { (self.version)() }
    }
}

static OPENED: OnceLock<Opened<Api>> = OnceLock::new();

/// The functions. Nothing is remembered of a failure.
pub(super) fn load() -> Result<&'static Opened<Api>, Missing> {
    if let Some(opened) = OPENED.get() {
        return Ok(opened);
    }
    let opened = libraries::open(NvidiaLibrary::CublasLt, Api::find)?;
    Ok(OPENED.get_or_init(|| opened))
}

/// A function returned something other than success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LtError {
    /// The function's name, for example `cublasLtMatmul`.
    pub(crate) call: &'static str,
    /// A `cublasStatus_t`.
    pub(crate) status: u32,
}

impl LtError {
    /// What the library calls it.
    pub(crate) fn reason(self) -> String {
        let Some(opened) = OPENED.get() else {
            return format!("status {}", self.status);
        };
        // SAFETY: the function looks any number up.
        let text = unsafe { (opened.functions.status_text)(self.status) };
        if text.is_null() {
            return format!("status {}", self.status);
        }
        // SAFETY: a string of the library's, ended by a zero and never freed.
        let text = unsafe { CStr::from_ptr(text) };
        format!("status {} ({})", self.status, text.to_string_lossy())
    }
}

pub(super) fn check(call: &'static str, result: u32) -> Result<(), LtError> {
    match result {
        status::SUCCESS => Ok(()),
        status => Err(LtError { call, status }),
    }
}
