//! The safetensors container: a length, a JSON header, and the tensors' bytes.
//!
//! The header's vocabulary is the `safetensors` crate's. The layout is checked here, because an
//! error should name the tensor, and because sums of hostile offsets must not overflow.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use super::ModelError;
use super::entry::Entry;
use super::file;
use super::mapped::MappedFile;
use super::tensor::elements;

/// Headers take some 100 bytes a tensor; this is room for tens of thousands.
pub(super) const HEADER_LIMIT: u64 = 4 << 20;

/// The header's length stands in front of it.
const LENGTH_BYTES: usize = size_of::<u64>();

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    _metadata: Option<IgnoredAny>,
    #[serde(flatten)]
    tensors: BTreeMap<String, TensorInfo>,
}

/// Maps the file at `path` and gives its tensors by name.
pub(super) fn open(path: &Path) -> Result<BTreeMap<String, Entry>, ModelError> {
    let file = MappedFile::open(path)?;
    if let Some(found) = file::stand_in(&file) {
        return Err(ModelError::StandIn { path: path.to_owned(), found });
    }
    let (header, data) = split(path, &file)?;
    let header: Header = serde_json::from_slice(header).map_err(|error| {
        broken(path, "the header", "a JSON object of tensors", error.to_string())
    })?;
    check_layout(path, &header.tensors, data.len())?;
    let (file, path) = (Arc::new(file), Arc::from(path));
    let entry = |(name, info): (String, TensorInfo)| {
        let (start, end) = info.data_offsets;
        let entry = Entry {
            file: Arc::clone(&file),
            path: Arc::clone(&path),
            dtype: info.dtype,
            shape: info.shape.into(),
            range: data.start + start..data.start + end,
            strides: None,
        };
        (name, entry)
    };
    Ok(header.tensors.into_iter().map(entry).collect())
}

/// What stands in front of the data of a file with these tensors: the header and its length.
///
/// # Errors
/// When a name or a shape can't be written as JSON.
pub(super) fn head(tensors: &BTreeMap<&str, TensorInfo>) -> io::Result<Vec<u8>> {
    // transformers refuses files that do not say which framework's layout theirs is.
    let mut header = BTreeMap::from([("__metadata__", json!({"format": "pt"}))]);
    for (name, info) in tensors {
        header.insert(name, serde_json::to_value(info)?);
    }
    let mut header = serde_json::to_vec(&header)?;
    // The data after it is to be aligned.
    header.resize(header.len().next_multiple_of(LENGTH_BYTES), b' ');
    Ok([&(header.len() as u64).to_le_bytes()[..], &header].concat())
}

/// The header's bytes, and where the data is.
fn split<'a>(path: &Path, file: &'a [u8]) -> Result<(&'a [u8], Range<usize>), ModelError> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        let found = format!("{} bytes", file.len());
        return Err(broken(path, "the file", "at least 8 bytes long", found));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_LIMIT {
        let path = path.to_owned();
        let what = "the header";
        return Err(ModelError::TooLarge { path, what, limit: HEADER_LIMIT, found: length });
    }
    let header = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let Some(header) = header else {
        let expected = format!("at most {} bytes long, which the file has after it", rest.len());
        return Err(broken(path, "the header", expected, format!("{length} bytes")));
    };
    Ok((header, LENGTH_BYTES + header.len()..file.len()))
}

/// The format wants tensors back to back, from the data's first byte to its last.
fn check_layout(
    path: &Path,
    tensors: &BTreeMap<String, TensorInfo>,
    data: usize,
) -> Result<(), ModelError> {
    let mut in_order: Vec<_> = tensors.iter().collect();
    in_order.sort_by_key(|(_, info)| info.data_offsets);
    let mut position = 0;
    for (name, info) in in_order {
        let what = || format!("the tensor '{name}'");
        let (start, end) = info.data_offsets;
        if start != position {
            return Err(broken(
                path,
                what(),
                format!("stored at offset {position}, where the one before it ends"),
                format!("at {start}"),
            ));
        }
        let Some(bytes) = bytes(info) else {
            let found = format!("of shape {:?}", info.shape);
            return Err(broken(path, what(), "countable in whole bytes", found));
        };
        if end.checked_sub(start) != Some(bytes) {
            let expected = format!("{bytes} bytes long, as its shape and format say");
            return Err(broken(
                path,
                what(),
                expected,
                format!("stored at offsets {start} to {end}"),
            ));
        }
        if end > data {
            let expected = format!("within the file's {data} bytes of data (is the file cut off?)");
            return Err(broken(path, what(), expected, format!("stored up to offset {end}")));
        }
        position = end;
    }
    if position != data {
        let expected = format!("{position} bytes long, which the tensors take");
        return Err(broken(path, "the data", expected, format!("{data} bytes")));
    }
    Ok(())
}

/// Bytes that a tensor of this shape and format takes.
fn bytes(info: &TensorInfo) -> Option<usize> {
    let bits = elements(&info.shape)?.checked_mul(info.dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

fn broken(
    path: &Path,
    what: impl Into<String>,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> ModelError {
    ModelError::Safetensors {
        path: path.to_owned(),
        what: what.into(),
        expected: expected.into(),
        found: found.into(),
    }
}
