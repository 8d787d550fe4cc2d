//! Tensors by name, from one file or several, of safetensors or PyTorch's pickles.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::Dtype;

use super::ModelError;
use super::entry::Entry;
use super::file::{has_file, names_in, read_file};
use super::files::{INDEX_FILE, WEIGHTS_FILE, WEIGHTS_FILES};
use super::json::{Json, JsonFile, join_inside};
use super::keys::{self, Kind};
use super::pickle;
use super::safetensors as container;
use super::tensor::{DType, TensorView, elements, widened};

/// Room for the names of tens of thousands of tensors.
const INDEX_LIMIT: u64 = 8 << 20;

/// Each shard is a mapping; the largest models have a few hundred.
const SHARDS_LIMIT: usize = 1024;

/// What may stand in front of the names that a family spells, beside its own prefixes.
const PREFIXES: [&str; 5] = ["", "model.", "auto_model.", "0.auto_model.", "0.model."];

/// Gives the tensors of a file by name.
type Read = fn(&Path) -> Result<BTreeMap<String, Entry>, ModelError>;

/// The tensors of a folder. Clones share them.
#[derive(Debug, Clone)]
pub struct Weights {
    /// The file that errors about missing tensors name.
    pub(super) path: PathBuf,
    prefix: &'static str,
    pub(super) tensors: Arc<BTreeMap<String, Entry>>,
}

impl Weights {
    /// Maps `model.safetensors` in `folder`, or the shards that its index names; where there is
    /// neither, `pytorch_model.bin` or its shards.
    ///
    /// # Errors
    /// When a file is missing or contradicts itself.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let read: [Read; WEIGHTS_FILES.len()] = [container::open, pickle::open];
        for (names, read) in WEIGHTS_FILES.into_iter().zip(read) {
            let [single, index] = names.map(|name| folder.join(name));
            if has_file(&single)? {
                return Self::read(&single, read);
            }
            if has_file(&index)? {
                return Self::read_shards(folder, index, read);
            }
        }
        let is_shard = |name: &String| name.starts_with("model-") && name.ends_with(".safetensors");
        let shards = names_in(folder).iter().any(is_shard);
        let missing = if shards { INDEX_FILE } else { WEIGHTS_FILE };
        Err(ModelError::MissingFile { path: folder.join(missing) })
    }

    /// Maps one file of tensors: safetensors by its name, and any other as PyTorch's pickle, such as
    /// the `.pt` files of single layers.
    ///
    /// # Errors
    /// When the file is missing or contradicts itself.
    pub fn open_file(path: &Path) -> Result<Self, ModelError> {
        let is_safetensors = path.extension().is_some_and(|extension| extension == "safetensors");
        Self::read(path, if is_safetensors { container::open } else { pickle::open })
    }

    fn read(path: &Path, read: Read) -> Result<Self, ModelError> {
        Ok(Self { path: path.to_owned(), prefix: "", tensors: Arc::new(read(path)?) })
    }

    fn read_shards(folder: &Path, index: PathBuf, read: Read) -> Result<Self, ModelError> {
        let file = JsonFile::parse(&index, &read_file(&index, INDEX_LIMIT)?)?;
        keys::check(&file, Kind::Index, &mut Vec::new())?;
        let key = "weight_map";
        let wrong = || {
            let expected = format!("an object from tensors to names of 1 to {SHARDS_LIMIT} files");
            file.wrong(key, expected)
        };
        let map = file.get(key).and_then(Json::as_object).ok_or_else(wrong)?;
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, shard) in map {
            shards.entry(shard.as_text().ok_or_else(wrong)?).or_default().push(tensor);
        }
        if !(1..=SHARDS_LIMIT).contains(&shards.len()) {
            return Err(wrong());
        }
        let mut tensors = BTreeMap::new();
        for (shard, promised) in shards {
            let path = join_inside(folder, shard, &index)?;
            let found = read(&path)?;
            if let Some(tensor) = promised.into_iter().find(|tensor| !found.contains_key(*tensor)) {
                return Err(ModelError::MissingTensor { path, tensor: tensor.to_owned() });
            }
            if let Some(first) = found.keys().find(|tensor| tensors.contains_key(*tensor)) {
                let (first, second) = (first.clone(), format!("{first} in {shard}"));
                return Err(ModelError::Twice { path: index, first, second });
            }
            tensors.extend(found);
        }
        Ok(Self { path: index, prefix: "", tensors: Arc::new(tensors) })
    }

    /// With the prefix under which the tensor `name` is there, of a family's `own` or a common one.
    ///
    /// # Errors
    /// When it is there under several: which one is meant?
    pub(super) fn with_prefix_of(
        mut self,
        name: &str,
        own: &'static [&'static str],
    ) -> Result<Self, ModelError> {
        let there = |prefix: &&str| self.tensors.contains_key(&format!("{prefix}{name}"));
        let mut prefixes = PREFIXES.into_iter().chain(own.iter().copied()).filter(there);
        let first = prefixes.next();
        if let (Some(first), Some(second)) = (first, prefixes.next()) {
            let [first, second] = [first, second].map(|prefix| format!("{prefix}{name}"));
            return Err(ModelError::Twice { path: self.path, first, second });
        }
        drop(prefixes);
        self.prefix = first.unwrap_or_default();
        Ok(self)
    }

    /// Makes sure that no file was changed since it was opened: to be asked when what is needed of
    /// the tensors has been read.
    ///
    /// # Errors
    /// [`ModelError::Changed`].
    pub fn check_unchanged(&self) -> Result<(), ModelError> {
        let mut files: Vec<_> = self.tensors.values().map(|entry| &entry.file).collect();
        files.dedup_by_key(|file| Arc::as_ptr(file));
        files.into_iter().try_for_each(|file| file.check_unchanged())
    }

    /// Whether a tensor of this whole name is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The same tensors, found by their whole names.
    pub(super) fn whole_names(&self) -> Self {
        Self { prefix: "", ..self.clone() }
    }

    /// The shape of the tensor `name`, if it is there.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        let entry = self.tensors.get(&format!("{}{name}", self.prefix))?;
        Some(&entry.shape)
    }

    /// The whole names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor `name` (without the prefix that all names in the file share). One whose numbers don't
    /// lie row by row is copied, in single precision.
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
        if entry.strides.is_some() {
            // Exact, whatever the format was.
            let values = widened(&entry.bytes(), dtype).into_owned();
            return TensorView::from_f32(&tensor, shape, values);
        }
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
