//! The configurations of `gemm_sm90.cu` that are used, and what follows from each: see that file's
//! head, whose names these are.

use std::ffi::CStr;

use vecmill_model::Activation;

use crate::gemm::choose::{MANY_ROWS, TALL_ROWS};
use crate::kernels::ROW_MOMENTS_BYTES;

/// Threads of a block: one warpgroup loads, two multiply, in turns ("ping-pong") or a tile together.
pub(super) const BLOCK_THREADS: u32 = 384;
/// Rows and columns of the boxes of output and residual: a piece of a warp. Gated outputs have half the
/// columns.
pub(super) const OUTPUT_BOX: (u32, u32) = (16, 64);

/// Columns of a head that is turned: a piece.
pub(super) const HEAD_SIZE: u32 = OUTPUT_BOX.1;

const CONSUMER_WARPS: u32 = 8;
/// Bytes of a row of an operand's block.
pub(super) const BLOCK_ROW_BYTES: u32 = 128;

/// One configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    tile: Tile,
    stages: u32,
    slots: u32,
    /// Blocks that share the weight's loads, and those that share the input's.
    cluster: (u32, u32),
    widths: Widths,
    /// Whether the rows that are read, the input or behind the product the residual, are yet to be
    /// normalised.
    deferred: bool,
    epilogue: Epilogue,
}

/// What a warpgroup multiplies at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tile {
    /// Of 64 rows.
    row_blocks: u32,
    columns: u32,
    /// Whether it has a tile of its own, whose end hides behind the other's products.
    ping_pong: bool,
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
    /// Of gates, each of which is multiplied with what is beside it.
    Gate(Activation),
    /// Heads are turned by their rows' positions.
    Rotate,
    Norm,
    /// The residual's sum, whose normalisation is left to those who read it.
    Defer,
}

/// Ping-pong over 128 rows of 192 columns: the largest that the registers hold.
const TALL: Tile = Tile { row_blocks: 2, columns: 192, ping_pong: true };

impl Variant {
    pub(super) fn activated(rows: usize, activation: Activation, widths: Widths) -> Self {
        let epilogue = Epilogue::Activation(activation);
        // Fewer loads from the second-level cache take less power, by which long work is limited.
        let cluster = if rows >= MANY_ROWS { (2, 1) } else { (1, 1) };
        Self { tile: TALL, stages: 4, slots: 2, cluster, widths, deferred: false, epilogue }
    }

    /// The same of an input that is yet to be normalised.
    pub(super) fn behind_deferred(rows: usize, activation: Activation) -> Self {
        Self { deferred: true, ..Self::activated(rows, activation, Widths::Wide) }
    }

    /// Nothing follows, of an input that is normalised or yet to be.
    pub(super) fn plain(rows: usize, widths: Widths, deferred: bool) -> Self {
        Self { deferred, ..Self::activated(rows, Activation::Identity, widths) }
    }

    /// Of columns that are gates and what they let through.
    pub(super) fn gated(self, activation: Activation) -> Self {
        Self { epilogue: Epilogue::Gate(activation), ..self }
    }

    /// Of heads of [`HEAD_SIZE`] columns that are turned.
    pub(super) fn rotated(self) -> Self {
        Self { epilogue: Epilogue::Rotate, ..self }
    }

    /// Columns of the output, and of its boxes, of a weight of so many rows.
    pub(super) fn stored_columns<N: std::ops::Div<Output = N> + From<u8>>(self, columns: N) -> N {
        columns / N::from(if matches!(self.epilogue, Epilogue::Gate(_)) { 2 } else { 1 })
    }

    /// Of sums with a residual, four tiles wide; `deferred` says whether that is.
    pub(super) fn deferring(columns: usize, deferred: bool) -> Option<Self> {
        let (tile, stages, slots, cluster) = match columns {
            768 => (TALL, 4, 3, (1, 1)),
            1024 => (Tile { row_blocks: 1, columns: 256, ping_pong: false }, 3, 4, (1, 2)),
            _ => return None,
        };
        let (widths, epilogue) = (Widths::Wide, Epilogue::Defer);
        Some(Self { tile, stages, slots, cluster, widths, deferred, epilogue })
    }

