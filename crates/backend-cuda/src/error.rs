//! What goes wrong, as values: [`Unavailable`] before a device is open, [`LaunchError`] for kernels,
//! `SourceError` for all else.
//!
//! The choice behind it: the driver has a hundred error codes and a caller four things to do about
//! them, so each code is sorted into a [`Cause`] here, once. Codes are numbers and not an `enum`,
//! because a driver newer than this program returns some that it has never heard of.

use vecmill_memory::{Cause, SourceError};

use crate::driver;

/// Why no GPU can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// This machine has no NVIDIA driver, or the loader does not find it.
    #[error(
        "no NVIDIA driver was found on this machine: looked for {}; if it has a GPU, install the \
         driver, or let the container have it (`docker run --gpus all`)",
        shortened(looked_for)
    )]
    NoLibrary {
        /// The file names that were tried, in order.
        looked_for: Vec<String>,
    },
    /// There is a driver, of a version that lacks what vecmill needs.
    #[error(
        "the NVIDIA driver is too old: {reason}, and vecmill needs one that supports CUDA {}.{}; \
         update the driver", needed.0, needed.1
    )]
    TooOld {
        /// The CUDA version that vecmill needs.
        needed: (u32, u32),
        /// What showed it, for example `it supports CUDA 11.4`.
        reason: String,
    },
    /// The driver is there and does not work.
    #[error("the NVIDIA driver does not work: {call} failed with {reason}")]
    Failed {
        /// The driver's function that failed.
        call: &'static str,
        /// What the driver said.
        reason: String,
    },
    /// A part of a GPU was asked for that is larger than what other parts leave.
    #[error(
        "{wanted} multiprocessors are not free there: other parts leave {left}, in groups of {each}"
    )]
    NoPart {
        /// Multiprocessors that were asked for.
        wanted: u32,
        /// Those that no part has.
        left: u32,
        /// Parts are multiples of so many.
        each: u32,
    },
    /// There is no GPU of that number.
    #[error("there is no GPU {ordinal}: the driver shows {count}, counted from 0")]
    NoDevice {
        /// The number that was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
}

/// A kernel was not launched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("{} failed: {}", .0.call, driver::describe(.0.code))]
    Driver(DriverError),
    #[error("{kernel} takes parameters of {expected:?} bytes and was given {found:?}")]
    Arguments { kernel: String, expected: Vec<usize>, found: Vec<usize> },
}

impl From<DriverError> for LaunchError {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

/// The first of `names`, which is what the file is usually called, and how many others.
fn shortened(names: &[String]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [only] => only.clone(),
        [first, others @ ..] => format!("{first} and {} other names", others.len()),
    }
}

/// A function of the driver returned something other than success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DriverError {
    /// The function's name, for example `cuMemCreate`.
    pub(crate) call: &'static str,
    /// A `CUresult`.
    pub(crate) code: u32,
}

impl DriverError {
    /// An argument that was found wrong before the driver was asked.
    pub(crate) const fn invalid(call: &'static str) -> Self {
        Self { call, code: code::INVALID_VALUE }
    }

    /// What follows from it.
    pub(crate) fn cause(self) -> Cause {
        match self.code {
            code::OUT_OF_MEMORY => Cause::Exhausted,
            code::NOT_SUPPORTED => Cause::Unsupported,
            code if code::LOST.contains(&code) => Cause::Lost,
            _ => Cause::Failed,
        }
    }

    /// The error as the pool sees it; `device` is its name, `bytes` what the call was about.
    pub(crate) fn of(self, device: &str, bytes: usize) -> SourceError {
        let reason = driver::describe(self.code);
        SourceError::new(device, self.call, bytes, self.cause(), reason)
    }
}

impl From<DriverError> for Unavailable {
    fn from(error: DriverError) -> Self {
        Self::Failed { call: error.call, reason: driver::describe(error.code) }
    }
}

/// Values of `CUresult` that are told apart.
pub(crate) mod code {
    pub(crate) const SUCCESS: u32 = 0;
    pub(crate) const INVALID_VALUE: u32 = 1;
    pub(crate) const OUT_OF_MEMORY: u32 = 2;
    pub(crate) const NOT_READY: u32 = 600;
    pub(crate) const NOT_SUPPORTED: u32 = 801;

    /// After these no call on the context succeeds again. For most the documentation says that
    /// the process must be restarted; with the others the device or its context is gone.
    pub(crate) const LOST: [u32; 22] = [
        4,   // DEINITIALIZED
        46,  // DEVICE_UNAVAILABLE
        100, // NO_DEVICE: there was one when the context was made
        201, // INVALID_CONTEXT
        214, // ECC_UNCORRECTABLE
        220, // NVLINK_UNCORRECTABLE
        226, // CONTAINED: a memory error that hit this process only
        700, // ILLEGAL_ADDRESS
        702, // LAUNCH_TIMEOUT
        709, // CONTEXT_IS_DESTROYED
        710, // ASSERT
        714, // HARDWARE_STACK_ERROR
        715, // ILLEGAL_INSTRUCTION
        716, // MISALIGNED_ADDRESS
        717, // INVALID_ADDRESS_SPACE
        718, // INVALID_PC
        719, // LAUNCH_FAILED
        721, // TENSOR_MEMORY_LEAK
        805, // MPS_CONNECTION_FAILED
        806, // MPS_RPC_FAILURE
        810, // MPS_CLIENT_TERMINATED
        911, // EXTERNAL_DEVICE
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(code: u32) -> Cause {
        DriverError { call: "cuMemCreate", code }.cause()
    }

    #[test]
    fn a_code_says_what_to_do() {
        assert_eq!(cause(2), Cause::Exhausted);
        assert_eq!(cause(801), Cause::Unsupported);
        assert_eq!(cause(700), Cause::Lost);
        assert_eq!(cause(1), Cause::Failed);
        assert_eq!(cause(4_000_000_000), Cause::Failed, "of a driver newer than this program");
    }

    #[test]
    fn messages_are_plain() {
        let looked_for = vec!["libcuda.so".to_owned(), "libcuda.so.1".to_owned()];
        let none = Unavailable::NoLibrary { looked_for }.to_string();
        assert!(none.contains("looked for libcuda.so and 1 other names; "), "{none}");
        let reason = "it supports CUDA 11.4".to_owned();
        assert_eq!(
            Unavailable::TooOld { needed: (12, 0), reason }.to_string(),
            "the NVIDIA driver is too old: it supports CUDA 11.4, and vecmill needs one that \
             supports CUDA 12.0; update the driver"
        );
    }
}
