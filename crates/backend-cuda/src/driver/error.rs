//! What the driver returns: [`DriverError`], and [`LaunchError`] for kernels; the pool is told as
//! `SourceError`.
//!
//! The choice behind it: the driver has a hundred error codes and a caller four things to do about
//! them, so each code is sorted into a [`Cause`] here, once. Codes are numbers and not an `enum`,
//! because a driver newer than this program returns some that it has never heard of.

use std::ffi::{CStr, c_char};

use vecmill_memory::{Cause, SourceError};

use super::api::API;
use crate::error::Unavailable;

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
        let reason = describe(self.code);
        SourceError::new(device, self.call, bytes, self.cause(), reason)
    }
}

impl From<DriverError> for Unavailable {
    fn from(error: DriverError) -> Self {
        Self::Failed { call: error.call, reason: describe(error.code) }
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

/// A kernel was not launched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("{} failed: {}", .0.call, describe(.0.code))]
    Driver(DriverError),
    #[error("{kernel} takes parameters of {expected:?} bytes and was given {found:?}")]
    Arguments { kernel: String, expected: Vec<usize>, found: Vec<usize> },
}

impl From<DriverError> for LaunchError {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

pub(super) fn check(call: &'static str, result: u32) -> Result<(), DriverError> {
    match result {
        code::SUCCESS => Ok(()),
        code => Err(DriverError { call, code }),
    }
}

/// An error's name and meaning in the driver's words, for example `CUDA_ERROR_OUT_OF_MEMORY (out of
/// memory)`.
pub(crate) fn describe(code: u32) -> String {
    let Some(api) = API.get() else {
        return format!("error {code}");
    };
    match (text(api.error_name, code), text(api.error_text, code)) {
        (Some(name), Some(meaning)) => format!("{name} ({meaning})"),
        _ => format!("error {code}, which the driver does not explain"),
    }
}

type Explain = unsafe extern "system" fn(u32, *mut *const c_char) -> u32;

fn text(explain: Explain, code: u32) -> Option<String> {
    let mut text = std::ptr::null();
    // SAFETY: the function looks any number up and writes one pointer, to which `text` has room.
    let result = unsafe { explain(code, &raw mut text) };
    if result != code::SUCCESS || text.is_null() {
        return None;
    }
    // SAFETY: on success it points to a string of the driver's, ended by a zero and never freed.
    let text = unsafe { CStr::from_ptr(text) };
    Some(text.to_string_lossy().into_owned())
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
}
