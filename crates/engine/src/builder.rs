//! Settings of an engine, and its start.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use vecmill_hub::ModelRef;
use vecmill_memory::GiveBack;
use vecmill_model::{DType, Pooling};
use vecmill_scheduler::policy::PolicyName;
use vecmill_scheduler::{ClassId, DeviceSettings};

use crate::devices::{self, DeviceSpec};
use crate::early::EarlyRequests;
use crate::engine::{Core, Engine, Loader, Parts};
use crate::error::StartError;
use crate::experiment::Experiment;
use crate::info::Info;
use crate::machine::threads;
use crate::metrics::{self, Metrics};
use crate::models::{Models, Served};
use crate::practice;
use crate::queue::Queue;
use crate::request::Prompt;
use crate::sensors::SensedDevice;
use crate::settings::{MemoryBudget, Progress, Settings, Shares};
use crate::stage::Stage;
use crate::tokenize::Tokenizer;

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
    /// Those of the first model, but for its name.
    settings: Settings,
    queue_capacity: usize,
    tokenization_workers: usize,
    policy: PolicyName,
    experiment: Option<(Vec<PolicyName>, Duration)>,
    devices: Vec<DeviceSpec>,
    shares: Shares,
    load_wait: Duration,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            settings: Settings::default(),
            queue_capacity: 16_384,
            tokenization_workers: threads(),
            policy: PolicyName::default(),
            experiment: None,
            devices: vec![DeviceSpec::AUTO],
            shares: Shares::default(),
            load_wait: Duration::ZERO,
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
    pub fn cache(mut self, folder: PathBuf) -> Self {
        self.settings.cache = Some(folder);
        self
    }

    /// Token for the Hugging Face hub.
    #[must_use]
    pub fn hub_token(mut self, token: String) -> Self {
        self.settings.hub_token = Some(token);
        self
    }

    /// Overrides how the model makes one vector of its tokens' vectors.
    #[must_use]
    pub fn pooling(mut self, pooling: Pooling) -> Self {
        self.settings.pooling = Some(pooling);
        self
    }

    /// The prompt of requests that name none; [`Prompt::Default`] is the model's own default.
    #[must_use]
    pub fn default_prompt(mut self, default_prompt: Prompt) -> Self {
        self.settings.default_prompt = default_prompt;
        self
    }

    /// The most tokens in one batch (default 16,384). Devices may prefer smaller batches.
    #[must_use]
    pub fn max_batch_tokens(mut self, max_batch_tokens: usize) -> Self {
        self.settings.max_batch_tokens = max_batch_tokens;
        self
    }

    /// Finds for each device, by batches of practice, how many tokens its batches shall have: so many
    /// that its speed is nearly full, but none that takes longer than `latency`; and no more than
    /// [`max_batch_tokens`](Self::max_batch_tokens).
    #[must_use]
    pub fn auto_batch_tokens(mut self, latency: Duration) -> Self {
        self.settings.batch_latency = Some(latency);
        self
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

    /// Which device gets which work (default: whoever finishes it first).
    #[must_use]
    pub fn policy(self, policy: PolicyName) -> Self {
        Self { policy, ..self }
    }

    /// Has policies take turns of `window` each, in place of one, and counts for each in the metrics
    /// (`vecmill_experiment_*`) what it achieved.
    #[must_use]
    pub fn policy_experiment(self, policies: Vec<PolicyName>, window: Duration) -> Self {
        Self { experiment: Some((policies, window)), ..self }
    }

    /// Where batches run (default: [`DeviceSpec::AUTO`]). Several devices share one queue.
    #[must_use]
    pub fn devices(self, devices: Vec<DeviceSpec>) -> Self {
        Self { devices, ..self }
    }

    /// The number format that devices compute in (default: half precision on GPUs, single precision
    /// on the CPU).
    #[must_use]
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.settings.dtype = Some(dtype);
        self
    }

    /// Threads that compute on the CPU (default: one per core).
    #[must_use]
    pub fn cpu_threads(mut self, cpu_threads: usize) -> Self {
        self.settings.cpu_threads = cpu_threads;
        self
    }

    /// The most that weights and batches may take on each device (default: nine tenths of what is
    /// free at the start; on the CPU, [`Memory::usable_bytes`](crate::machine::Memory::usable_bytes)).
    #[must_use]
    pub fn memory_budget(mut self, budget: impl Into<MemoryBudget>) -> Self {
        self.settings.memory_budget = Some(budget.into());
        self
    }

    /// Bytes of the machine's memory that are for something else, such as a server's requests
    /// (default 0). The CPU's budget is less by so much, unless it is given in bytes.
    #[must_use]
    pub fn set_aside(mut self, set_aside: usize) -> Self {
        self.settings.set_aside = set_aside;
        self
    }

    /// When memory that no batch needs is given back (default: after 60 seconds).
    #[must_use]
    pub fn memory_give_back(mut self, give_back: GiveBack) -> Self {
        self.settings.memory.give_back = give_back;
        self
    }

    /// Whether memory is made ready ahead of demand, as experience suggests (default: yes).
    #[must_use]
    pub fn memory_predict(mut self, predict: bool) -> Self {
        self.settings.memory.predict = predict;
        self
    }

    /// Whether each device runs batches of practice before the engine is ready (default: no). It
    /// takes some seconds on a GPU: kernels are compiled, the fastest ways chosen, and batch times
    /// learned, all of which the first requests would otherwise wait for.
    #[must_use]
    pub fn warm_up(mut self, warm_up: bool) -> Self {
        self.settings.warm_up = warm_up;
        self
    }

    /// A folder into which what a device's pool remembers of its leases is written when a batch was refused some:
    /// at most one file a minute, and no more once 16 are there.
    #[must_use]
    pub fn memory_recording_on_refusal(mut self, folder: PathBuf) -> Self {
        self.settings.refusal_recordings = Some(folder);
        self
    }

    /// How much of the devices' time the model of that name gets while others have work, too: in
    /// proportion to `weight`, which is 1 for all of which nothing is said. It holds whenever the model
    /// is loaded.
    #[must_use]
    pub fn share(mut self, model: &str, weight: f64) -> Self {
        self.shares.set(model, weight);
        self
    }

    /// How long a request for a model that is being loaded waits for it (default: not at all; it is
    /// refused with [`RequestError::ModelLoading`](crate::RequestError::ModelLoading)).
    #[must_use]
    pub fn load_wait(self, load_wait: Duration) -> Self {
        Self { load_wait, ..self }
    }

    /// Is told what is being done while the engine starts.
    #[must_use]
    pub fn on_progress(mut self, progress: Progress) -> Self {
        self.settings.progress = progress;
        self
    }

    /// Fetches the model if it is not there, loads it and starts the workers. Takes as long as
    /// that takes; call it from a thread that may block.
    ///
    /// # Errors
    /// [`StartError`] says what is missing or wrong and what to do.
    pub fn start(self) -> Result<Engine, StartError> {
        let settings = self.settings();
        let engine = self.start_first(&settings)?;
        for model in self.models.iter().skip(1) {
            engine.load(model.clone())?;
        }
        (settings.progress)(Stage::Ready);
        Ok(engine)
    }

    /// An engine with the first model alone.
    fn start_first(&self, settings: &Settings) -> Result<Engine, StartError> {
        self.check()?;
        let model = settings.open(&settings.fetch()?)?;
        let max_tokens = model.max_input_tokens();
        // The tokenizer's file and the weights are read side by side: each takes about as long.
        let (tokenizer, devices) = both(
            || Tokenizer::open(&model.folder, &model.pipeline, max_tokens),
            || devices::open(&self.devices, settings, &model),
        )
        .map_err(StartError::Thread)?;
        let (mut workers, mut infos, mut speeds, mut caches) = (vec![], vec![], vec![], vec![]);
        let mut profiles = vec![];
        let mut sensed = vec![];
        let devices = devices?;
        model.check_unchanged()?;
        for (index, device) in devices.into_iter().enumerate() {
            let worker = &device.worker;
            sensed.extend(device.sensors.map(|sensors| {
                let device = Arc::clone(worker);
                SensedDevice { index, device, sensors }
            }));
            workers.push(device.worker);
            infos.push(device.profile.info.clone());
            speeds.push(device.speed);
            caches.push(device.speed_cache);
            profiles.push(device.profile);
        }
        let first = workers.first().ok_or_else(StartError::no_device)?;
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
        let engine = Info {
            dtype: infos.first().map(|device| device.dtype.clone()).unwrap_or_default(),
            queue_capacity: self.queue_capacity,
            tokenization_workers: self.tokenization_workers,
            devices: infos,
            ..Info::default()
        };
        let info = Info::of(settings, &model, &tokenizer, largest, engine);
        let experiment = self.experiment.clone().map(|(policies, window)| {
            Arc::new(Experiment::new(policies, window, metrics::seconds))
        });
        let limits = first.limits(CLASS).ok_or_else(StartError::no_device)?;
        let texts = practice::texts(&tokenizer, limits.vocabulary)?;
        for (device, opened) in workers.iter().zip(&info.devices) {
            practice::practise(device.name(), &opened.dtype, &texts, |texts| {
                device.try_out(CLASS, texts).map_err(|error| error.to_string())
            })?;
        }
        let how = (model.pipeline, settings.default_prompt.clone());
        let served = Served::new(CLASS, tokenizer, how, limits, info.clone())?;
        let metrics = Metrics::new(experiment.clone());
        let queue = Queue::new(self.queue_capacity, self.policy.policy(), devices, metrics);
        queue.set_weight(CLASS, self.shares.of(&info.model_id));
        let early = EarlyRequests::new(self.load_wait, self.queue_capacity);
        let core = Core::new(Models::with(served), tokenizers, Arc::new(queue), early);
        let parts = Parts {
            core: Arc::new(core),
            info,
            devices: workers,
            speeds: caches,
            sensors: sensed,
            experiment,
            loader: Some(Loader {
                settings: settings.clone(),
                profiles,
                shares: self.shares.clone(),
            }),
        };
        Engine::run(parts).map_err(StartError::Thread)
    }

    /// Those of the first model, or of the default one.
    pub(crate) fn settings(&self) -> Settings {
        let model = self.models.first().cloned().unwrap_or_default();
        Settings { model, ..self.settings.clone() }
    }

    pub(crate) fn check(&self) -> Result<(), StartError> {
        if let Some((policies, window)) = &self.experiment {
            let expected = match policies.len() {
                0 | 1 => Some("expected at least two policies"),
                _ if window.is_zero() => Some("expected a window above zero"),
                _ => None,
            };
            if let Some(reason) = expected.map(str::to_owned) {
                return Err(StartError::Setting { setting: "policy experiment", reason });
            }
        }
        self.shares.check()?;
        let counts = [
            ("max batch tokens", self.settings.max_batch_tokens),
            ("queue capacity", self.queue_capacity),
            ("tokenization workers", self.tokenization_workers),
            ("CPU threads", self.settings.cpu_threads),
        ];
        match counts.into_iter().find(|(_, count)| *count == 0) {
            Some((setting, _)) => {
                Err(StartError::Setting { setting, reason: "expected at least 1, found 0".into() })
            }
            None => Ok(()),
        }
    }
}
