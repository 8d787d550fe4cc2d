//! Sums and gates, element by element: `elements.cu`.

use vecmill_model::Activation;

use super::{KernelError, Kernels, activation_name, launch, number, optional, output_defines};
use crate::compiler::ELEMENTS;
use crate::driver::{Argument, DeviceSpan};
use crate::stream::CudaStream;

/// Where gated rows go: at least one of both.
#[derive(Clone, Copy)]
pub(crate) struct Gated<'a> {
    pub(crate) wide: Option<DeviceSpan<'a>>,
    /// In e4m3: only with kernels that were made for that.
    pub(crate) narrow: Option<DeviceSpan<'a>>,
}

/// Threads of a block.
const THREADS: usize = 256;

impl Kernels {
    /// The sum of two matrices; `[first, second, output]`.
    pub(crate) fn add(
        &self,
        stream: &CudaStream,
        operands: [DeviceSpan<'_>; 3],
        size: (usize, usize),
    ) -> Result<(), KernelError> {
        let operands = operands.map(Argument::Span);
        self.elements("vecmill_add", stream, size, &operands, &[])
    }

    /// `activation(gate) · up` of columns that are such halves, `group` gates and their `group` ups by turns;
    /// of the output's size.
    pub(crate) fn gate(
        &self,
        stream: &CudaStream,
        (activation, group): (Activation, usize),
        halves: DeviceSpan<'_>,
        output: Gated<'_>,
        size: (usize, usize),
    ) -> Result<(), KernelError> {
        let name = format!("vecmill_gate_{}", activation_name(activation));
        let operands = [Argument::Span(halves), optional(output.wide), optional(output.narrow)];
        self.elements(&name, stream, size, &operands, &[number(group)])
    }

    fn elements(
        &self,
        name: &str,
        stream: &CudaStream,
        (rows, columns): (usize, usize),
        operands: &[Argument<'_>],
        more: &[Argument<'_>],
    ) -> Result<(), KernelError> {
        let module = self.rare(ELEMENTS, &output_defines(self.fp8))?;
        let arguments = [operands, &[number(rows), number(columns)], more].concat();
        let blocks = (rows * columns).div_ceil(THREADS * self.vector());
        let blocks = blocks.min(16 * self.multiprocessors);
        launch(&self.kernel(&module, name)?, stream, blocks, THREADS as u32, 0, &arguments)
    }
}
