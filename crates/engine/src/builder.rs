//! Settings of an engine, and its start.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vecmill_encoder::Limits;
use vecmill_memory::{GiveBack, PoolSettings};
use vecmill_model::{CONFIG_FILE, DType, Model, ModelError, Pipeline, Pooling, Task};
use vecmill_scheduler::{ClassId, DeviceSettings, policy};

use crate::devices::{DeviceSpec, MemoryBudget};
use crate::engine::{Core, Engine, Loader, Parts};
use crate::error::StartError;
use crate::experiment::Experiment;
use crate::info::{DeviceSummary, Info};
use crate::machine::threads;
use crate::metrics::{self, Metrics};
use crate::models::{Models, Served};
use crate::practice;
use crate::queue::Queue;
use crate::request::Prompt;
use crate::sensors::Watched;
use crate::stage::Stage;
use crate::tokenize::Tokenizer;
use vecmill_hub::{FetchError, Fetcher, ModelRef};

/// The class of the first model's work.
const CLASS: ClassId = ClassId::FIRST;

/// Configures and starts an [`Engine`].
///
/// ```no_run
/// use vecmill_engine::{Engine, Request, ModelRef};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let engine = Engine::builder().model("intfloat/e5-small-v2".parse()?).start()?;
/// let reply = engine.embed_blocking(Request::new(["a quick brown fox"]))?;
/// assert_eq!(reply.embeddings[0].vector.len(), 384);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Builder {
    /// None stands for the default one alone.
    models: Vec<ModelRef>,
    pub(crate) cache: Option<PathBuf>,
    hub_token: Option<String>,
    pub(crate) pooling: Option<Pooling>,
    default_prompt: Prompt,
    pub(crate) max_batch_tokens: usize,
    queue_capacity: usize,
    tokenization_workers: usize,
    policy: String,
    experiment: Option<(Vec<String>, Duration)>,
    pub(crate) devices: Vec<DeviceSpec>,
    pub(crate) dtype: Option<DType>,
    pub(crate) cpu_threads: usize,
    pub(crate) memory_budget: Option<MemoryBudget>,
    pub(crate) set_aside: usize,
    pub(crate) memory: PoolSettings,
    pub(crate) warm_up: bool,
    pub(crate) batch_latency: Option<Duration>,
    pub(crate) refusal_traces: Option<PathBuf>,
    pub(crate) progress: Progress,
}

type Progress = Arc<dyn Fn(Stage) + Send + Sync>;

impl Default for Builder {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            cache: None,
            hub_token: None,
            pooling: None,
            default_prompt: Prompt::Default,
            max_batch_tokens: 16_384,
            queue_capacity: 16_384,
            tokenization_workers: threads(),
            policy: policy::names().next().unwrap_or_default().to_owned(),
            experiment: None,
            devices: vec![DeviceSpec::Auto],
            dtype: None,
            cpu_threads: threads(),
            memory_budget: None,
            set_aside: 0,
            memory: PoolSettings::default(),
            warm_up: false,
            batch_latency: None,
            refusal_traces: None,
            progress: Arc::new(|_| {}),
        }
    }
}

/// Does `aside` on a thread of its own while this one does `here`.
fn both<A: Send, B>(
    aside: impl FnOnce() -> A + Send,
    here: impl FnOnce() -> B,
) -> std::io::Result<(A, B)> {
    std::thread::scope(|scope| {
        let aside = std::thread::Builder::new().spawn_scoped(scope, aside)?;
        let here = here();
        Ok((aside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), here))
    })
}

impl fmt::Debug for Builder {
    // The hub token is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("models", &self.models).finish_non_exhaustive()
    }
}

impl Engine {
    /// Settings for a new engine, all at their defaults.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

impl Builder {
    /// A model to run; given several times, they share the devices, and the first is the one that
    /// requests are for that name none. The default is `sentence-transformers/all-MiniLM-L6-v2` alone.
    ///
    /// [`pooling`](Self::pooling) and [`default_prompt`](Self::default_prompt) are the first one's; others
    /// do as their files say.
    #[must_use]
    pub fn model(mut self, model: ModelRef) -> Self {
        self.models.push(model);
        self
    }

    /// Where fetched models are kept (default: the user's cache folder).
    #[must_use]
    pub fn cache(self, folder: PathBuf) -> Self {
        Self { cache: Some(folder), ..self }
    }

