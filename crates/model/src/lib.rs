//! Models as they lie in a folder: configuration, pipeline and weights.
//!
//! - [`Config`] has the transformer's sizes; its [`Family`], a row of [`families`], finds its tensors and
//!   yields its [`Architecture`].
//! - [`Pipeline`] says what happens around it: length limit, pooling, dense layers, normalising.
//! - [`TokenizerSettings`] is what is said of the tokenizer beside its own file.
//! - [`Weights`] finds tensors by name and hands them out as [`TensorView`]s of mapped files;
//!   [`Weights::write_as`] writes them in another number format.
//! - [`OPTIONAL_FILES`] and its neighbours say which files make a model.
//! - [`JsonFile`] reads settings, and a table (`keys`) says of each of their keys what is done.
//!
//! The choice behind it: architectures differ in data, not in code, so that one forward pass runs them
//! all. Nothing here knows of devices, memory or what computes. Files are taken as hostile: whatever they say is checked against a bound and
//! against the bytes that are really there before anything is sized by it.

mod architecture;
mod config;
mod convert;
pub mod e4m3;
mod error;
pub mod families;
mod file;
mod files;
mod head;
mod json;
mod keys;
mod leftovers;
mod mapped;
mod modules;
mod pipeline;
mod pooling;
mod rotary;
mod safetensors;
mod tensor;
mod tokenizing;
mod warning;
mod weight;
mod weights;

use std::path::{Path, PathBuf};

pub use architecture::{
    Architecture, Attention, Bias, Buckets, Embedding, FeedForward, Heads, Layer, Linear, Norm,
    Order, Window,
};
pub use config::{Activation, Config};
pub use convert::{ConvertError, Rounding};
pub use error::ModelError;
pub use families::Family;
pub use file::{SETTINGS_LIMIT, has_file, read_file, read_optional_file};
pub use files::{CONFIG_FILE, INDEX_FILE, MODULES_FILE, OPTIONAL_FILES, WEIGHTS_FILE};
pub use json::{Json, JsonError, JsonFile};
pub use pipeline::{Dense, Pipeline};
pub use pooling::{Pooling, Poolings, UnknownPooling};
pub use rotary::{Rotary, RotaryScaling};
pub use tensor::{DType, TensorView};
pub use tokenizing::{AddedToken, TokenizerSettings};
pub use warning::Warning;
pub use weight::{Weight, WeightShape};
pub use weights::Weights;

use modules::Modules;

/// A model goes between threads.
const _: () = {
    const fn both<T: Send + Sync>() {}
    both::<Model>();
    both::<Architecture>();
    both::<ModelError>();
};

/// Its example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// A model in a folder, checked and ready to be loaded onto devices.
#[derive(Debug, Clone)]
pub struct Model {
    /// The folder of the transformer: its tokenizer is there. Mostly the model's own folder; some
    /// older models keep it in `0_Transformer`.
    pub folder: PathBuf,
    /// The transformer's sizes.
    pub config: Config,
    /// What happens before and after it.
    pub pipeline: Pipeline,
    /// The transformer's tensors.
    pub weights: Weights,
    /// What its files leave open, or ask for in vain: for its user to read.
    pub warnings: Vec<Warning>,
}

impl Model {
    /// Opens the model in `folder`. Weights are mapped, not read.
    ///
    /// # Errors
    /// When a file is missing or broken, or says something that vecmill doesn't do, or the folder's
    /// model is for something else than embedding.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        Self::open_as(folder, None)
    }

    /// As [`open`](Self::open), with a `pooling` that the model's user has chosen in place of its
    /// own: then also a language model that was not trained to embed.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_as(folder: &Path, pooling: Option<Pooling>) -> Result<Self, ModelError> {
        Self::read(folder, pooling).map_err(file::explained)
    }

    fn read(folder: &Path, pooling: Option<Pooling>) -> Result<Self, ModelError> {
        let mut warnings = Vec::new();
        let modules = Modules::open(folder, &mut warnings)?;
        let transformer = modules.transformer();
        refuse_adapter(transformer)?;
        let file = JsonFile::open(&transformer.join(CONFIG_FILE))?;
        let config = Config::read(&file, &mut warnings)?;
        let pipeline = Pipeline::open(&modules, &config, pooling, &mut warnings)?;
        let weights = Weights::open(transformer)?;
        let weights = weights.with_prefix_of(families::WORDS, config.family.prefixes)?;
        if !modules.listed {
            let chosen = pooling.is_some();
            head::check(&file, &weights, transformer, chosen, &mut warnings)?;
        }
        leftovers::check(&modules, pooling.is_some(), &mut warnings)?;
        let folder = transformer.to_owned();
        Ok(Self { folder, config, pipeline, weights, warnings })
    }

    /// What the transformer computes, with all its tensors.
    ///
    /// # Errors
    /// When a tensor is missing, or has another shape than `config.json` says, or isn't of F32, F16 or
    /// BF16.
    pub fn architecture(&self) -> Result<Architecture, ModelError> {
        let tensors = families::Tensors::new(&self.weights, self.config.epsilon);
        (self.config.family.read)(&self.config, &tensors)
    }

    /// Makes sure that no file of weights was changed since it was opened: to be asked when all that
    /// is needed of them has been read.
    ///
    /// # Errors
    /// [`ModelError::Changed`].
    pub fn check_unchanged(&self) -> Result<(), ModelError> {
        self.weights.check_unchanged()?;
        self.pipeline.dense.iter().try_for_each(|dense| dense.weight.check_unchanged())
    }

    /// The most tokens that one input may have: the pipeline's limit, or the transformer's.
    pub fn max_input_tokens(&self) -> usize {
        self.pipeline.max_tokens.min(self.config.max_tokens())
    }

    /// Numbers in one embedding.
    pub fn dimensions(&self) -> usize {
        self.pipeline.truncate.map_or(self.row(), |kept| kept.min(self.row()))
    }

    /// Numbers that are computed of one embedding, before it is cut.
    pub fn row(&self) -> usize {
        let pooled = self.config.hidden * self.pipeline.pooling.count();
        self.pipeline.dense.last().map_or(pooled, Dense::outputs)
    }
}

/// Refuses weights that only change those of another model.
fn refuse_adapter(folder: &Path) -> Result<(), ModelError> {
    for name in files::ADAPTERS {
        let path = folder.join(name);
        if has_file(&path)? {
            return Err(ModelError::Adapter { path });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
