//! A transformer's whole feed-forward block in one launch, by `feed_forward_sm90.cu`: see that file's
//! head, whose names these are.
//!
//! - [`FeedForward`] names the operands; [`FeedForwardKernel`] is a configuration.
//! - [`HopperGemm::fuses`] is the rule of when it pays.
//!
//! The choice behind it: what is between the layers, four times as wide as the rest, is neither
//! written nor read. That takes all registers of a multiprocessor for 128 rows and all weights to
//! pass for them, so it pays only where every multiprocessor is busy all the time.

use std::ffi::CStr;

use vecmill_model::Activation;

use super::variant::{OUTPUT_BOX, activation_define};
use super::{Configuration, HopperGemm};
use crate::driver::DriverError;
use crate::driver::{Argument, DeviceSpan};
use crate::kernels::{KernelError, NormOperands, number};
use crate::stream::CudaStream;

const TILE_ROWS: u32 = 128;
/// Columns of all boxes, and rows of those of input and first weight.
const BOX: u32 = 64;
/// Rows of the second weight's boxes, columns of the output.
const PART: u32 = 128;
const BOX_ROW_BYTES: u32 = 128;
const WARPS: u32 = 8;
const MOST_SHARED_BYTES: u32 = 227 * 1024;

/// One block and where its operands are; matrices are row-major, without gaps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FeedForward<'a> {
    pub(crate) rows: usize,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    /// `[rows, hidden]`
    pub(crate) input: DeviceSpan<'a>,
    /// `[intermediate, hidden]`, and a bias in `f32`.
    pub(crate) up: (DeviceSpan<'a>, DeviceSpan<'a>),
    pub(crate) activation: Activation,
    /// `[hidden, intermediate]`, and a bias in `f32`.
    pub(crate) down: (DeviceSpan<'a>, DeviceSpan<'a>),
    pub(crate) norm: NormOperands<'a>,
    /// `[rows, hidden]`
    pub(crate) output: DeviceSpan<'a>,
    /// Whether the last rows are computed first: results don't depend on it.
    pub(crate) backwards: bool,
}

/// One configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FeedForwardKernel {
    hidden: u32,
    activation: Activation,
}

impl FeedForwardKernel {
    pub(super) const NAME: &'static CStr = c"vecmill_feed_forward_sm90";
    pub(super) const THREADS: u32 = WARPS * 32;

    /// `None` for rows that registers don't hold, or not in whole parts.
    pub(super) fn new(hidden: usize, intermediate: usize, activation: Activation) -> Option<Self> {
        let whole = intermediate > 0 && intermediate.is_multiple_of(BOX as usize);
        let hidden = match hidden {
            256 => 256,
            384 => 384,
            _ => return None,
        };
        whole.then_some(Self { hidden, activation })
    }

    /// `SHARED_BYTES` of `feed_forward_sm90_tiles.cuh`.
    pub(crate) fn shared_bytes(self) -> u32 {
        let (rows, columns) = OUTPUT_BOX;
        let slots = WARPS * rows * columns * 2;
        let (rest, swizzle_atom) = (TILE_ROWS * self.hidden * 2 + slots, 8 * BOX_ROW_BYTES);
        let stage = PART * BOX_ROW_BYTES;
        let stages = (MOST_SHARED_BYTES - rest - 2 * swizzle_atom) / stage;
        rest + stages * stage + 8 * (2 * stages + 4) + swizzle_atom
    }

    /// The macros.
    pub(crate) fn defines(self) -> Vec<String> {
        vec![format!("HIDDEN={}", self.hidden), activation_define(self.activation)]
    }
}

impl HopperGemm {
    /// Whether [`feed_forward`](Self::feed_forward) can compute a block of this size, and probably
    /// faster than two products: as it was on an H200.
    pub(crate) fn fuses(
        rows: usize,
        hidden: usize,
        intermediate: usize,
        multiprocessors: usize,
    ) -> bool {
        let kernel = FeedForwardKernel::new(hidden, intermediate, Activation::Identity);
        kernel.is_some() && fills(rows, multiprocessors)
    }