    /// Token for the Hugging Face hub.
    #[must_use]
    pub fn hub_token(self, token: String) -> Self {
        Self { hub_token: Some(token), ..self }
    }

    /// Overrides how the model makes one vector of its tokens' vectors.
    #[must_use]
    pub fn pooling(self, pooling: Pooling) -> Self {
        Self { pooling: Some(pooling), ..self }
    }

    /// The prompt of requests that name none; [`Prompt::Default`] is the model's own default.
    #[must_use]
    pub fn default_prompt(self, default_prompt: Prompt) -> Self {
        Self { default_prompt, ..self }
    }

    /// The most tokens in one batch (default 16,384). Devices may prefer smaller batches.
    #[must_use]
    pub fn max_batch_tokens(self, max_batch_tokens: usize) -> Self {
        Self { max_batch_tokens, ..self }
    }

    /// Finds for each device, by batches of practice, how many tokens its batches shall have: so many
    /// that its speed is nearly full, but none that takes longer than `latency`; and no more than
    /// [`max_batch_tokens`](Self::max_batch_tokens).
    #[must_use]
    pub fn auto_batch_tokens(self, latency: Duration) -> Self {
        Self { batch_latency: Some(latency), ..self }
    }

    /// The most inputs that may be accepted and not yet answered (default 16,384).
    #[must_use]
    pub fn queue_capacity(self, queue_capacity: usize) -> Self {
        Self { queue_capacity, ..self }
    }

    /// Threads that tokenise (default: one per core).
    #[must_use]
    pub fn tokenization_workers(self, tokenization_workers: usize) -> Self {
        Self { tokenization_workers, ..self }
    }

    /// Which device gets which work, by the name of a policy (default `earliest-finish`):
    /// [`vecmill_scheduler::policy`] has them.
    #[must_use]
    pub fn policy(self, name: &str) -> Self {
        Self { policy: name.to_owned(), ..self }
    }

    /// Has policies take turns of `window` each, in place of one, and counts for each in the metrics
    /// (`vecmill_experiment_*`) what it achieved.
    #[must_use]
    pub fn policy_experiment(self, policies: Vec<String>, window: Duration) -> Self {
        Self { experiment: Some((policies, window)), ..self }
    }

    /// Where batches run (default: [`DeviceSpec::Auto`]). Several devices share one queue.
    #[must_use]
    pub fn devices(self, devices: Vec<DeviceSpec>) -> Self {
        Self { devices, ..self }
    }

    /// The number format that devices compute in (default: half precision on GPUs, single precision
    /// on the CPU).
    #[must_use]
    pub fn dtype(self, dtype: DType) -> Self {
        Self { dtype: Some(dtype), ..self }
    }

    /// Threads that compute on the CPU (default: one per core).
    #[must_use]
    pub fn cpu_threads(self, cpu_threads: usize) -> Self {
        Self { cpu_threads, ..self }
    }

    /// The most that weights and batches may take on each device (default: nine tenths of what is
    /// free at the start; on the CPU, [`Memory::usable_bytes`](crate::machine::Memory::usable_bytes)).
    #[must_use]
    pub fn memory_budget(self, budget: impl Into<MemoryBudget>) -> Self {
        Self { memory_budget: Some(budget.into()), ..self }
    }

    /// Bytes of the machine's memory that are for something else, such as a server's requests
    /// (default 0). The CPU's budget is less by so much, unless it is given in bytes.
    #[must_use]
    pub fn set_aside(self, set_aside: usize) -> Self {
        Self { set_aside, ..self }
    }

    /// When memory that no batch needs is given back (default: after 60 seconds).
    #[must_use]
    pub fn memory_give_back(mut self, give_back: GiveBack) -> Self {
        self.memory.give_back = give_back;
        self
    }

    /// Whether memory is made ready ahead of demand, as experience suggests (default: yes).
    #[must_use]
    pub fn memory_predict(mut self, predict: bool) -> Self {
        self.memory.predict = predict;
        self
    }

    /// Whether each device runs batches of practice before the engine is ready (default: no). It
    /// takes some seconds on a GPU: kernels are compiled, the fastest ways chosen, and batch times
    /// learned, all of which the first requests would otherwise wait for.
    #[must_use]
    pub fn warm_up(self, warm_up: bool) -> Self {
        Self { warm_up, ..self }
    }

