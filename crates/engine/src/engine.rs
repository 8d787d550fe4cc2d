//! The handle to running models: what is asked of them. What their operator asks is in `operate`.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use vecmill_encoder::LoadError;
use vecmill_scheduler::{ClassId, Speed};

use crate::answer::GiveUpOnDrop;
use crate::builder::{Builder, no_device, open_model};
use crate::core::Core;
use crate::devices::{CachedSpeed, Loading, Place};
use crate::error::{RequestError, StartError};
use crate::experiment::Experiment;
use crate::info::Info;
use crate::models::{Changing, ModelStatus, Open, Served};
use crate::practice;
use crate::request::{Input, Prompt, Reply, Request, TokenizeRequest};
use crate::sensors::{Monitor, Watched};
use crate::sweep::Sweep;
use crate::tokenize::{Tokenized, Tokenizer};
use crate::worker::{self, Worker};
use vecmill_hub::ModelRef;

/// How often it is looked whether a model's requests are answered.
const DRAINED: Duration = Duration::from_millis(1);

/// Running models. Clones share them; when the last one is dropped, it
/// shuts down.
#[derive(Clone)]
pub struct Engine {
    pub(crate) running: Arc<Running>,
}

pub(crate) struct Running {
    pub(crate) core: Arc<Core>,
    info: Info,
    pub(crate) devices: Vec<Arc<dyn Worker>>,
    /// Where the speed of each model on each device is kept, if anywhere.
    kept: Mutex<Vec<(ClassId, usize, CachedSpeed)>>,
    /// What other models are loaded by.
    loader: Option<Loader>,
    changing: Changing,
    threads: Mutex<Vec<JoinHandle<()>>>,
    sweep: Mutex<Option<Sweep>>,
    pub(crate) monitor: Mutex<Option<Monitor>>,
}

/// What models are loaded by after the start.
pub(crate) struct Loader {
    pub(crate) builder: Builder,
    pub(crate) places: Vec<Place>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("info", &self.running.info).finish_non_exhaustive()
    }
}

