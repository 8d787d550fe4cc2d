//! Models as they lie in a folder: configuration, pipeline and weights.
//!
//! - [`Config`] has the transformer's sizes; its [`Family`], a row of [`families`], finds its tensors and
//!   yields its [`Architecture`].
//! - [`Pipeline`] says what happens around it: length limit, pooling, dense layers, normalising.
//! - [`Task`] is what the model is for; a [`Classifier`] is a head of classification.
//! - [`TokenizerSettings`] is what is said of the tokenizer beside its own file.
//! - [`Weights`] finds tensors by name, in safetensors or in PyTorch's pickles (`pickle`), and hands
//!   them out as [`TensorView`]s of mapped files;
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
mod entry;
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
mod pickle;
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
pub use config::{Activation, Biases, Config, Sight};
pub use convert::{ConvertError, Rounding};
pub use error::ModelError;
pub use families::Family;
pub use file::{SETTINGS_LIMIT, has_file, read_file, read_optional_file};
pub use files::{
    CONFIG_FILE, INDEX_FILE, MODULES_FILE, OPTIONAL_FILES, PICKLE_FILE, PICKLE_INDEX_FILE,
    WEIGHTS_FILE, WEIGHTS_FILES,
};
pub use head::{Classifier, HeadLayer, ScoreActivation, Task};
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

/// A model in a folder, checked and ready to be loaded onto devices.
#[derive(Debug, Clone)]
pub struct Model {
    /// The folder of the transformer: its tokenizer is there. Mostly the model's own folder; some
    /// older models keep it in `0_Transformer`.
    pub folder: PathBuf,
    /// The transformer's sizes.
    pub config: Config,
    /// What happens before it, and after it where the model embeds.
    pub pipeline: Pipeline,
    /// What it is for.
    pub task: Task,
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
    /// model is for something that is not served.
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
        let weights = weights.with_prefix_of(config.family.words, config.family.prefixes)?;
        let (chosen, found) = (pooling.is_some(), (&config, &weights));
        let task = head::made_for(&modules, &file, found, chosen, &mut warnings)?;
        let embeds = matches!(task, Task::Embed);
        leftovers::check(&modules, (embeds, chosen), &mut warnings)?;
        let folder = transformer.to_owned();
        Ok(Self { folder, config, pipeline, task, weights, warnings })
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

    /// Numbers of one text that are given out.
    pub fn dimensions(&self) -> usize {
        self.pipeline.truncate.map_or(self.row(), |kept| kept.min(self.row()))
    }

    /// Numbers that are computed of one text: of an embedding, before it is cut; or a score for each
    /// label.
    pub fn row(&self) -> usize {
        if let Task::Classify(head) = &self.task {
            return head.labels.len();
        }
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
