//! Weights in another number format, as one safetensors file, whatever form they had.
//!
//! Matrices and tables get the format. Biases and norms, which take next to nothing, get single
//! precision: that is what every device computes with. Integers stay as they are.
//!
//! The choice behind it: tensors are converted in pieces while they are written, so that memory
//! does not grow with the model; and a number that the format can't hold is an error, because an
//! infinite weight would make every vector NaN.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use half::vec::HalfFloatVecExt;
use half::{bf16, f16, slice::HalfFloatSliceExt};
use safetensors::tensor::{Dtype, TensorInfo};

use super::entry::Entry;
use super::safetensors::{self as container, HEADER_LIMIT};
use super::tensor::{elements, widened};
use super::{DType, ModelError, Weights, weights};
use crate::e4m3;

/// Numbers that are converted at once.
const PIECE: usize = 1 << 16;

/// Why weights could not be converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The weights are broken, or too many for one file.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The format has no such number.
    #[error(
        "{}: the tensor '{tensor}' has the value {value:e}, which {format:?} can't hold: {}",
        path.display(), advice(*value, *format)
    )]
    OutOfRange {
        /// The weights file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The value.
        value: f32,
        /// The format asked for.
        format: DType,
    },
    /// Weights are not stored in this format.
    #[error(
        "weights are not stored in FP8, because its scales are chosen when they are loaded: expected \
         f32, f16 or bf16; 'vecmill serve --dtype fp8' computes in FP8 with any of them"
    )]
    Unstored,
    /// The result could not be written.
    #[error("the converted weights can't be written: {0}")]
    Write(#[from] io::Error),
}

fn advice(value: f32, format: DType) -> &'static str {
    match format {
        _ if !value.is_finite() => "the weights are broken, fetch them again",
        DType::F16 => "its largest is 65504; choose bfloat16, which has the range of float32",
        DType::BF16 | DType::F32 | DType::F8E4M3 => "choose float32",
    }
}

/// A number that rounding changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Rounding {
    /// The tensor that it is in.
    pub tensor: String,
    /// The number before.
    pub from: f32,
    /// The number after.
    pub to: f32,
}

impl Rounding {
    /// How far apart the two are.
    pub fn error(&self) -> f32 {
        (self.from - self.to).abs()
    }
}

/// A tensor that is written.
struct Part<'a> {
    name: &'a str,
    entry: &'a Entry,
    /// The format that it has and the one that it gets; `None` for what stays as it is.
    formats: Option<(DType, DType)>,
}

impl Weights {
    /// Bytes of all tensors as they are stored.
    pub fn stored_bytes(&self) -> usize {
        self.tensors.values().map(Entry::len).fold(0, usize::saturating_add)
    }

    /// Writes all tensors as one safetensors file: matrices in `format`, rounded to the nearest
    /// number and to an even one between two. `progress` is told stored bytes that are done.
    ///
    /// Returns the number that was changed most, if any was.
    ///
    /// # Errors
    /// [`ConvertError::OutOfRange`] when `format` can't hold a number, [`ConvertError::Unstored`]
    /// for FP8; when `into` can't be written.
    pub fn write_as(
        &self,
        format: DType,
        into: &mut dyn Write,
        progress: &dyn Fn(usize),
    ) -> Result<Option<Rounding>, ConvertError> {
        if format == DType::F8E4M3 {
            return Err(ConvertError::Unstored);
        }
        let parts = self.parts(format);
        into.write_all(&self.head(&parts)?)?;
        let (mut largest, mut done) = (None, 0);
        for part in &parts {
            let stored_bytes = part.formats.map_or(1, |(stored, _)| stored.bytes());
            for piece in part.entry.bytes().chunks(PIECE * stored_bytes) {
                part.write(piece, into, &mut largest)?;
                done += piece.len();
                progress(done);
            }
        }
        Ok(largest)
    }

