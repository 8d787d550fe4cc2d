//! Disjoint views of a slab.

use std::ops::Range;

use vecmill_encoder::BackendError;
use vecmill_memory::HostBlock;

const FLOAT: usize = size_of::<f32>();

/// The slab's memory at each of the ranges of bytes, which must not overlap: that they don't is the
/// plan's promise, and it is checked here.
pub(crate) fn views<'a, const N: usize>(
    slab: &'a mut HostBlock,
    operation: &'static str,
    places: [Range<usize>; N],
) -> Result<[&'a mut [f32]; N], BackendError> {
    let floats: &mut [f32] = bytemuck::try_cast_slice_mut(slab.bytes_mut())
        .map_err(|error| BackendError { operation, reason: error.to_string() })?;
    let length = floats.len();
    let places = places.map(|Range { start, end }| start / FLOAT..end / FLOAT);
    floats.get_disjoint_mut(places).map_err(|error| BackendError {
        operation,
        reason: format!("its operands do not fit a slab of {length} elements: {error}"),
    })
}

/// The slab's memory at one range of bytes.
pub(crate) fn view<'a>(
    slab: &'a mut HostBlock,
    operation: &'static str,
    bytes: Range<usize>,
) -> Result<&'a mut [f32], BackendError> {
    let nothing = 0..0;
    views(slab, operation, [bytes, nothing]).map(|[view, _]| view)
}

/// Indices are stored in the same 4-byte elements.
pub(crate) fn as_indices(elements: &[f32]) -> &[u32] {
    bytemuck::cast_slice(elements)
}