    /// A folder into which a trace of a device's memory is written when a batch was refused some:
    /// at most one file a minute, and no more once 16 are there.
    #[must_use]
    pub fn memory_trace_on_refusal(self, folder: PathBuf) -> Self {
        Self { refusal_traces: Some(folder), ..self }
    }

    /// Is told what is being done while the engine starts.
    #[must_use]
    pub fn on_progress(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }

    /// Fetches the model if it is not there, loads it and starts the workers. Takes as long as
    /// that takes; call it from a thread that may block.
    ///
    /// # Errors
    /// [`StartError`] says what is missing or wrong and what to do.
    pub fn start(self) -> Result<Engine, StartError> {
        let engine = self.start_in(&self.fetch()?)?;
        for model in self.models.iter().skip(1) {
            engine.load(model.clone())?;
        }
        (self.progress)(Stage::Ready);
        Ok(engine)
    }

    /// The model's folder, fetched if it is not there.
    pub(crate) fn fetch(&self) -> Result<PathBuf, FetchError> {
        let progress = Arc::clone(&self.progress);
        let progress = Arc::new(move |stage: vecmill_hub::Stage| progress(stage.into()));
        Fetcher::new(self.cache.clone(), self.hub_token.clone(), progress).fetch(&self.first())
    }

    /// Opens the model in `folder` for what is the same whichever pooling is chosen when it is
    /// served.
    pub(crate) fn open_unserved(&self, folder: &Path) -> Result<Model, ModelError> {
        match open_model(folder, self.pooling) {
            Err(ModelError::Task { may_embed: true, .. }) => {
                open_model(folder, Some(Pooling::Mean))
            }
            result => result,
        }
    }

    fn start_in(&self, folder: &Path) -> Result<Engine, StartError> {
        self.check()?;
        let policy = policy::by_name(&self.policy).map_err(|error| StartError::Setting {
            setting: "policy",
            reason: error.to_string(),
        })?;
        let model = open_model(folder, self.pooling)?;
        let max_tokens = model.max_input_tokens();
        // The tokenizer's file and the weights are read side by side: each takes about as long.
        let (tokenizer, devices) = both(
            || Tokenizer::open(&model.folder, &model.pipeline, max_tokens),
            || self.open(&model),
        )
        .map_err(StartError::Thread)?;
        let (mut workers, mut infos, mut speeds, mut kept) = (vec![], vec![], vec![], vec![]);
        let mut places = vec![];
        let mut watched = vec![];
        let devices = devices?;
        model.check_unchanged()?;
        for (index, device) in devices.into_iter().enumerate() {
            let worker = &device.worker;
            watched.extend(device.sensors.map(|sensors| {
                let device = Arc::clone(worker);
                Watched { index, device, sensors }
            }));
            workers.push(device.worker);
            infos.push(device.info);
            speeds.push(device.speed);
            kept.push(device.kept);
            places.push(device.place);
        }
        let first = workers.first().ok_or_else(no_device)?;
        let tokenizers = rayon::ThreadPoolBuilder::new()
            .num_threads(self.tokenization_workers)
            .thread_name(|index| format!("tokenize-{index}"))
            // Tasks don't panic; one that did all the same would end the process.
            .panic_handler(|_| tracing::error!("a tokenising task panicked: please report this"))
            .build()
            .map_err(|error| StartError::Thread(std::io::Error::other(error)))?;
        let devices = workers.iter().zip(speeds).map(|(device, speed)| {
            let (batch_tokens, in_flight) = (device.batch_tokens(CLASS), device.in_flight());
            let settings = DeviceSettings { batch_tokens, in_flight, speed };
            (device.name().to_owned(), settings)
        });
        let devices: Vec<_> = devices.collect();
        let largest =
            devices.iter().map(|(_, device)| device.batch_tokens).max().unwrap_or_default();
        let tokenizer = tokenizer?;
        let (before, after) = tokenizer.special_tokens();
        let info = Info {
            tokens_before: before.to_vec(),
            tokens_after: after.to_vec(),
            ..self.info(&model, largest, infos)
        };
        let experiment = self.experiment.clone().map(|(policies, window)| {
            Arc::new(Experiment::new(policies, window, metrics::seconds))
        });
        let limits = first.limits(CLASS).ok_or_else(no_device)?;
        let texts = practice::texts(&tokenizer, limits.vocabulary)?;
        for (device, opened) in workers.iter().zip(&info.devices) {
            practice::practise(device.name(), &opened.dtype, &texts, |texts| {
                device.try_out(CLASS, texts).map_err(|error| error.to_string())
            })?;
        }
        let served = self.served(CLASS, tokenizer, model.pipeline, limits)?;
        let metrics = Metrics::new(experiment.clone());
        let queue = Queue::new(self.queue_capacity, policy, devices, metrics);
        let core = Core::new(Models::with(served), tokenizers, Arc::new(queue));
        let parts = Parts {
            core: Arc::new(core),
            info,
            devices: workers,
            speeds: kept,
            watched,
            experiment,
            loader: Some(Loader { builder: self.clone(), places }),
        };
        Engine::run(parts).map_err(StartError::Thread)
    }

