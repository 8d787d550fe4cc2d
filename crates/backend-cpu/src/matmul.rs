//! Matrix multiplication with weights packed once, at loading.
//!
//! The method is that of Goto & van de Geijn ("Anatomy of High-Performance Matrix Multiplication",
//! ACM TOMS 34(3), 2008): a register tile of up to 6 rows × 2 vectors, fed from panels in which the
//! numbers lie in the order of their use. A weight never changes, so its panels are made at loading
//! instead of at every call, and bias and activation are applied while a tile is still in cache.
//! Measured against libraries in `docs/decisions/0002-own-matmul.md`.
//!
//! Each output element is one chain of fused multiply-adds over the inputs in order: its value does
//! not depend on how many rows the batch has, nor on the number of threads.

use pulp::{Arch, Simd, WithSimd};
use vecmill_encoder::Activation;
use vecmill_memory::{HostBlock, HostSource, Source, SourceError};

use crate::math::activate;

/// Rows of a register tile: 6 × 2 accumulators, 2 weights and 1 broadcast fill 15 of the 16 vector
/// registers that AVX2 has.
const TILE_ROWS: usize = 6;

/// Vectors across a register tile.
const TILE_VECTORS: usize = 2;

/// Rows that are packed together: their panel stays in the second-level cache while every panel of
/// the weights passes by.
pub(crate) const ROW_CHUNK: usize = 48;

/// Columns across a register tile, on this processor.
pub(crate) fn panel_width(arch: Arch) -> usize {
    struct Width;
    impl WithSimd for Width {
        type Output = usize;
        fn with_simd<S: Simd>(self, _: S) -> usize {
            TILE_VECTORS * S::F32_LANES
        }
    }
    arch.dispatch(Width)
}

/// A weight matrix in panels, with its bias.
#[derive(Debug)]
pub(crate) struct Panels {
    values: HostBlock, // page-aligned, so that no vector crosses a cache line
    bias: Vec<f32>,
    inputs: usize,
    outputs: usize,
    width: usize,
}

impl Panels {
    /// Packs rows of `inputs` numbers, one row per output.
    pub(crate) fn pack<'a>(
        arch: Arch,
        inputs: usize,
        rows: impl ExactSizeIterator<Item = &'a [f32]>,
        mut bias: Vec<f32>,
    ) -> Result<Self, SourceError> {
        let (outputs, width) = (rows.len(), panel_width(arch));
        let columns = outputs.next_multiple_of(width);
        bias.resize(columns, 0.0);
        let mut values = HostSource.allocate((columns * inputs).max(1) * size_of::<f32>())?;
        let packed: &mut [f32] = bytemuck::cast_slice_mut(values.bytes_mut());
        for (output, row) in rows.enumerate() {
            let panel = &mut packed[output / width * width * inputs..][..width * inputs];
            for (slot, &value) in panel[output % width..].iter_mut().step_by(width).zip(row) {
                *slot = value;
            }
        }
        Ok(Self { values, bias, inputs, outputs, width })
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns that may be computed on their own.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    fn values(&self) -> &[f32] {
        bytemuck::cast_slice(self.values.bytes())
    }
}

/// Floats of scratch that [`multiply`] needs for a chunk of rows.
pub(crate) fn scratch_floats(rows: usize, inputs: usize) -> usize {
    rows.min(ROW_CHUNK) * inputs
}

/// `output = activation(rows · weights + bias)` for some rows and some columns.
///
/// `rows` holds whole input rows; `output` has a slice for each, which starts at column
/// `first_column`, a multiple of the panels' width, and says by its length how many are computed.
pub(crate) fn multiply(
    arch: Arch,
    rows: &[f32],
    weights: &Panels,
    activation: Activation,
    first_column: usize,
    output: &mut [&mut [f32]],
    scratch: &mut [f32],
) {
    let panel = weights.width * weights.inputs;
    let columns = output.first().map_or(0, |row| row.len());
    let panels = &weights.values()[first_column * weights.inputs..];
    let packed = &mut scratch[..rows.len()];
    pack_rows(rows.chunks_exact(weights.inputs), packed);
    arch.dispatch(Multiply {
        rows: packed,
        inputs: weights.inputs,
        panels: &panels[..columns.div_ceil(weights.width) * panel],
        bias: &weights.bias[first_column..],
        output,
        activation,
    });
}

/// Rows of each block but the last, out of `count`: blocks of nearly equal height, because one of a
/// single row takes almost as long as one of four.
fn block_rows(count: usize) -> usize {
    count.div_ceil(count.div_ceil(TILE_ROWS).max(1)).max(1)
}