    /// The tensors in the order in which they are written.
    fn parts(&self, format: DType) -> Vec<Part<'_>> {
        let mut parts = Vec::with_capacity(self.tensors.len());
        for (name, entry) in self.tensors.iter() {
            let becomes = if entry.shape.len() > 1 { format } else { DType::F32 };
            let formats = weights::dtype(entry.dtype).map(|stored| (stored, becomes));
            parts.push(Part { name: name.as_str(), entry, formats });
        }
        // Wide numbers first: so each tensor starts at a multiple of its numbers' size.
        parts.sort_by_key(|part| (Reverse(part.dtype().bitsize()), part.name));
        parts
    }

    fn head(&self, parts: &[Part<'_>]) -> Result<Vec<u8>, ConvertError> {
        let mut end = 0;
        let mut tensors = BTreeMap::new();
        for part in parts {
            let start = end;
            end += part.bytes();
            let shape = part.entry.shape.to_vec();
            let info = TensorInfo { dtype: part.dtype(), shape, data_offsets: (start, end) };
            tensors.insert(part.name, info);
        }
        let head = container::head(&tensors)?;
        let found = head.len() as u64;
        if found > HEADER_LIMIT {
            let (path, what) = (self.path.clone(), "the header");
            return Err(ModelError::TooLarge { path, what, limit: HEADER_LIMIT, found }.into());
        }
        Ok(head)
    }
}

impl Part<'_> {
    fn dtype(&self) -> Dtype {
        match self.formats {
            Some((_, DType::F32)) => Dtype::F32,
            Some((_, DType::F16)) => Dtype::F16,
            Some((_, DType::BF16)) => Dtype::BF16,
            Some((_, DType::F8E4M3)) => Dtype::F8_E4M3,
            None => self.entry.dtype,
        }
    }

    /// Bytes that it takes when it is written.
    fn bytes(&self) -> usize {
        match self.formats {
            Some((_, becomes)) => elements(&self.entry.shape).unwrap_or(0) * becomes.bytes(),
            None => self.entry.len(),
        }
    }

    /// Converts and writes a piece of it, and keeps the `largest` rounding so far.
    fn write(
        &self,
        piece: &[u8],
        into: &mut dyn Write,
        largest: &mut Option<Rounding>,
    ) -> Result<(), ConvertError> {
        let Some((stored, format)) = self.formats else { return Ok(into.write_all(piece)?) };
        let values = widened(piece, stored);
        let (bytes, rounded) = rounded(&values, format);
        let mut most = largest.as_ref().map_or(0.0, Rounding::error);
        for (&from, &to) in values.iter().zip(&rounded) {
            if !to.is_finite() {
                let (path, tensor) = (self.entry.path.to_path_buf(), self.name.to_owned());
                return Err(ConvertError::OutOfRange { path, tensor, value: from, format });
            }
            let error = (from - to).abs();
            if error > most {
                most = error;
                *largest = Some(Rounding { tensor: self.name.to_owned(), from, to });
            }
        }
        Ok(into.write_all(&bytes)?)
    }
}

/// `values` in `format`: their bytes, and what these say.
fn rounded(values: &[f32], format: DType) -> (Vec<u8>, Vec<f32>) {
    match format {
        DType::F32 => {
            (values.iter().flat_map(|value| value.to_le_bytes()).collect(), values.to_vec())
        }
        DType::F16 => {
            let numbers = Vec::<f16>::from_f32_slice(values);
            let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            (bytes, numbers.to_f32_vec())
        }
        DType::BF16 => {
            let numbers = Vec::<bf16>::from_f32_slice(values);
            let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            (bytes, numbers.to_f32_vec())
        }
        DType::F8E4M3 => {
            let bytes: Vec<u8> = values.iter().copied().map(e4m3::from_f32).collect();
            let numbers = bytes.iter().copied().map(e4m3::to_f32).collect();
            (bytes, numbers)
        }
    }
}
