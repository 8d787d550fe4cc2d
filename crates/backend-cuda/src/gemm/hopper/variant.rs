//! The configurations of `gemm_sm90.cu` that are used, and what follows from each: see that file's
//! head, whose names these are.

use std::ffi::CStr;

use vecmill_encoder::Activation;

/// Threads of a block: one warpgroup loads, two multiply in turns ("ping-pong").
pub(super) const BLOCK_THREADS: u32 = 384;
/// Columns of a tile, and rows of the weight's boxes.
pub(super) const TILE_COLUMNS: u32 = 192;
/// Rows of the boxes of output and residual: those of a warp.
pub(super) const OUTPUT_BOX_ROWS: u32 = 16;
/// Columns of rows that a cluster normalises: each of its two blocks has half of them.
pub(super) const NORM_COLUMNS: usize = 384;

const CONSUMER_WARPS: u32 = 8;
/// Bytes of a row of an operand's block, 64 values.
const BLOCK_ROW_BYTES: u32 = 128;
const SLOT_BYTES: u32 = 2048;

/// One configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    row_blocks: u32,
    stages: u32,
    slots: u32,
    cluster_columns: u32,
    epilogue: Epilogue,
}

/// What follows the product and the bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Epilogue {
    Activation(Activation),
    Norm,
}

impl Variant {
    pub(super) fn activated(activation: Activation) -> Self {
        let epilogue = Epilogue::Activation(activation);
        Self { row_blocks: 2, stages: 4, slots: 2, cluster_columns: 1, epilogue }
    }

    pub(super) fn normalised(rows: usize, inputs: usize) -> Self {
        // Small tiles spread few rows over more multiprocessors, and shorten the normalisation,
        // which counts most behind short sums. Tall ones load each weight for twice the rows.
        let tall = inputs > 768 && rows >= 16_384;
        let (row_blocks, stages, slots) = if tall { (2, 4, 2) } else { (1, 5, 3) };
        Self { row_blocks, stages, slots, cluster_columns: 2, epilogue: Epilogue::Norm }
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
        self.stages * stage + slots * SLOT_BYTES + exchange + 8 * barriers + 8 * BLOCK_ROW_BYTES
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
    let mut variants = activations.map(Variant::activated).to_vec();
    variants.extend([Variant::normalised(1, 384), Variant::normalised(1 << 20, 1536)]);
    variants
}
