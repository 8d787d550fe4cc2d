//! What is said of a model and of how it is loaded: the part of a builder that models which are loaded
//! later need as well.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vecmill_hub::{FetchError, Fetcher, ModelRef};
use vecmill_memory::PoolSettings;
use vecmill_model::{DType, Model, ModelError, Pooling};
use vecmill_scheduler::Speed;

use crate::error::StartError;
use crate::machine::threads;
use crate::request::Prompt;
use crate::stage::Stage;

/// Tokens of the inputs for which batches are sized.
const TYPICAL_LENGTH: f64 = 128.0;

/// Is told what is being done.
pub(crate) type Progress = Arc<dyn Fn(Stage) + Send + Sync>;

/// A model and how it is loaded.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) model: ModelRef,
    pub(crate) pooling: Option<Pooling>,
    pub(crate) default_prompt: Prompt,
    pub(crate) cache: Option<PathBuf>,
    pub(crate) hub_token: Option<String>,
    pub(crate) max_batch_tokens: usize,
    pub(crate) dtype: Option<DType>,
    pub(crate) cpu_threads: usize,
    pub(crate) memory_budget: Option<MemoryBudget>,
    pub(crate) set_aside: usize,
    pub(crate) memory: PoolSettings,
    pub(crate) warm_up: bool,
    pub(crate) batch_latency: Option<Duration>,
    pub(crate) refusal_recordings: Option<PathBuf>,
    pub(crate) progress: Progress,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model: ModelRef::default(),
            pooling: None,
            default_prompt: Prompt::Default,
            cache: None,
            hub_token: None,
            max_batch_tokens: 16_384,
            dtype: None,
            cpu_threads: threads(),
            memory_budget: None,
            set_aside: 0,
            memory: PoolSettings::default(),
            warm_up: false,
            batch_latency: None,
            refusal_recordings: None,
            progress: Arc::new(|_| {}),
        }
    }
}

impl Settings {
    /// The same for another model, of which nothing but its files says more.
    pub(crate) fn for_model(&self, model: ModelRef) -> Self {
        Self { model, default_prompt: Prompt::Default, pooling: None, ..self.clone() }
    }

    /// The model's id or folder, and its revision.
    pub(crate) fn model_name(&self) -> (String, Option<String>) {
        match &self.model {
            ModelRef::Hub { id, revision } => (id.clone(), revision.clone()),
            ModelRef::Folder(folder) => (folder.display().to_string(), None),
        }
    }

    /// The most tokens of a batch on a device of such a speed, which takes so many at most, for inputs as
    /// long as `longest`: that, or less where the device is at nearly full speed with less, or where more
    /// would take too long.
    pub(crate) fn batch_tokens(&self, speed: &Speed, longest: usize, most: usize) -> usize {
        match (self.batch_latency, speed.coefficients()) {
            (Some(bound), Some(model)) => {
                model.saturation_tokens(TYPICAL_LENGTH, bound, longest, most)
            }
            _ => most,
        }
    }

    /// The model's folder, fetched if it is not there.
    pub(crate) fn fetch(&self) -> Result<PathBuf, FetchError> {
        let progress = Arc::clone(&self.progress);
        let progress = Arc::new(move |stage: vecmill_hub::Stage| progress(stage.into()));
        Fetcher::new(self.cache.clone(), self.hub_token.clone(), progress).fetch(&self.model)
    }

    /// Opens the model in `folder`, and says what its files leave open.
    pub(crate) fn open(&self, folder: &Path) -> Result<Model, ModelError> {
        open(folder, self.pooling)
    }

    /// Opens the model in `folder` for what is the same whichever pooling is chosen when it is
    /// served.
    pub(crate) fn open_unserved(&self, folder: &Path) -> Result<Model, ModelError> {
        match self.open(folder) {
            Err(ModelError::Task { may_embed: true, .. }) => open(folder, Some(Pooling::Mean)),
            result => result,
        }
    }
}

fn open(folder: &Path, pooling: Option<Pooling>) -> Result<Model, ModelError> {
    let model = Model::open_as(folder, pooling)?;
    for warning in &model.warnings {
        tracing::warn!("{warning}");
    }
    Ok(model)
}

/// The most that weights and batches may take on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryBudget {
    /// So many bytes on each device.
    Bytes(usize),
    /// So many parts in a hundred of each device's memory.
    Percent(u8),
}

impl From<usize> for MemoryBudget {
    fn from(bytes: usize) -> Self {
        Self::Bytes(bytes)
    }
}

impl MemoryBudget {
    /// In bytes, on a device with `total`, where that is known.
    pub(crate) fn of(self, total: Option<usize>) -> Result<usize, StartError> {
        match (self, total) {
            (Self::Bytes(bytes), _) => Ok(bytes),
            (Self::Percent(percent), Some(total)) => Ok(total / 100 * usize::from(percent)),
            (Self::Percent(_), None) => Err(StartError::Setting {
                setting: "memory budget",
                reason:
                    "this system does not say how much memory there is: give a size such as 8GiB"
                        .into(),
            }),
        }
    }
}

/// The models' shares of the devices' time, by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shares(Vec<(String, f64)>);

impl Shares {
    pub(crate) fn set(&mut self, model: &str, weight: f64) {
        self.0.retain(|(name, _)| name != model);
        self.0.push((model.to_owned(), weight));
    }

    /// That of a model.
    pub(crate) fn of(&self, model: &str) -> f64 {
        self.0.iter().find(|(name, _)| name == model).map_or(1.0, |(_, weight)| *weight)
    }

    pub(crate) fn check(&self) -> Result<(), StartError> {
        match self.0.iter().find(|(_, weight)| !weight.is_finite() || *weight <= 0.0) {
            Some((name, weight)) => {
                let reason = format!("expected a weight above 0 for {name}, found {weight}");
                Err(StartError::Setting { setting: "share", reason })
            }
            None => Ok(()),
        }
    }
}