    /// Of rows of 384, 768 or 1024 columns, the whole of which a cluster has.
    pub(super) fn normalised(rows: usize, inputs: usize, columns: usize) -> Option<Self> {
        let (tile, stages, slots, cluster) = match columns {
            // Small tiles spread few rows over more multiprocessors, and shorten the normalisation,
            // which counts most behind short sums. Tall ones load each weight for twice the rows.
            384 if inputs > 768 && rows >= TALL_ROWS => (TALL, 4, 2, (1, 2)),
            384 => (Tile { row_blocks: 1, ..TALL }, 5, 3, (1, 2)),
            768 if inputs > 1536 => (TALL, 4, 1, (2, 4)),
            768 => (Tile { row_blocks: 1, ping_pong: false, ..TALL }, 4, 1, (1, 4)),
            1024 => (Tile { row_blocks: 1, columns: 256, ping_pong: false }, 4, 1, (2, 4)),
            _ => return None,
        };
        let (widths, epilogue) = (Widths::Wide, Epilogue::Norm);
        Some(Self { tile, stages, slots, cluster, widths, deferred: false, epilogue })
    }

    /// Blocks of a cluster.
    pub(super) fn cluster(self) -> u32 {
        self.cluster.0 * self.cluster.1
    }

    /// Tiles of a matrix, counted by clusters.
    pub(super) fn tiles(self, rows: usize, columns: usize) -> usize {
        let (tall, wide) = (self.cluster.0 * self.tile_rows(), self.cluster.1 * self.tile.columns);
        rows.div_ceil(tall as usize) * columns.div_ceil(wide as usize)
    }

    /// Rows of the input's boxes: what one block loads for its cluster.
    pub(super) fn input_box_rows(self) -> u32 {
        self.tile_rows() / self.cluster.1
    }

    /// Those of the weight's.
    pub(super) fn weight_box_rows(self) -> u32 {
        self.tile.columns / self.cluster.0
    }

    /// `SHARED_BYTES` of `gemm_sm90_tiles.cuh`.
    pub(crate) fn shared_bytes(self) -> u32 {
        let slots = CONSUMER_WARPS * self.slots;
        let stage = (self.tile_rows() + self.tile.columns) * BLOCK_ROW_BYTES;
        let (exchange, residual_barriers) = match self.epilogue {
            Epilogue::Norm => (4 * 64 * self.tile.row_blocks * self.cluster.1 * 8, slots),
            Epilogue::Defer => (0, slots),
            Epilogue::Activation(_) | Epilogue::Gate(_) | Epilogue::Rotate => (0, 0),
        };
        let turns = if self.epilogue == Epilogue::Rotate { HEAD_SIZE / 2 * 4 } else { 0 };
        let barriers = 2 * self.stages + 11 + residual_barriers;
        let (rows, columns) = OUTPUT_BOX;
        let slot =
            rows * self.stored_columns(columns) * if self.widths.narrow_output() { 1 } else { 2 };
        let rest = turns + exchange + 2 * self.vector_bytes() + 8 * barriers + 8 * BLOCK_ROW_BYTES;
        self.stages * stage + slots * slot + rest
    }

    /// Of what the epilogue reads for a tile's columns, and for its rows.
    fn vector_bytes(self) -> u32 {
        let deferred = u32::from(self.deferred);
        let vectors = match self.epilogue {
            Epilogue::Activation(_) | Epilogue::Gate(_) | Epilogue::Rotate => {
                1 + u32::from(self.widths.narrow()) + deferred
            }
            Epilogue::Norm => 3,
            Epilogue::Defer => 2 + 2 * deferred,
        };
        let moments = u32::try_from(ROW_MOMENTS_BYTES).unwrap_or(u32::MAX);
        vectors * self.tile.columns * 4 + deferred * self.tile_rows() * moments
    }

