//! Matrix multiplication with weights packed once, at loading.
//!
//! The method is that of Goto & van de Geijn ("Anatomy of High-Performance Matrix Multiplication",
//! ACM TOMS 34(3), 2008): a register tile of up to 6 rows × 2 vectors, fed from panels in which the
//! weights lie in the order of their use. A weight never changes, so its panels are made at loading
//! instead of at every call; rows are read where they are, and bias and activation are applied
//! while a tile is still in cache.
//! Measured against a library in `docs/decisions/0002-own-matmul.md`.
//!
//! Each output element is one chain of fused multiply-adds over the inputs in order: its value does
//! not depend on how many rows the batch has, nor on the number of threads.

use pulp::{Arch, Simd, WithSimd};
use vecmill_encoder::{BackendError, RegionWriter, Stored};
use vecmill_memory::HostBlock;
use vecmill_model::Activation;

use crate::math::activate;

/// Rows of a register tile: 6 × 2 accumulators, 2 weights and 1 broadcast fill 15 of the 16 vector
/// registers that AVX2 has.
const TILE_ROWS: usize = 6;

/// Vectors across a register tile.
const TILE_VECTORS: usize = 2;

/// Rows of one task: few enough that threads finish close together and that the rows stay in cache
/// while every panel passes by, enough that the panels' way from memory is paid for.
pub(crate) const ROW_CHUNK: usize = 24;

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

/// Columns of a matrix in whole panels.
pub(crate) fn packed_columns(arch: Arch, outputs: usize) -> usize {
    outputs.next_multiple_of(panel_width(arch))
}

/// A weight matrix in panels, with its bias.
#[derive(Debug)]
pub(crate) struct Panels {
    values: Stored<HostBlock>, // aligned, so that no vector crosses a cache line
    bias: Stored<HostBlock>,
    inputs: usize,
    outputs: usize,
    width: usize,
}

impl Panels {
    /// Packs rows of `inputs` numbers, one row per output.
    pub(crate) fn pack<'a>(
        arch: Arch,
        (inputs, outputs): (usize, usize),
        rows: impl Iterator<Item = &'a [f32]>,
        bias: impl Iterator<Item = f32>,
        into: &mut RegionWriter<HostBlock>,
    ) -> Result<Self, BackendError> {
        let (columns, width) = (packed_columns(arch, outputs), panel_width(arch));
        let values = into.floats(columns * inputs, |packed| {
            for (output, row) in rows.enumerate() {
                let panel = &mut packed[output / width * width * inputs..][..width * inputs];
                for (slot, &value) in panel[output % width..].iter_mut().step_by(width).zip(row) {
                    *slot = value;
                }
            }
        })?;
        let bias = into.floats(columns, |places| {
            places.iter_mut().zip(bias).for_each(|(place, value)| *place = value);
        })?;
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
        self.values.floats()
    }
}

/// `output = activation(rows · weights + bias)` for some rows and some columns.
///
/// `output` has a slice for each row, which starts at column `first_column`, a multiple of the
/// panels' width, and says by its length how many are computed.
pub(crate) fn multiply(
    arch: Arch,
    rows: &[&[f32]],
    weights: &Panels,
    activation: Activation,
    first_column: usize,
    output: &mut [&mut [f32]],
) {
    let panel = weights.width * weights.inputs;
    let columns = output.first().map_or(0, |row| row.len());
    let panels = &weights.values()[first_column * weights.inputs..];
    arch.dispatch(Multiply {
        rows,
        panels: &panels[..columns.div_ceil(weights.width) * panel],
        bias: &weights.bias.floats()[first_column..],
        output,
        activation,
    });
}

/// Rows of each block but the last, out of `count`: blocks of nearly equal height, because one of a
/// single row takes almost as long as one of four.
fn block_rows(count: usize) -> usize {
    count.div_ceil(count.div_ceil(TILE_ROWS).max(1)).max(1)
}

