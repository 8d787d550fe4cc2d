//! Faults on purpose, for tests of what follows from them.

use crate::compiler::{Compiler, FAULT};
use crate::driver::Launch;
use crate::gemm::Format;
use crate::gpu::Gpu;
use crate::kernels::KernelError;

/// Has the device run a kernel that stops with a fault, as one with an error in it would: whatever
/// this process gives the device from now on fails, in parts of it too.
///
/// # Errors
/// A line that says why there was no fault.
pub fn provoke_fault(device: &Gpu) -> Result<(), String> {
    let compiler = Compiler::new(device, None).map_err(|error| error.to_string())?;
    let stream = device.stream().map_err(|error| error.to_string())?;
    let fault = || -> Result<(), KernelError> {
        let kernel = compiler.load(FAULT, Format::F32, &[])?.kernel(c"fault")?;
        let once = Launch { blocks: 1, threads: 1, shared_bytes: 0, early: false };
        Ok(kernel.launch(stream.raw(), once, &[])?)
    };
    fault().map_err(|error| error.to_string())
}
