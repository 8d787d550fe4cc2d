//! Tensors by reference: a name, a shape, and a range of a mapped file.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::ModelError;
use super::mapped::MappedFile;
use crate::e4m3;

/// A number format, of a tensor in a file or of what a device computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    BF16,
    /// FP8: [`e4m3`]. Of a device: linear layers multiply such operands, and all else is in half
    /// precision. No format of files, which would need scales beside it.
    F8E4M3,
}

impl DType {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F8E4M3 => 1,
        }
    }
}

/// A tensor in a mapped file or in memory. Clones share it.
#[derive(Clone)]
pub struct TensorView {
    name: Arc<str>,
    dtype: DType,
    shape: Arc<[usize]>,
    storage: Storage,
}

#[derive(Clone)]
enum Storage {
    /// A range that was checked against the file's length.
    Mapped(Arc<MappedFile>, Range<usize>),
    Owned(Arc<Vec<f32>>),
}

impl TensorView {
    /// A tensor of `values` in memory, row by row.
    ///
    /// # Errors
    /// [`ModelError::Shape`] when there are more or fewer values than `shape` asks for.
    pub fn from_f32(name: &str, shape: &[usize], values: Vec<f32>) -> Result<Self, ModelError> {
        if elements(shape) != Some(values.len()) {
            return Err(ModelError::Shape {
                path: PathBuf::from("(memory)"),
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: vec![values.len()],
            });
        }
        let storage = Storage::Owned(Arc::new(values));
        Ok(Self { name: name.into(), dtype: DType::F32, shape: shape.into(), storage })
    }

    /// The tensor in `range` of `file`; whoever calls has checked the range.
    pub(super) fn mapped(
        name: &str,
        dtype: DType,
        shape: Arc<[usize]>,
        file: Arc<MappedFile>,
        range: Range<usize>,
    ) -> Self {
        Self { name: name.into(), dtype, shape, storage: Storage::Mapped(file, range) }
    }

    /// Some of its rows, which are those of its first dimension; none where it has fewer.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let columns = self.shape.iter().skip(1).product::<usize>();
        let first = self.shape.first().copied().unwrap_or(0);
        let rows = rows.start.min(first)..rows.end.min(first);
        let within = rows.start * columns..rows.end.max(rows.start) * columns;
        let storage = match &self.storage {
            Storage::Mapped(file, range) => {
                let bytes = self.dtype.bytes();
                let (start, end) = (within.start * bytes, within.end * bytes);
                Storage::Mapped(Arc::clone(file), range.start + start..range.start + end)
            }
            Storage::Owned(values) => {
                Storage::Owned(Arc::new(values.get(within).unwrap_or_default().to_vec()))
            }
        };
        let mut shape = self.shape.to_vec();
        if let Some(count) = shape.first_mut() {
            *count = rows.len();
        }
        Self { name: Arc::clone(&self.name), dtype: self.dtype, shape: shape.into(), storage }
    }

    /// Makes sure that its file, if it has one, was not changed since it was opened.
    pub(super) fn check_unchanged(&self) -> Result<(), ModelError> {
        match &self.storage {
            Storage::Mapped(file, _) => file.check_unchanged(),
            Storage::Owned(_) => Ok(()),
        }
    }

    /// Its name in the file, prefix included.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number format that it is stored in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Its extent in each dimension, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How many numbers it has.
    pub fn elements(&self) -> usize {
        self.bytes().len() / self.dtype.bytes()
    }

    /// Its numbers as stored, little-endian, row by row.
    pub fn bytes(&self) -> &[u8] {
        match &self.storage {
            Storage::Mapped(file, range) => file.get(range.clone()).unwrap_or_default(),
            Storage::Owned(values) => bytemuck::cast_slice(values),
        }
    }

    /// Whether [`to_f32`](Self::to_f32) borrows: its numbers lie in memory as single precision.
    pub fn lies_as_f32(&self) -> bool {
        self.dtype == DType::F32 && native::<f32>(self.bytes()).is_some()
    }

    /// Its numbers in single precision: borrowed where they are stored so, converted otherwise.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        widened(self.bytes(), self.dtype)
    }
}

impl fmt::Debug for TensorView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {:?}", self.name, self.dtype, self.shape)
    }
}

/// Little-endian numbers of `dtype` in single precision.
pub(super) fn widened(bytes: &[u8], dtype: DType) -> Cow<'_, [f32]> {
    match dtype {
        DType::F32 => match native::<f32>(bytes) {
            Some(values) => Cow::Borrowed(values),
            None => Cow::Owned(numbers(bytes, f32::from_le_bytes)),
        },
        DType::F16 => Cow::Owned(match native::<f16>(bytes) {
            Some(values) => values.to_f32_vec(),
            None => numbers(bytes, |number| f16::from_le_bytes(number).to_f32()),
        }),
        DType::BF16 => Cow::Owned(match native::<bf16>(bytes) {
            Some(values) => values.to_f32_vec(),
            None => numbers(bytes, |number| bf16::from_le_bytes(number).to_f32()),
        }),
        DType::F8E4M3 => Cow::Owned(numbers(bytes, |[number]| e4m3::to_f32(number))),
    }
}

/// The product of the extents, or `None` when it overflows.
pub(super) fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))
}

/// `bytes` as numbers in place, if they are aligned and this machine is little-endian.
fn native<T: bytemuck::Pod>(bytes: &[u8]) -> Option<&[T]> {
    if cfg!(target_endian = "little") { bytemuck::try_cast_slice(bytes).ok() } else { None }
}

fn numbers<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|&chunk| number(chunk)).collect()
}