impl Engine {
    /// Settings for a new engine, all at their defaults.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn run(
        core: Arc<Core>,
        info: Info,
        devices: Vec<Arc<dyn Worker>>,
        kept: Vec<Option<CachedSpeed>>,
        watched: Vec<Watched>,
        experiment: Option<Arc<Experiment>>,
        loader: Option<Loader>,
    ) -> std::io::Result<Self> {
        let names = devices.iter().map(|device| device.name().to_owned()).collect();
        let sweep = Sweep::start(Arc::clone(&core), experiment, names)?;
        let sweep = Mutex::new(Some(sweep));
        let monitor = Mutex::new(Some(Monitor::start(Arc::clone(&core), watched)?));
        let threads = Mutex::default();
        let kept = kept.into_iter().enumerate();
        let kept = kept.filter_map(|(index, kept)| Some((ClassId::FIRST, index, kept?))).collect();
        let (kept, changing) = (Mutex::new(kept), Changing::default());
        let running =
            Running { core, info, devices, kept, loader, changing, threads, sweep, monitor };
        for (index, device) in running.devices.iter().enumerate() {
            let thread = worker::spawn(Arc::clone(device), Arc::clone(&running.core), index)?;
            running.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(Self { running: Arc::new(running) })
    }

    /// Embeds the inputs of a request. Work starts at the call, not at the first poll; dropping the
    /// future gives up what has not reached a device. Runs on any async runtime.
    ///
    /// # Errors
    /// [`RequestError`]; its `fault` tells whose it is.
    pub fn embed(
        &self,
        request: Request,
    ) -> impl Future<Output = Result<Reply, RequestError>> + Send + 'static {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let deliver = Box::new(move |result| {
            let _ = sender.send(result); // the caller may have gone away
        });
        let caller = GiveUpOnDrop(self.running.core.submit(request, deliver));
        async move {
            let _caller = caller;
            receiver.await.unwrap_or(Err(RequestError::Lost))
        }
    }

    /// The vector of one text, with the model's own settings for all else: an [`embed`](Self::embed) for
    /// when nothing more is asked.
    ///
    /// ```no_run
    /// # async fn one(engine: vecmill_engine::Engine) -> Result<(), vecmill_engine::RequestError> {
    /// let vector: Vec<f32> = engine.embed_text("a quick brown fox").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`embed`](Self::embed).
    pub fn embed_text(
        &self,
        text: &str,
    ) -> impl Future<Output = Result<Vec<f32>, RequestError>> + Send + 'static {
        let reply = self.embed(Request::new([text]));
        async move {
            let embedding = reply.await?.embeddings.pop();
            embedding.map(|embedding| embedding.vector).ok_or(RequestError::Lost)
        }
    }

    /// As [`embed`](Self::embed), but blocks this thread: not for use inside an async runtime.
    ///
    /// # Errors
    /// [`RequestError`]; its `fault` tells whose it is.
    pub fn embed_blocking(&self, request: Request) -> Result<Reply, RequestError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let deliver = Box::new(move |result| {
            let _ = sender.send(result);
        });
        self.running.core.submit(request, deliver);
        receiver.recv().unwrap_or(Err(RequestError::Lost))
    }

    /// Shows how texts are tokenised, without embedding or cutting them. Work starts at the call;
    /// dropping the future ends it. As many requests as there are tokenising threads are worked on
    /// or have replies that are still held.
    ///
    /// # Errors
    /// When the prompt is unknown, the tokenizer refuses a text, there is too much of it, or too many
    /// ask.
    pub fn tokenize(
        &self,
        request: TokenizeRequest,
    ) -> impl Future<Output = Result<Tokenized, RequestError>> + Send + 'static {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.running.core.list(request, sender);
        async move { receiver.await.unwrap_or(Err(RequestError::Stopped)) }
    }

    /// As [`tokenize`](Self::tokenize), but blocks this thread: not for use inside an async runtime.
    ///
    /// # Errors
    /// As there.
    pub fn tokenize_blocking(&self, request: TokenizeRequest) -> Result<Tokenized, RequestError> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.running.core.list(request, sender);
        receiver.blocking_recv().unwrap_or(Err(RequestError::Stopped))
    }

    /// Loads another model beside those that are there, whose batches go on meanwhile, and returns the
    /// name that requests call it by. Where memory does not suffice, models that have no work and are not
    /// [pinned](Self::pin) make way, the least recently used first. Blocks until it is ready.
    ///
    /// # Errors
    /// [`StartError`] says what is wrong with it, or what memory is lacking; all is as before then, but
    /// for models that have made way.
    pub fn load(&self, model: ModelRef) -> Result<String, StartError> {
        self.running.load(model)
    }

    /// Takes a model off all devices, once the requests that it has are answered, and gives its memory
    /// back; `false` if none of that name is ready. Blocks until then.
    pub fn unload(&self, model: &str) -> bool {
        let _alone = self.running.changing.begin();
        self.running.unload(model)
    }

    /// Whether a model may make way for others (it may, unless it was pinned); `false` if there is none
    /// of that name.
    pub fn pin(&self, model: &str, pinned: bool) -> bool {
        self.running.core.models.pin(model, pinned)
    }

    /// The models, in the order in which they were loaded.
    pub fn models(&self) -> Vec<ModelStatus> {
        self.running.core.models.status()
    }

    /// About the first model and its limits.
    pub fn info(&self) -> &Info {
        &self.running.info
    }

    /// Whether a request would be accepted now, as far as that is not its own doing: some device
    /// serves.
    ///
    /// # Errors
    /// [`RequestError::NoDevice`] or [`RequestError::Stopped`], which a request would get as well.
    pub fn readiness(&self) -> Result<(), RequestError> {
        let core = &self.running.core;
        core.queue.serves(&core.models.ready())
    }

    /// Refuses new requests, finishes those accepted and ends the workers. Blocks until then.
    pub fn shutdown(&self) {
        self.running.shutdown();
    }
}

impl Running {
    fn load(&self, model: ModelRef) -> Result<String, StartError> {
        let Some(Loader { builder, places }) = &self.loader else {
            let reason = "this engine was made of devices that load no other".into();
            return Err(StartError::Setting { setting: "model", reason });
        };
        let _alone = self.changing.begin();
        let models = &self.core.models;
        let builder = builder.for_model(model);
        let (name, _) = builder.model_name();
        let class = models.begin(&name)?.unwrap_or_else(|| self.core.queue.add_class());
        match self.load_as(&builder, class, places) {
            Ok(served) => {
                models.finish(&served);
                Ok(name)
            }
            Err(error) => {
                self.leave_devices(class);
                models.remove(&name, class);
                Err(error)
            }
        }
    }

