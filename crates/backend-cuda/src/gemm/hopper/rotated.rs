//! Linear layers whose outputs are queries, keys and values, of which the first two are turned by their
//! positions as they are computed: `gemm_sm90.cu` with ROTATED 1.
//!
//! The choice behind it: a thread that has a column of a head has the one that it is paired with, too,
//! and makes cosine and sine by two instructions, which is less than a pass over all rows costs.

use vecmill_model::{Heads, Rotary};

use super::variant::{HEAD_SIZE, Variant};
use super::{DeferredInput, HopperGemm, Product};
use crate::driver::{Argument, DeviceSpan};
use crate::gemm::choose::FEW_ROWS;
use crate::kernels::{KernelError, number, turns_of_head};
use crate::stream::CudaStream;

/// What turns queries and keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rotation<'a> {
    /// Of each row, as the batch has them: they count from that of the first row.
    pub(crate) positions: DeviceSpan<'a>,
    pub(crate) heads: Heads,
    pub(crate) rotary: Rotary,
}

impl HopperGemm {
    /// Whether such heads can be turned as they are computed: whole ones of the commonest size, by angles
    /// that depend on nothing but positions.
    pub(crate) fn fits_rotated(heads: Heads, rotary: Rotary) -> bool {
        let size = HEAD_SIZE as usize;
        heads.size == size && rotary.dims == size && !rotary.depends_on_length()
    }

    /// Whether that is faster than a product of the library's and a pass over its rows.
    pub(crate) fn rotating_pays(rows: usize) -> bool {
        rows >= FEW_ROWS
    }

    /// `input · weightᵀ + bias`, of which queries and keys are turned; with an input that is normalised, or
    /// with what is to be known of that, as in [`multiply_gated`](Self::multiply_gated).
    pub(crate) fn multiply_rotated(
        &self,
        stream: &CudaStream,
        product: &Product<'_>,
        deferred: Option<DeferredInput<'_>>,
        rotation: Rotation<'_>,
    ) -> Result<(), KernelError> {
        if product.rows == 0 {
            return Ok(());
        }
        let Rotation { positions, heads, rotary } = rotation;
        let variant = Variant::plain(product.rows, product.widths, deferred.is_some()).rotated();
        let turns = turns_of_head(rotary, HEAD_SIZE as usize / 2);
        let turned = (heads.queries + heads.keys) * heads.size;
        let more = [number(turned), Argument::Span(positions), Argument::Words(&turns)];
        self.launch_activated(stream, product, variant, deferred, &more)
    }
}