    /// Whether hardly a multiprocessor is without a tile of a fused block while others have one.
    pub(crate) fn fills(rows: usize, multiprocessors: usize) -> bool {
        fills(rows, multiprocessors)
    }

    /// Compiles what blocks of up to twice as many rows may need, if any of them may be fused.
    pub(crate) fn prepare_to_fuse(
        &self,
        rows: usize,
        hidden: usize,
        intermediate: usize,
        activation: Activation,
    ) -> Result<(), KernelError> {
        let kernel = FeedForwardKernel::new(hidden, intermediate, activation);
        let fills = 2 * tiles(rows) >= self.device.info().multiprocessors as usize;
        match kernel.filter(|_| fills) {
            Some(kernel) => self.loaded(Configuration::FeedForward(kernel)).map(drop),
            None => Ok(()),
        }
    }

    /// `output = norm(down(activation(up(input))) + input)`, on `stream` behind the work so far.
    pub(crate) fn feed_forward(
        &self,
        stream: &CudaStream,
        block: &FeedForward<'_>,
    ) -> Result<(), KernelError> {
        let &FeedForward { rows, hidden, intermediate, activation, norm, .. } = block;
        if rows == 0 {
            return Ok(());
        }
        let unfit = || DriverError::invalid("a fused feed-forward block");
        let kernel = FeedForwardKernel::new(hidden, intermediate, activation).ok_or_else(unfit)?;
        let map = |matrix, size, box_size| self.map(matrix, self.element, size, box_size);
        let input = map(block.input, (rows, hidden), (BOX, BOX))?;
        let up = map(block.up.0, (intermediate, hidden), (BOX, BOX))?;
        let down = map(block.down.0, (hidden, intermediate), (PART, BOX))?;
        let output = map(block.output, (rows, hidden), OUTPUT_BOX)?;
        let arguments = [
            Argument::TensorMap(&input),
            Argument::TensorMap(&up),
            Argument::TensorMap(&down),
            Argument::TensorMap(&output),
            Argument::Span(block.up.1),
            Argument::Span(block.down.1),
            Argument::Span(norm.gain),
            Argument::Span(norm.bias),
            Argument::F32(norm.epsilon),
            number(rows),
            number(intermediate),
            number(block.backwards.into()),
        ];
        self.launch(stream, Configuration::FeedForward(kernel), tiles(rows), &arguments)
    }
}

fn tiles(rows: usize) -> usize {
    rows.div_ceil(TILE_ROWS as usize)
}

/// Whether hardly a multiprocessor is without a tile while others have one.
fn fills(rows: usize, multiprocessors: usize) -> bool {
    let places = tiles(rows).next_multiple_of(multiprocessors.max(1));
    rows > 0 && tiles(rows) * 20 >= places * 19
}

/// All that the rules above can lead to.
#[cfg(test)]
pub(crate) fn used() -> Vec<FeedForwardKernel> {
    let kernel = |hidden, activation| FeedForwardKernel::new(hidden, 64, activation);
    [256, 384]
        .into_iter()
        .flat_map(|hidden| super::variant::ACTIVATIONS.map(|activation| kernel(hidden, activation)))
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_fused_where_their_tiles_fill_whole_waves() {
        let fused = |rows| fills(rows, 132);
        assert!(fused(16_384) && fused(16_896) && !fused(16_897) && !fused(16_000));
        assert!(fused(32_768) && !fused(36_000) && fused(131_072));
        assert!(!fused(0) && !fused(512));
        assert!((1 << 19..1 << 20).all(fused), "then remainders don't count");
        assert!(fills(2048, 16));
    }

    #[test]
    fn sizes_that_registers_do_not_hold_are_refused() {
        let fits = |hidden, wide| FeedForwardKernel::new(hidden, wide, Activation::Relu).is_some();
        assert!(fits(384, 1536) && fits(256, 64));
        assert!(!fits(768, 3072) && !fits(384, 1000) && !fits(384, 0));
    }
}
