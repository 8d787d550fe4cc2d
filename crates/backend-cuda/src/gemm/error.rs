//! Why a matrix product could not be computed.

use vecmill_memory::SourceError;

use super::Format;
use crate::driver;
use crate::driver::cublaslt::MatmulError;
use crate::libraries::Missing;

/// A matrix product could not be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GemmError {
    /// There is no cuBLASLt.
    #[error(transparent)]
    NoLibrary(#[from] Missing),
    /// The library or the driver failed.
    #[error("{call} failed with {reason}")]
    Failed {
        /// The function that failed.
        call: &'static str,
        /// What it said.
        reason: String,
    },
    /// The library can't compute products of this kind on this device.
    #[error(
        "cuBLASLt has no algorithm for [{rows}, {inputs}] · [{outputs}, {inputs}]ᵀ in {format:?} \
         on this device"
    )]
    NoAlgorithm {
        /// The format of the matrices.
        format: Format,
        /// Rows of input and output.
        rows: usize,
        /// Columns of the input.
        inputs: usize,
        /// Columns of the output.
        outputs: usize,
    },
    /// An operand has fewer bytes than the product needs.
    #[error("the {operand} of a matrix product has {found} bytes and needs {needed}")]
    TooShort {
        /// Which one.
        operand: &'static str,
        /// How many it needs.
        needed: usize,
        /// How many it has.
        found: usize,
    },
    /// An operand's address is not a multiple of what it must be.
    #[error(
        "the {operand} of a matrix product starts at {address:#x}, which is no multiple of \
         {alignment}"
    )]
    Misaligned {
        /// Which one.
        operand: &'static str,
        /// Where it starts.
        address: u64,
        /// What it must be a multiple of.
        alignment: u32,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] SourceError),
}

impl From<MatmulError> for GemmError {
    fn from(error: MatmulError) -> Self {
        match error {
            MatmulError::Driver(error) => {
                Self::Failed { call: error.call, reason: driver::error::describe(error.code) }
            }
            MatmulError::Library(error) => {
                Self::Failed { call: error.call, reason: error.reason() }
            }
        }
    }
}