/// Packs rows of equal length in blocks of at most [`TILE_ROWS`], so that the numbers of a block that meet
/// the same weight lie beside each other.
pub(crate) fn pack_rows<'a>(rows: impl ExactSizeIterator<Item = &'a [f32]>, packed: &mut [f32]) {
    let count = rows.len();
    let inputs = packed.len().checked_div(count).unwrap_or(0);
    let mut rows = rows;
    for packed in packed.chunks_mut((block_rows(count) * inputs).max(1)) {
        let mut block = [[].as_slice(); TILE_ROWS];
        for (slot, row) in block.iter_mut().zip(rows.by_ref().take(packed.len() / inputs)) {
            *slot = row;
        }
        match packed.len() / inputs {
            1 => packed.copy_from_slice(block[0]),
            2 => interleave::<2>(&block, packed),
            3 => interleave::<3>(&block, packed),
            4 => interleave::<4>(&block, packed),
            5 => interleave::<5>(&block, packed),
            _ => interleave::<TILE_ROWS>(&block, packed),
        }
    }
}

fn interleave<const ROWS: usize>(rows: &[&[f32]; TILE_ROWS], packed: &mut [f32]) {
    let (packed, _) = packed.as_chunks_mut::<ROWS>();
    let mut inputs: [_; ROWS] = std::array::from_fn(|row| rows[row].iter());
    for slots in packed {
        for (slot, input) in slots.iter_mut().zip(&mut inputs) {
            *slot = input.next().copied().unwrap_or_default();
        }
    }
}

/// Packed rows times panels.
pub(crate) struct Multiply<'a, 'o> {
    /// As [`pack_rows`] leaves them.
    pub(crate) rows: &'a [f32],
    /// Length of a row.
    pub(crate) inputs: usize,
    /// Whole panels: `inputs` × panel width each.
    pub(crate) panels: &'a [f32],
    /// One number per column, or none at all.
    pub(crate) bias: &'a [f32],
    /// A slice for each row.
    pub(crate) output: &'a mut [&'o mut [f32]],
    /// Applied last.
    pub(crate) activation: Activation,
}

impl WithSimd for Multiply<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = TILE_VECTORS * S::F32_LANES;
        let panel_floats = (self.inputs * width).max(1);
        let block_rows = block_rows(self.output.len());
        for (index, panel) in self.panels.chunks_exact(panel_floats).enumerate() {
            let columns = index * width..(index + 1) * width;
            let bias = self.bias.get(columns.clone()).unwrap_or(&[]);
            let blocks = self.rows.chunks(block_rows * self.inputs);
            for (rows, output) in blocks.zip(self.output.chunks_mut(block_rows)) {
                let activation = self.activation;
                let block = Block { simd, rows, panel, bias, activation, columns: columns.clone() };
                match output.len() {
                    1 => block.run::<1>(output),
                    2 => block.run::<2>(output),
                    3 => block.run::<3>(output),
                    4 => block.run::<4>(output),
                    5 => block.run::<5>(output),
                    _ => block.run::<TILE_ROWS>(output),
                }
            }
        }
    }
}

/// One block of rows against one panel.
struct Block<'a, S> {
    simd: S,
    rows: &'a [f32],
    panel: &'a [f32],
    bias: &'a [f32],
    activation: Activation,
    columns: std::ops::Range<usize>,
}

impl<S: Simd> Block<'_, S> {
    #[inline(always)]
    fn run<const ROWS: usize>(&self, output: &mut [&mut [f32]]) {
        let tile = self.accumulate::<ROWS>();
        let mut spill = [0.0_f32; 64]; // wider than any processor's tile
        for (sums, output) in tile.iter().zip(output) {
            if let Some(target) = output.get_mut(self.columns.clone()) {
                self.store(sums, target);
            } else {
                let target = &mut spill[..self.columns.len()];
                self.store(sums, target);
                let rest = output.get_mut(self.columns.start..).unwrap_or_default();
                let valid = rest.len();
                rest.copy_from_slice(&target[..valid]);
            }
        }
    }

    #[inline(always)]
    fn accumulate<const ROWS: usize>(&self) -> [[S::f32s; TILE_VECTORS]; ROWS] {
        let simd = self.simd;
        let mut tile = [[simd.splat_f32s(0.0); TILE_VECTORS]; ROWS];
        let (vectors, _) = S::as_simd_f32s(self.panel);
        let (weights, _) = vectors.as_chunks::<TILE_VECTORS>();
        let (values, _) = self.rows.as_chunks::<ROWS>();
        for (values, weights) in values.iter().zip(weights) {
            for (sums, &value) in tile.iter_mut().zip(values) {
                let value = simd.splat_f32s(value);
                for (sum, &weight) in sums.iter_mut().zip(weights) {
                    *sum = simd.mul_add_f32s(value, weight, *sum);
                }
            }
        }
        tile
    }

    #[inline(always)]
    fn store(&self, sums: &[S::f32s; TILE_VECTORS], target: &mut [f32]) {
        let simd = self.simd;
        let (vectors, _) = S::as_mut_simd_f32s(target);
        vectors.copy_from_slice(sums);
        let (bias, _) = S::as_simd_f32s(self.bias);
        for (vector, &bias) in vectors.iter_mut().zip(bias) {
            *vector = simd.add_f32s(*vector, bias);
        }
        activate(self.activation, target);
    }
}
