//! The configurations of `gemm_sm90.cu` that are used, and what follows from each: see that file's
//! head, whose names these are.

use std::ffi::CStr;

use vecmill_encoder::Activation;

/// Threads of a block: one warpgroup loads, two multiply in turns ("ping-pong").
pub(super) const BLOCK_THREADS: u32 = 384;
/// Columns of a tile, and rows of the weight's boxes.
pub(super) const TILE_COLUMNS: u32 = 192;
/// Rows and columns of the boxes of output and residual: a piece of a warp.
pub(super) const OUTPUT_BOX: (u32, u32) = (16, 64);
/// Columns of rows that a cluster normalises: each of its two blocks has half of them.
pub(super) const NORM_COLUMNS: usize = 384;

const CONSUMER_WARPS: u32 = 8;
/// Bytes of a row of an operand's block.
pub(super) const BLOCK_ROW_BYTES: u32 = 128;

/// One configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    row_blocks: u32,
    stages: u32,
    slots: u32,
    cluster_columns: u32,
    widths: Widths,
    epilogue: Epilogue,
}

/// What is multiplied, and what comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Widths {
    /// All in the format of activations.
    Wide,
    /// Input and weight in e4m3.
    Narrow,
    /// The output as well, for the next layer.
    NarrowToNarrow,
}

impl Widths {
    pub(super) fn narrow(self) -> bool {
        self != Self::Wide
    }

    pub(super) fn narrow_output(self) -> bool {
        self == Self::NarrowToNarrow
    }
}

/// What follows the product and the bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Epilogue {
    Activation(Activation),
    Norm,
}

impl Variant {
    pub(super) fn activated(activation: Activation, widths: Widths) -> Self {
        let epilogue = Epilogue::Activation(activation);
        Self { row_blocks: 2, stages: 4, slots: 2, cluster_columns: 1, widths, epilogue }
    }

    pub(super) fn normalised(rows: usize, inputs: usize) -> Self {
        // Small tiles spread few rows over more multiprocessors, and shorten the normalisation,
        // which counts most behind short sums. Tall ones load each weight for twice the rows.
        let tall = inputs > 768 && rows >= 16_384;
        let (row_blocks, stages, slots) = if tall { (2, 4, 2) } else { (1, 5, 3) };
        let (widths, epilogue) = (Widths::Wide, Epilogue::Norm);
        Self { row_blocks, stages, slots, cluster_columns: 2, widths, epilogue }
    }

    /// Blocks of a cluster.
    pub(super) fn cluster(self) -> u32 {
        self.cluster_columns
    }

    /// Tiles of a matrix, counted by clusters.
    pub(super) fn tiles(self, rows: usize, columns: usize) -> usize {
        let cluster_columns = (TILE_COLUMNS * self.cluster_columns) as usize;
        rows.div_ceil(self.tile_rows() as usize) * columns.div_ceil(cluster_columns)
    }

    /// The input's boxes: what one block loads for its cluster.
    pub(super) fn input_box_rows(self) -> u32 {
        self.tile_rows() / self.cluster_columns
    }

    /// `SHARED_BYTES` of `gemm_sm90_tiles.cuh`.
    pub(crate) fn shared_bytes(self) -> u32 {
        let slots = CONSUMER_WARPS * self.slots;
        let stage = (self.tile_rows() + TILE_COLUMNS) * BLOCK_ROW_BYTES;
        let (exchange, residual_barriers) = match self.epilogue {
            Epilogue::Norm => (4 * self.tile_rows() * self.cluster_columns * 8, slots),
            Epilogue::Activation(_) => (0, 0),
        };
        let barriers = 2 * self.stages + 7 + residual_barriers;
        let (rows, columns) = OUTPUT_BOX;
        let slot = rows * columns * if self.widths.narrow_output() { 1 } else { 2 };
        self.stages * stage + slots * slot + exchange + 8 * barriers + 8 * BLOCK_ROW_BYTES
    }

    pub(super) fn kernel(self) -> &'static CStr {
        match self.epilogue {
            Epilogue::Norm => c"vecmill_gemm_norm_sm90",
            Epilogue::Activation(_) => c"vecmill_gemm_sm90",
        }
    }

    /// The macros.
    pub(crate) fn defines(self) -> Vec<String> {
        let epilogue = match self.epilogue {
            Epilogue::Norm | Epilogue::Activation(Activation::Identity) => "IDENTITY",
            Epilogue::Activation(Activation::Gelu) => "GELU",
            Epilogue::Activation(Activation::GeluTanh) => "GELU_TANH",
            Epilogue::Activation(Activation::Relu) => "RELU",
            Epilogue::Activation(Activation::Silu) => "SILU",
            Epilogue::Activation(Activation::Tanh) => "TANH",
        };
        let numbers = [
            ("ROW_BLOCKS", self.row_blocks),
            ("TILE_COLUMNS", TILE_COLUMNS),
            ("PING_PONG", 1),
            ("STAGES", self.stages),
            ("SLOTS", self.slots),
            ("CLUSTER_ROWS", 1),
            ("CLUSTER_COLUMNS", self.cluster_columns),
            ("RESIDENT", 0),
            ("NORM", u32::from(self.epilogue == Epilogue::Norm)),
            ("FP8", u32::from(self.widths.narrow())),
            ("FP8_OUTPUT", u32::from(self.widths.narrow_output())),
        ];
        let numbers = numbers.iter().map(|(name, value)| format!("{name}={value}"));
        numbers.chain([format!("EPILOGUE={epilogue}")]).collect()
    }

    fn tile_rows(self) -> u32 {
        64 * self.row_blocks
    }
}

/// All that the rules above can lead to.
#[cfg(test)]
pub(crate) fn used() -> Vec<Variant> {
    use Activation::{Gelu, GeluTanh, Identity, Relu, Silu, Tanh};
    let activations = [Identity, Gelu, GeluTanh, Relu, Silu, Tanh];
    let widths = [Widths::Wide, Widths::Narrow, Widths::NarrowToNarrow];
    let activated = |widths| activations.map(|activation| Variant::activated(activation, widths));
    let mut variants = widths.map(activated).concat();
    variants.extend([Variant::normalised(1, 384), Variant::normalised(1 << 20, 1536)]);
    variants
}
