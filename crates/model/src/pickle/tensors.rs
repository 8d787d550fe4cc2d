//! Where the tensors of a pickled table lie.

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::tensor::Dtype;

use super::Fault;
use super::values::{Object, Storage, Tensor, Unpickled, Value};
use crate::json::shortened;
use crate::tensor::elements;

/// A tensor's place in a file.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) range: Range<usize>,
    /// `None` where numbers lie row by row.
    pub(super) strides: Option<Vec<usize>>,
}

/// The places of all tensors of the table that a pickle is, in a file of so many bytes; `storage`
/// says where a storage lies, which is within the file and as long as it says.
pub(super) fn places<'p>(
    pickle: &Unpickled<'p>,
    file: usize,
    storage: impl Fn(&Storage<'p>) -> Result<Range<usize>, Fault>,
) -> Result<BTreeMap<&'p str, Place>, Fault> {
    let expected = "a table from names to tensors (model.state_dict())";
    let Some(Object::Table(table)) = pickle.object(pickle.value) else {
        return Err(Fault::new("the pickle", expected, pickle.words(pickle.value)));
    };
    let mut places = BTreeMap::new();
    let mut copied = 0usize;
    for &(name, value) in table {
        let Value::Text(name) = name else {
            return Err(Fault::new("the pickle", expected, format!("with {}", pickle.words(name))));
        };
        let what = || format!("the tensor '{}'", shortened(name));
        let Some(Object::Tensor(tensor)) = pickle.object(value) else {
            return Err(Fault::new(what(), "a tensor", pickle.words(value)));
        };
        let place = place(tensor, storage(&tensor.storage)?).ok_or_else(|| {
            let Tensor { storage, offset, shape, strides, .. } = tensor;
            let expected = format!(
                "within the {} numbers of storage {}",
                storage.numbers,
                shortened(storage.key)
            );
            let found = format!("at {offset} with shape {shape:?} and strides {strides:?}");
            Fault::new(what(), expected, found)
        })?;
        // Each is copied when it is read: that a small file should ask for no more than its size.
        if place.strides.is_some() {
            let bytes = elements(&place.shape).unwrap_or(0) * (place.dtype.bitsize() / 8);
            copied = copied.saturating_add(bytes);
            if copied > file {
                let expected = format!("at most the file's {file} bytes");
                return Err(Fault::new("what doesn't lie row by row", expected, "more"));
            }
        }
        if places.insert(name, place).is_some() {
            return Err(Fault::new(what(), "there once", "there twice"));
        }
    }
    Ok(places)
}

/// Where a tensor lies, whose storage lies in `range`; `None` if not within it.
fn place(tensor: &Tensor<'_>, range: Range<usize>) -> Option<Place> {
    let Tensor { dtype, ref shape, .. } = *tensor;
    let size = dtype.bitsize() / 8;
    let start = tensor.offset.checked_mul(size)?.checked_add(range.start)?;
    let count = elements(shape)?;
    // From the first number to behind the last.
    let mut span = usize::from(count > 0);
    let (mut contiguous, mut row) = (true, 1usize);
    for (&extent, &stride) in shape.iter().zip(&tensor.strides).rev() {
        if count == 0 || extent == 1 {
            continue;
        }
        span = (extent - 1).checked_mul(stride)?.checked_add(span)?;
        contiguous &= stride == row;
        row *= extent; // at most `count`
    }
    let end = span.checked_mul(size)?.checked_add(start)?;
    // Otherwise numbers would count twice: a small storage could be a tensor of any size.
    let once = count <= span;
    let place = Place {
        dtype,
        shape: shape.clone(),
        range: start..end,
        strides: (!contiguous).then(|| tensor.strides.clone()),
    };
    (end <= range.end && once).then_some(place)
}
