//! Disjoint views of a slab.

use std::ops::Range;

use vecmill_encoder::{BackendError, Buffer, Indices, Workspace};
use vecmill_memory::HostBlock;

const FLOAT: usize = size_of::<f32>();

/// Where something lies in the slab, counted in 4-byte elements.
pub(crate) trait Place {
    fn range(self) -> Range<usize>;
}

impl Place for Buffer {
    fn range(self) -> Range<usize> {
        self.offset / FLOAT..self.offset / FLOAT + self.elements()
    }
}

impl Place for Indices {
    fn range(self) -> Range<usize> {
        self.offset / FLOAT..self.offset / FLOAT + self.length
    }
}

impl Place for Workspace {
    fn range(self) -> Range<usize> {
        self.offset / FLOAT..(self.offset + self.bytes) / FLOAT
    }
}

/// The slab's memory at each of the places, which must not overlap: that they don't is the plan's
/// promise, and it is checked here.
pub(crate) fn views<'a, const N: usize>(
    slab: &'a mut HostBlock,
    operation: &'static str,
    places: [Range<usize>; N],
) -> Result<[&'a mut [f32]; N], BackendError> {
    let floats: &mut [f32] = bytemuck::try_cast_slice_mut(slab.bytes_mut())
        .map_err(|error| BackendError { operation, reason: error.to_string() })?;
    let length = floats.len();
    floats.get_disjoint_mut(places).map_err(|error| BackendError {
        operation,
        reason: format!("its operands do not fit a slab of {length} elements: {error}"),
    })
}

/// Indices are stored in the same 4-byte elements.
pub(crate) fn as_indices(elements: &[f32]) -> &[u32] {
    bytemuck::cast_slice(elements)
}
