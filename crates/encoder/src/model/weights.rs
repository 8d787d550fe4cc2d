//! Tensors by name, from one safetensors file or several.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::Dtype;
use serde_json::Value;

use super::ModelError;
use super::file::{has_file, read_file};
use super::json::{JsonFile, join_inside, parse};
use super::safetensors::{self as container, Entry};
use super::tensor::{DType, TensorView, elements};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const PICKLE: &str = "pytorch_model.bin";

/// Room for the names of tens of thousands of tensors.
const INDEX_LIMIT: u64 = 8 << 20;

/// Each shard is a mapping; the largest models have a few hundred.
const SHARDS_LIMIT: usize = 1024;

/// What checkpoints put in front of the names that [`Names`](super::Names) knows.
const PREFIXES: [&str; 9] = [
    "",
    "bert.",
    "roberta.",
    "distilbert.",
    "mpnet.",
    "model.",
    "auto_model.",
    "0.auto_model.",
    "0.model.",
];

/// The tensors of a folder. Clones share them.
#[derive(Debug, Clone)]
pub struct Weights {
    /// The file that errors about missing tensors name.
    pub(super) path: PathBuf,
    prefix: &'static str,
    pub(super) tensors: Arc<BTreeMap<String, Entry>>,
}

impl Weights {
    /// Maps `model.safetensors` in `folder`, or the shards that its index names.
    ///
    /// # Errors
    /// When a file is missing or contradicts itself.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let single = folder.join(SINGLE);
        if has_file(&single)? {
            let tensors = Arc::new(container::open(&single)?);
            return Ok(Self { path: single, prefix: "", tensors });
        }
        let index = folder.join(INDEX);
        if has_file(&index)? {
            return Self::open_shards(folder, index);
        }
        let pickle = folder.join(PICKLE);
        if has_file(&pickle)? {
            return Err(ModelError::Pickle { path: pickle });
        }
        Err(ModelError::MissingFile { path: single })
    }

    fn open_shards(folder: &Path, index: PathBuf) -> Result<Self, ModelError> {
        let file = JsonFile::part(&index, parse(&index, &read_file(&index, INDEX_LIMIT)?)?);
        let key = "weight_map";
        let map = file.get(key).and_then(Value::as_object);
        let shards: Option<BTreeSet<&str>> =
            map.and_then(|map| map.values().map(Value::as_str).collect());
        let Some(shards) = shards.filter(|shards| (1..=SHARDS_LIMIT).contains(&shards.len()))
        else {
            let expected = format!("an object from tensors to names of 1 to {SHARDS_LIMIT} files");
            return Err(file.wrong(key, expected));
        };
        let mut tensors = BTreeMap::new();
        for shard in shards {
            tensors.append(&mut container::open(&join_inside(folder, shard, &index)?)?);
        }
        Ok(Self { path: index, prefix: "", tensors: Arc::new(tensors) })
    }

    /// With the prefix under which the tensor `name` is there.
    #[must_use]
    pub(super) fn with_prefix_of(mut self, name: &str) -> Self {
        let there = |prefix: &&str| self.tensors.contains_key(&format!("{prefix}{name}"));
        self.prefix = PREFIXES.into_iter().find(there).unwrap_or_default();
        self
    }

    /// The tensor `name` (without the prefix that all names in the file share).
    ///
    /// # Errors
    /// When it is missing, or has another shape than `shape`, or isn't of F32, F16 or BF16.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorView, ModelError> {
        let tensor = format!("{}{name}", self.prefix);
        let Some(entry) = self.tensors.get(&tensor) else {
            return Err(ModelError::MissingTensor { path: self.path.clone(), tensor });
        };
        let path = || entry.path.to_path_buf();
        if *entry.shape != *shape {
            let (expected, found) = (shape.to_vec(), entry.shape.to_vec());
            return Err(ModelError::Shape { path: path(), tensor, expected, found });
        }
        let Some(dtype) = dtype(entry.dtype) else {
            let found = format!("{:?}", entry.dtype);
            return Err(ModelError::NumberFormat { path: path(), tensor, found });
        };
        let (shape, file) = (Arc::clone(&entry.shape), Arc::clone(&entry.file));
        Ok(TensorView::mapped(&tensor, dtype, shape, file, entry.range.clone()))
    }

    /// A projection's weight, `[outputs, inputs]`, and bias, `[outputs]`.
    ///
    /// # Errors
    /// As for [`tensor`](Self::tensor).
    pub fn linear(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<(TensorView, TensorView), ModelError> {
        let weight = self.tensor(&format!("{name}.weight"), &[outputs, inputs])?;
        Ok((weight, self.tensor(&format!("{name}.bias"), &[outputs])?))
    }

    /// A layer norm's weight and bias, both `[size]`; older files call them gamma and beta.
    ///
    /// # Errors
    /// As for [`tensor`](Self::tensor).
    pub fn norm(&self, name: &str, size: usize) -> Result<(TensorView, TensorView), ModelError> {
        let either = |new: &str, old: &str| match self.tensor(&format!("{name}.{new}"), &[size]) {
            Err(missing @ ModelError::MissingTensor { .. }) => {
                match self.tensor(&format!("{name}.{old}"), &[size]) {
                    Err(ModelError::MissingTensor { .. }) => Err(missing),
                    result => result,
                }
            }
            result => result,
        };
        Ok((either("weight", "gamma")?, either("bias", "beta")?))
    }

    /// Bytes that all floating-point tensors of the files take as `dtype`, those included that the
    /// forward pass doesn't need.
    pub fn bytes_as(&self, dtype: DType) -> usize {
        let numbers = |entry: &Entry| {
            if self::dtype(entry.dtype).is_some() { elements(&entry.shape).unwrap_or(0) } else { 0 }
        };
        let total = self.tensors.values().map(numbers).fold(0, usize::saturating_add);
        total.saturating_mul(dtype.bytes())
    }
}

pub(super) fn dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}
