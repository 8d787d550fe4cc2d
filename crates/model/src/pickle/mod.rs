//! Weights that PyTorch has pickled: `pytorch_model.bin`, and the `.pt` files of single layers.
//!
//! - `archive` finds the parts of the zip file that torch has written since 1.6, `legacy` those of
//!   the form before.
//! - `machine` runs the pickle, whose bytes `code` reads, and makes `values` of it. What it can refer
//!   to is in `globals`: nothing is imported and nothing of the file's is called.
//! - `tensors` finds the bytes of what came of it.
//!
//! The choice behind it: a pickle is a program, and the reference's machine can be told to do
//! anything. But what `torch.save` writes for a table of tensors takes few instructions and a dozen
//! names. So this machine has those alone, makes of them a table of places, and refuses the rest by
//! name. The weights stay where they are and are mapped, as those of safetensors are.

mod archive;
mod code;
mod globals;
mod legacy;
mod machine;
mod tensors;
mod values;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::ModelError;
use super::entry::Entry;
use super::file;
use super::mapped::MappedFile;

/// The most bytes of a pickle, without its tensors' numbers. A tensor takes some 200; this is room for
/// tens of thousands.
const LIMIT: usize = 8 << 20;

/// Maps the file at `path` and gives its tensors by name.
pub(super) fn open(path: &Path) -> Result<BTreeMap<String, Entry>, ModelError> {
    let file = Arc::new(MappedFile::open(path)?);
    let is_zip = file.starts_with(archive::MAGIC);
    if let Some(found) = file::stand_in(&file).filter(|_| !is_zip) {
        return Err(ModelError::StandIn { path: path.to_owned(), found });
    }
    let places = if is_zip { archive::read(&file) } else { legacy::read(&file) };
    let places = places.map_err(|fault| fault.of(path))?;
    let path = Arc::<Path>::from(path);
    let entry = |(name, place): (&str, tensors::Place)| {
        let entry = Entry {
            file: Arc::clone(&file),
            path: Arc::clone(&path),
            dtype: place.dtype,
            shape: place.shape.into(),
            range: place.range,
            strides: place.strides.map(Arc::from),
        };
        (name.to_owned(), entry)
    };
    Ok(places.into_iter().map(entry).collect())
}

/// What is wrong in a file.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    what: String,
    expected: String,
    found: String,
}

impl Fault {
    fn new(what: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { what: what.into(), expected: expected.into(), found: found.into() }
    }

    fn of(self, path: &Path) -> ModelError {
        let Self { what, expected, found } = self;
        ModelError::Pickle { path: path.to_owned(), what, expected, found }
    }
}