    pub(super) fn kernel(self) -> &'static CStr {
        match self.epilogue {
            Epilogue::Norm => c"vecmill_gemm_norm_sm90",
            Epilogue::Defer => c"vecmill_gemm_defer_sm90",
            Epilogue::Activation(_) | Epilogue::Gate(_) | Epilogue::Rotate => c"vecmill_gemm_sm90",
        }
    }

    /// The macros.
    pub(crate) fn defines(self) -> Vec<String> {
        let (norm, activation) = match self.epilogue {
            Epilogue::Activation(activation) | Epilogue::Gate(activation) => (0, activation),
            Epilogue::Rotate => (0, Activation::Identity),
            Epilogue::Norm => (1, Activation::Identity),
            Epilogue::Defer => (2, Activation::Identity),
        };
        let numbers = [
            ("ROW_BLOCKS", self.tile.row_blocks),
            ("TILE_COLUMNS", self.tile.columns),
            ("PING_PONG", u32::from(self.tile.ping_pong)),
            ("STAGES", self.stages),
            ("SLOTS", self.slots),
            ("CLUSTER_ROWS", self.cluster.0),
            ("CLUSTER_COLUMNS", self.cluster.1),
            ("RESIDENT", 0),
            ("GATED", u32::from(matches!(self.epilogue, Epilogue::Gate(_)))),
            ("ROTATED", u32::from(self.epilogue == Epilogue::Rotate)),
            ("NORM", norm),
            ("DEFERRED", u32::from(self.deferred)),
            ("FP8", u32::from(self.widths.narrow())),
            ("FP8_OUTPUT", u32::from(self.widths.narrow_output())),
        ];
        let numbers = numbers.iter().map(|(name, value)| format!("{name}={value}"));
        numbers.chain([activation_define(activation)]).collect()
    }

    /// Whether nothing follows product and bias.
    #[cfg(test)]
    fn is_plain(self) -> bool {
        self.epilogue == Epilogue::Activation(Activation::Identity)
    }

    fn tile_rows(self) -> u32 {
        64 * self.tile.row_blocks * if self.tile.ping_pong { 1 } else { 2 }
    }
}

/// What `enum Activation` of `prelude.cuh` calls it.
pub(super) fn activation_define(activation: Activation) -> String {
    let epilogue = match activation {
        Activation::Identity => "IDENTITY",
        Activation::Gelu => "GELU",
        Activation::GeluTanh => "GELU_TANH",
        Activation::Relu => "RELU",
        Activation::Silu => "SILU",
        Activation::Tanh => "TANH",
    };
    format!("EPILOGUE={epilogue}")
}

#[cfg(test)]
pub(super) const ACTIVATIONS: [Activation; 6] = {
    use Activation::{Gelu, GeluTanh, Identity, Relu, Silu, Tanh};
    [Identity, Gelu, GeluTanh, Relu, Silu, Tanh]
};

/// All that the rules above can lead to.
#[cfg(test)]
pub(crate) fn used() -> Vec<Variant> {
    let widths = [Widths::Wide, Widths::Narrow, Widths::NarrowToNarrow];
    let activated = |rows, widths| ACTIVATIONS.map(|a| Variant::activated(rows, a, widths));
    let mut variants = widths.map(|widths| activated(1, widths)).concat();
    variants.extend(widths.map(|widths| activated(1 << 20, widths)).concat());
    let normalised =
        [(1, 384, 384), (1 << 20, 1536, 384), (1, 768, 768), (1, 3072, 768), (1, 4096, 1024)];
    variants.extend(
        normalised
            .into_iter()
            .filter_map(|(rows, inputs, columns)| Variant::normalised(rows, inputs, columns)),
    );
    variants.extend(ACTIVATIONS.map(|activation| Variant::behind_deferred(1 << 20, activation)));
    let gates = [Activation::Gelu, Activation::Silu];
    let gated = |variant: &Variant| gates.map(|activation| variant.gated(activation));
    let plain: Vec<_> = variants.iter().copied().filter(|variant| variant.is_plain()).collect();
    variants.extend(plain.iter().flat_map(gated));
    let turned = plain.iter().filter(|variant| !variant.widths.narrow_output());
    variants.extend(turned.map(|variant| variant.rotated()));
    let deferring = [(768, false), (768, true), (1024, false), (1024, true)];
    variants.extend(deferring.into_iter().filter_map(|(c, d)| Variant::deferring(c, d)));
    variants
}