/// Rows times panels.
pub(crate) struct Multiply<'a, 'r, 'o> {
    /// All of one length, the number of inputs.
    pub(crate) rows: &'a [&'r [f32]],
    /// Whole panels: inputs × panel width each.
    pub(crate) panels: &'a [f32],
    /// One number per column, or none at all.
    pub(crate) bias: &'a [f32],
    /// A slice for each row.
    pub(crate) output: &'a mut [&'o mut [f32]],
    /// Applied last.
    pub(crate) activation: Activation,
}

impl WithSimd for Multiply<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, activation, .. } = self;
        let inputs = rows.first().map_or(0, |row| row.len());
        let width = TILE_VECTORS * S::F32_LANES;
        let block_rows = block_rows(rows.len());
        for (index, panel) in self.panels.chunks_exact((inputs * width).max(1)).enumerate() {
            let columns = index * width..(index + 1) * width;
            let bias = self.bias.get(columns.clone()).unwrap_or(&[]);
            let (vectors, _) = S::as_simd_f32s(panel);
            let (weights, _) = vectors.as_chunks::<TILE_VECTORS>();
            let block = Block { simd, weights, bias, activation, columns };
            for (rows, output) in rows.chunks(block_rows).zip(self.output.chunks_mut(block_rows)) {
                match *rows {
                    [a] => block.finish(block.tile1(a), output),
                    [a, b] => block.finish(block.tile2(a, b), output),
                    [a, b, c] => block.finish(block.tile3(a, b, c), output),
                    [a, b, c, d] => block.finish(block.tile4(a, b, c, d), output),
                    [a, b, c, d, e] => block.finish(block.tile5(a, b, c, d, e), output),
                    [a, b, c, d, e, f] => block.finish(block.tile6(a, b, c, d, e, f), output),
                    _ => {} // blocks have 1 to 6 rows
                }
            }
        }
    }
}

/// One panel of weights, for blocks of rows.
struct Block<'a, S: Simd> {
    simd: S,
    weights: &'a [[S::f32s; TILE_VECTORS]],
    bias: &'a [f32],
    activation: Activation,
    columns: std::ops::Range<usize>,
}

/// A tile of as many rows as there are names. Zipped iterators, unlike indices, leave no bounds to
/// check in the loop.
macro_rules! tile {
    ($name:ident, $count:literal, $first:ident $(, $row:ident)*) => {
        #[inline(always)]
        fn $name(&self, $first: &[f32] $(, $row: &[f32])*) -> [[S::f32s; TILE_VECTORS]; $count] {
            let simd = self.simd;
            let mut tile = [[simd.splat_f32s(0.0); TILE_VECTORS]; $count];
            let steps = self.weights.iter().zip($first)$(.zip($row))*;
            for tile!(@pattern (weights, $first) $(, $row)*) in steps {
                for (sums, value) in tile.iter_mut().zip([$first $(, $row)*]) {
                    let value = simd.splat_f32s(*value);
                    for (sum, &weight) in sums.iter_mut().zip(weights) {
                        *sum = simd.mul_add_f32s(value, weight, *sum);
                    }
                }
            }
            tile
        }
    };
    (@pattern $inner:tt) => { $inner };
    (@pattern $inner:tt, $row:ident $(, $rest:ident)*) => {
        tile!(@pattern ($inner, $row) $(, $rest)*)
    };
}

impl<S: Simd> Block<'_, S> {
    tile!(tile1, 1, a);
    tile!(tile2, 2, a, b);
    tile!(tile3, 3, a, b, c);
    tile!(tile4, 4, a, b, c, d);
    tile!(tile5, 5, a, b, c, d, e);
    tile!(tile6, 6, a, b, c, d, e, f);

    #[inline(always)]
    fn finish<const ROWS: usize>(
        &self,
        tile: [[S::f32s; TILE_VECTORS]; ROWS],
        output: &mut [&mut [f32]],
    ) {
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