    fn load_as(
        &self,
        builder: &Builder,
        class: ClassId,
        places: &[Place],
    ) -> Result<Arc<Served>, StartError> {
        let model = open_model(&builder.fetch()?, builder.pooling)?;
        let tokenizer = Tokenizer::open(&model.folder, &model.pipeline, model.max_input_tokens())?;
        let mut speeds = Vec::new();
        for (index, (device, place)) in self.devices.iter().zip(places).enumerate() {
            let loading = Loading { builder, model: &model, place };
            speeds.push(loop {
                match device.load((index, class), &self.core, &loading) {
                    Ok(speed) => break speed,
                    Err(error) => self.make_way(error)?,
                }
            });
        }
        model.check_unchanged()?;
        let first = self.devices.first().and_then(|device| device.limits(class));
        let limits = first.ok_or_else(no_device)?;
        let texts = practice::texts(&tokenizer, limits.vocabulary)?;
        let served = Arc::new(builder.served(class, tokenizer, model.pipeline, limits)?);
        for (index, (place, speed)) in places.iter().zip(&speeds).enumerate() {
            self.practise((index, place), &served, speed, &texts)?;
        }
        for (index, (device, speed)) in self.devices.iter().zip(speeds).enumerate() {
            self.core.queue.serve(index, class, device.batch_tokens(class), speed);
            let kept = builder.kept_speed(&places[index]);
            self.kept().extend(kept.map(|kept| (class, index, kept)));
        }
        Ok(served)
    }

    /// Has a device embed practice texts with a model that is new on it. They go through the queue: the
    /// device's own thread is the one that computes, and may be the only one that can.
    fn practise(
        &self,
        (index, place): (usize, &Place),
        served: &Arc<Served>,
        speed: &Speed,
        texts: &[Vec<u32>],
    ) -> Result<(), StartError> {
        let (queue, device) = (&self.core.queue, &self.devices[index]);
        let embed = |ids: &Vec<u32>| {
            let (sender, receiver) = mpsc::sync_channel(1);
            let deliver = Box::new(move |result| {
                let _ = sender.send(result);
            });
            let inputs = vec![Input::Tokens(ids.clone())];
            let request = Request { inputs, prompt: Prompt::None, ..Request::default() };
            self.core.submit_to(Ok(Open::of(served)), request, deliver);
            match receiver.recv().unwrap_or(Err(RequestError::Lost)) {
                Ok(reply) => Ok(reply.embeddings.into_iter().flat_map(|it| it.vector).collect()),
                Err(RequestError::NotFinite { .. }) => Ok(vec![f32::NAN]),
                Err(error) => Err(error.to_string()),
            }
        };
        queue.serve(index, served.class, device.batch_tokens(served.class), speed.clone());
        let practised = practice::practise(device.name(), &place.info.dtype, texts, |texts| {
            texts.iter().map(embed).collect()
        });
        queue.retire(index, served.class);
        practised
    }

    /// Unloads a model if memory was lacking and one may go; else that remains the error.
    fn make_way(&self, error: StartError) -> Result<(), StartError> {
        let lacking = matches!(
            error,
            StartError::Budget(_) | StartError::Memory(_) | StartError::Load(LoadError::Memory(_))
        );
        match self.core.models.least_used().filter(|_| lacking) {
            Some(name) => {
                tracing::info!(model = name, "it makes way for another model");
                self.unload(&name);
                Ok(())
            }
            None => Err(error),
        }
    }

    fn unload(&self, name: &str) -> bool {
        let Some(served) = self.core.models.drain(name) else { return false };
        while served.has_work() {
            std::thread::park_timeout(DRAINED);
        }
        self.keep_speeds(|class| class == served.class);
        self.kept().retain(|(class, _, _)| *class != served.class);
        self.leave_devices(served.class);
        self.core.models.remove(name, served.class);
        true
    }

    fn leave_devices(&self, class: ClassId) {
        for (index, device) in self.devices.iter().enumerate() {
            self.core.queue.retire(index, class);
            device.unload((index, class), &self.core);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<(ClassId, usize, CachedSpeed)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what was learned of devices' speeds at some classes.
    fn keep_speeds(&self, wanted: impl Fn(ClassId) -> bool) {
        let kept = self.kept();
        let known = kept.iter().filter(|(class, _, _)| wanted(*class));
        let speeds = known.filter_map(|(class, index, kept)| {
            let now = *self.core.queue.statistics_of(*class).get(*index)?;
            Some((kept.clone(), now.speed.filter(|_| now.batches > 0)?))
        });
        let speeds = speeds.collect();
        drop(kept);
        CachedSpeed::write_all(speeds);
    }

    fn shutdown(&self) {
        self.core.queue.close();
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // It does not panic; if it did, its requests would be answered, by dropping them.
            let _ = thread.join();
        }
        self.core.queue.finish();
        self.keep_speeds(|_| true);
        drop(self.sweep.lock().unwrap_or_else(PoisonError::into_inner).take());
        drop(self.monitor.lock().unwrap_or_else(PoisonError::into_inner).take());
        for device in &self.devices {
            device.stop();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown();
    }
}
