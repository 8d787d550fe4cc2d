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

/// A layer's sizes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Of a row.
    pub(crate) inputs: usize,
    /// Rows of the weight.
    pub(crate) outputs: usize,
    /// Whether the first half of the outputs is a gate for the second.
    pub(crate) gated: bool,
}

/// Columns of a matrix in whole panels; of a gate and what it is for, each by itself.
pub(crate) fn packed_columns(arch: Arch, outputs: usize, gated: bool) -> usize {
    let parts = if gated { 2 } else { 1 };
    parts * (outputs / parts).next_multiple_of(panel_width(arch))
}

/// A weight matrix in panels, with its bias. Panels of a gate and of what it is for take turns.
#[derive(Debug)]
pub(crate) struct Panels {
    values: Stored<HostBlock>, // aligned, so that no vector crosses a cache line
    bias: Stored<HostBlock>,
    inputs: usize,
    outputs: usize,
    gated: bool,
    width: usize,
}

impl Panels {
    /// Packs rows of `inputs` numbers, one row per output.
    pub(crate) fn pack<'a>(
        arch: Arch,
        Size { inputs, outputs, gated }: Size,
        rows: impl Iterator<Item = &'a [f32]>,
        bias: impl Iterator<Item = f32>,
        into: &mut RegionWriter<HostBlock>,
    ) -> Result<Self, BackendError> {
        let (columns, width) = (packed_columns(arch, outputs, gated), panel_width(arch));
        let outputs = if gated { outputs / 2 } else { outputs };
        // The panel of a row of the weight, and its column there.
        let place = |row: usize| {
            let (part, output) = (row / outputs.max(1), row % outputs.max(1));
            let panel = output / width;
            (if gated { 2 * panel + part } else { panel }, output % width)
        };
        let values = into.floats(columns * inputs, |packed| {
            for (index, row) in rows.enumerate() {
                let (panel, column) = place(index);
                let panel = &mut packed[panel * width * inputs..][..width * inputs];
                for (slot, &value) in panel[column..].iter_mut().step_by(width).zip(row) {
                    *slot = value;
                }
            }
        })?;
        let bias = into.floats(columns, |places| {
            for (index, value) in bias.enumerate() {
                let (panel, column) = place(index);
                places[panel * width + column] = value;
            }
        })?;
        Ok(Self { values, bias, inputs, outputs, gated, width })
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Columns of the result.
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

/// `output = activation(rows · weights + bias)` for some rows and some columns; where the weights are
/// gated, `activation(gate) · up` of their halves.
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
    let parts = if weights.gated { 2 } else { 1 };
    let panels = &weights.values()[parts * first_column * weights.inputs..];
    arch.dispatch(Multiply {
        rows,
        panels: &panels[..parts * columns.div_ceil(weights.width) * panel],
        stride: panel,
        bias: &weights.bias.floats()[parts * first_column..],
        gated: weights.gated,
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
    /// Panels: inputs × panel width each.
    pub(crate) panels: &'a [f32],
    /// From the start of one panel to the next.
    pub(crate) stride: usize,
    /// One number per column, or none at all.
    pub(crate) bias: &'a [f32],
    /// Whether panels of a gate and of what it is for take turns.
    pub(crate) gated: bool,
    /// A slice for each row.
    pub(crate) output: &'a mut [&'o mut [f32]],
    /// Applied last.
    pub(crate) activation: Activation,
}

impl WithSimd for Multiply<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, gated, .. } = self;
        let inputs = rows.first().map_or(0, |row| row.len());
        let width = TILE_VECTORS * S::F32_LANES;
        let block_rows = block_rows(rows.len());
        for (index, panel) in self.panels.chunks(self.stride.max(1)).enumerate() {
            let panel = panel.get(..inputs * width).unwrap_or_default();
            let bias = self.bias.get(index * width..(index + 1) * width).unwrap_or(&[]);
            let (vectors, _) = S::as_simd_f32s(panel);
            let (weights, _) = vectors.as_chunks::<TILE_VECTORS>();
            let place = if gated { index / 2 } else { index };
            let columns = place * width..(place + 1) * width;
            let then = match gated && index % 2 == 1 {
                true => Then::Multiply,
                false => Then::Activate(self.activation),
            };
            let block = Block { simd, weights, bias, then, columns };
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

/// What becomes of a tile's sums.
#[derive(Clone, Copy)]
enum Then {
    /// They are written, activated.
    Activate(Activation),
    /// What is there, the gate, is multiplied by them.
    Multiply,
}

/// One panel of weights, for blocks of rows.
struct Block<'a, S: Simd> {
    simd: S,
    weights: &'a [[S::f32s; TILE_VECTORS]],
    bias: &'a [f32],
    then: Then,
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
                let rest = output.get_mut(self.columns.start..).unwrap_or_default();
                let valid = rest.len();
                target[..valid].copy_from_slice(rest);
                self.store(sums, target);
                rest.copy_from_slice(&target[..valid]);
            }
        }
    }

    #[inline(always)]
    fn store(&self, sums: &[S::f32s; TILE_VECTORS], target: &mut [f32]) {
        let simd = self.simd;
        let mut sums = *sums;
        let (bias, _) = S::as_simd_f32s(self.bias);
        for (sum, &bias) in sums.iter_mut().zip(bias) {
            *sum = simd.add_f32s(*sum, bias);
        }
        let (vectors, _) = S::as_mut_simd_f32s(target);
        match self.then {
            Then::Activate(activation) => {
                vectors.copy_from_slice(&sums);
                activate(activation, target);
            }
            Then::Multiply => {
                for (vector, &sum) in vectors.iter_mut().zip(&sums) {
                    *vector = simd.mul_f32s(*vector, sum);
                }
            }
        }
    }
}
