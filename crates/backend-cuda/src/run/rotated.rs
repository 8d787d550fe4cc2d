//! Queries and keys that are turned: as they are computed, or where they lie.

use vecmill_encoder::{BackendError, Places};
use vecmill_memory::SourceError;
use vecmill_model::{Heads, Rotary};

use super::linear::Product;
use super::operands::Matrix;
use super::{CudaBackend, failed, packed};
use crate::gemm::Rotation;
use crate::source::CudaBlock;

const LINEAR: &str = "linear and rotate";
const ROTATE: &str = "rotate";

impl CudaBackend {
    /// A layer and its turns, in one launch.
    pub(super) fn multiply_rotated(
        &self,
        slab: &CudaBlock,
        op: &Product<'_>,
        places: &Places<'_>,
        (heads, rotary): (Heads, Rotary),
    ) -> Result<(), BackendError> {
        let (hopper, product, deferred) = self.own_operands(slab, op, LINEAR)?;
        let positions = slab.span(places.positions()).map_err(failed(LINEAR))?;
        let rotation = Rotation { positions, heads, rotary };
        let computed = hopper.multiply_rotated(&self.stream, &product, deferred, rotation);
        computed.map_err(failed(LINEAR))
    }

    pub(super) fn rotate(
        &self,
        slab: &CudaBlock,
        places: &Places<'_>,
        [qkv, output]: [Matrix; 2],
        turned: (Heads, Rotary),
    ) -> Result<(), BackendError> {
        let operands = || -> Result<_, SourceError> {
            Ok(([qkv.wide(slab)?, output.wide(slab)?], packed(slab, places)?))
        };
        let (matrices, sequences) = operands().map_err(failed(ROTATE))?;
        self.row_order.forwards();
        let rotated = self.kernels.rotate(&self.stream, matrices, sequences, turned);
        rotated.map_err(failed(ROTATE))
    }
}
