//! Where a tensor lies in a file, whatever the file's form.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::Dtype;

use super::mapped::MappedFile;
use super::tensor::elements;

/// One tensor's place in a file, within the file's bounds.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) file: Arc<MappedFile>,
    pub(super) path: Arc<Path>,
    pub(super) dtype: Dtype,
    pub(super) shape: Arc<[usize]>,
    /// From its first number to its last.
    pub(super) range: Range<usize>,
    /// How many numbers each dimension's next is away, where they don't lie row by row. Their
    /// sum up to the last number stays within `range`.
    pub(super) strides: Option<Arc<[usize]>>,
}

impl Entry {
    /// Bytes of its numbers.
    pub(super) fn len(&self) -> usize {
        match self.strides {
            None => self.range.len(),
            Some(_) => elements(&self.shape).unwrap_or(0).saturating_mul(self.size()),
        }
    }

    /// Its numbers as stored, row by row: borrowed if they lie so, copied otherwise.
    pub(super) fn bytes(&self) -> Cow<'_, [u8]> {
        let bytes = self.file.get(self.range.clone()).unwrap_or_default();
        match &self.strides {
            None => Cow::Borrowed(bytes),
            Some(strides) => Cow::Owned(gathered(bytes, self.size(), &self.shape, strides)),
        }
    }

    /// Bytes of one number.
    fn size(&self) -> usize {
        self.dtype.bitsize() / 8
    }
}

/// The numbers of `size` bytes that lie `strides` apart in `bytes`, row by row.
fn gathered(bytes: &[u8], size: usize, shape: &[usize], strides: &[usize]) -> Vec<u8> {
    let (Some((&columns, outer)), Some((&step, outer_strides))) =
        (shape.split_last(), strides.split_last())
    else {
        return bytes.get(..size).unwrap_or_default().to_vec();
    };
    let rows = elements(outer).unwrap_or(0);
    let mut all = Vec::with_capacity(rows.saturating_mul(columns).saturating_mul(size));
    let mut index = vec![0; outer.len()];
    for _ in 0..rows {
        let start: usize = index.iter().zip(outer_strides).map(|(at, stride)| at * stride).sum();
        for column in 0..columns {
            let at = (start + column * step) * size;
            all.extend_from_slice(bytes.get(at..at + size).unwrap_or_default());
        }
        for (at, &extent) in index.iter_mut().zip(outer).rev() {
            *at += 1;
            if *at < extent {
                break;
            }
            *at = 0;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_gathered_row_by_row() {
        let bytes: Vec<u8> = (0..24).collect();
        assert_eq!(gathered(&bytes, 1, &[3, 2], &[1, 3]), [0, 3, 1, 4, 2, 5], "transposed");
        assert_eq!(gathered(&bytes, 2, &[2, 2], &[3, 1]), [0, 1, 2, 3, 6, 7, 8, 9], "cut out");
        assert_eq!(gathered(&bytes, 1, &[2, 3, 2], &[1, 4, 2])[..6], [0, 2, 4, 6, 8, 10]);
        assert_eq!(gathered(&bytes, 1, &[3], &[5]), [0, 5, 10]);
    }
}
