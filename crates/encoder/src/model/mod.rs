//! Models as they lie in a folder: configuration, pipeline and weights.
//!
//! - [`Config`] says what the transformer computes; [`Names`] says what its tensors are called.
//! - [`Pipeline`] says what happens around it: length limit, pooling, dense layers, normalising.
//! - [`Weights`] finds tensors by name and hands them out as [`TensorView`]s of mapped files;
//!   [`Weights::write_as`] writes them in another number format.
//!
//! The choice behind it: architectures differ in data, not in code. A family is one row of a table
//! (its configuration's keys, its tensors' names, where its positions start), so that one forward
//! pass runs them all. Files are taken as hostile: whatever they say is checked against a bound and
//! against the bytes that are really there before anything is sized by it.

mod config;
mod convert;
mod error;
mod family;
mod file;
mod json;
mod pipeline;
mod safetensors;
mod tensor;
mod weights;

use std::path::{Path, PathBuf};

pub use config::{Activation, Config};
pub use convert::{ConvertError, Rounding};
pub use error::ModelError;
pub use family::{Family, Names};
pub use file::{SETTINGS_LIMIT, has_file, read_file, read_optional_file};
pub use pipeline::{Dense, Pipeline, Pooling, UnknownPooling};
pub use tensor::{DType, TensorView};
pub use weights::Weights;

/// A model in a folder, checked and ready to be loaded onto devices.
#[derive(Debug, Clone)]
pub struct Model {
    /// The folder of the transformer: its tokenizer is there. Mostly the model's own folder; some
    /// older models keep it in `0_Transformer`.
    pub folder: PathBuf,
    /// What the transformer computes.
    pub config: Config,
    /// What happens before and after it.
    pub pipeline: Pipeline,
    /// The transformer's tensors.
    pub weights: Weights,
}

impl Model {
    /// Opens the model in `folder`. Weights are mapped, not read.
    ///
    /// # Errors
    /// When a file is missing or broken, or says something that vecmill doesn't do.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let modules = pipeline::Modules::open(folder)?;
        let folder = modules.transformer().to_owned();
        let config = Config::open(&folder)?;
        let pipeline = modules.pipeline(&config)?;
        let weights = Weights::open(&folder)?.with_prefix_of(config.names().word_embeddings);
        Ok(Self { folder, config, pipeline, weights })
    }

    /// The most tokens that one input may have: the pipeline's limit, or the transformer's.
    pub fn max_input_tokens(&self) -> usize {
        self.pipeline.max_tokens.min(self.config.max_tokens())
    }

    /// Numbers in one embedding.
    pub fn dimensions(&self) -> usize {
        self.pipeline.dense.last().map_or(self.config.hidden, Dense::outputs)
    }
}

#[cfg(test)]
mod tests;