    /// The model as requests see it.
    pub(crate) fn served(
        &self,
        class: ClassId,
        tokenizer: Tokenizer,
        pipeline: Pipeline,
        limits: Limits,
    ) -> Result<Served, StartError> {
        let (name, _) = self.model_name();
        let how = (pipeline, self.default_prompt.clone());
        let served = Served::new((name, class), tokenizer, how, limits);
        served.prompt(&Prompt::Default).map_err(|error| StartError::Setting {
            setting: "default prompt",
            reason: error.to_string(),
        })?;
        Ok(served)
    }

    pub(crate) fn check(&self) -> Result<(), StartError> {
        if let Some((policies, window)) = &self.experiment {
            let reason = match policies.iter().find_map(|name| policy::by_name(name).err()) {
                Some(unknown) => Some(unknown.to_string()),
                None if policies.len() < 2 => Some("expected at least two policies".to_owned()),
                None if window.is_zero() => Some("expected a window above zero".to_owned()),
                None => None,
            };
            if let Some(reason) = reason {
                return Err(StartError::Setting { setting: "policy experiment", reason });
            }
        }
        let counts = [
            ("max batch tokens", self.max_batch_tokens),
            ("queue capacity", self.queue_capacity),
            ("tokenization workers", self.tokenization_workers),
            ("CPU threads", self.cpu_threads),
        ];
        match counts.into_iter().find(|(_, count)| *count == 0) {
            Some((setting, _)) => {
                Err(StartError::Setting { setting, reason: "expected at least 1, found 0".into() })
            }
            None => Ok(()),
        }
    }

    fn info(&self, model: &Model, max_batch_tokens: usize, devices: Vec<DeviceSummary>) -> Info {
        let (model_id, revision) = self.model_name();
        Info {
            model_id,
            revision,
            architecture: model.config.model_type.into(),
            dtype: devices.first().map(|device| device.dtype.clone()).unwrap_or_default(),
            pooling: model.pipeline.pooling.to_string(),
            normalized: model.pipeline.normalize,
            dimensions: model.dimensions(),
            max_input_tokens: model.max_input_tokens(),
            max_batch_tokens,
            queue_capacity: self.queue_capacity,
            tokenization_workers: self.tokenization_workers,
            prompts: model.pipeline.prompts.clone(),
            devices,
            ..Info::default()
        }
    }

    fn first(&self) -> ModelRef {
        self.models.first().cloned().unwrap_or_default()
    }

    /// The same settings for another model, which is loaded later.
    pub(crate) fn for_model(&self, model: ModelRef) -> Self {
        let (models, default_prompt) = (vec![model], Prompt::Default);
        Self { models, default_prompt, pooling: None, ..self.clone() }
    }

    /// The model's id or folder, and its revision.
    pub(crate) fn model_name(&self) -> (String, Option<String>) {
        match &self.first() {
            ModelRef::Hub { id, revision } => (id.clone(), revision.clone()),
            ModelRef::Folder(folder) => (folder.display().to_string(), None),
        }
    }
}

pub(crate) fn no_device() -> StartError {
    let reason = "expected at least one, found none".into();
    StartError::Setting { setting: "device", reason }
}

/// Opens the model in `folder`, whose user chose `pooling`, and says what its files leave open.
pub(crate) fn open_model(folder: &Path, pooling: Option<Pooling>) -> Result<Model, ModelError> {
    let model = Model::open_as(folder, pooling)?;
    if let Task::Classify(_) = model.task {
        let (path, found) = (model.folder.join(CONFIG_FILE), "its head".to_owned());
        let task = "classifies texts or ranks pairs of them";
        return Err(ModelError::Task { path, found, task, may_embed: false });
    }
    for warning in &model.warnings {
        tracing::warn!("{warning}");
    }
    Ok(model)
}
