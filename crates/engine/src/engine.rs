//! The handle to a running model: what is asked of it. What its operator asks is in `operate`.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use crate::answer::GiveUpOnDrop;
use crate::builder::Builder;
use crate::core::Core;
use crate::devices::CachedSpeed;
use crate::error::RequestError;
use crate::experiment::Experiment;
use crate::info::Info;
use crate::request::{Reply, Request, TokenizeRequest};
use crate::sensors::{Monitor, Watched};
use crate::sweep::Sweep;
use crate::tokenize::Tokenized;
use crate::worker::{self, Worker};

/// A running model. Clones share it; when the last one is dropped, it shuts down.
#[derive(Clone)]
pub struct Engine {
    pub(crate) running: Arc<Running>,
}

pub(crate) struct Running {
    pub(crate) core: Arc<Core>,
    info: Info,
    pub(crate) devices: Vec<Arc<dyn Worker>>,
    /// Where each device's speed is kept, if anywhere.
    kept: Vec<Option<CachedSpeed>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    sweep: Mutex<Option<Sweep>>,
    pub(crate) monitor: Mutex<Option<Monitor>>,
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
    ) -> std::io::Result<Self> {
        let names = devices.iter().map(|device| device.name().to_owned()).collect();
        let sweep = Sweep::start(Arc::clone(&core), experiment, names)?;
        let sweep = Mutex::new(Some(sweep));
        let monitor = Mutex::new(Some(Monitor::start(Arc::clone(&core), watched)?));
        let threads = Mutex::default();
        let running = Running { core, info, devices, kept, threads, sweep, monitor };
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

    /// About the model and its limits.
    pub fn info(&self) -> &Info {
        &self.running.info
    }

    /// Whether a request would be accepted now, as far as that is not its own doing: some device
    /// serves.
    ///
    /// # Errors
    /// [`RequestError::NoDevice`] or [`RequestError::Stopped`], which a request would get as well.
    pub fn readiness(&self) -> Result<(), RequestError> {
        self.running.core.dispatch.serves()
    }

    /// Refuses new requests, finishes those accepted and ends the workers. Blocks until then.
    pub fn shutdown(&self) {
        self.running.shutdown();
    }
}

impl Running {
    fn shutdown(&self) {
        self.core.dispatch.close();
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // It does not panic; if it did, its requests would be answered, by dropping them.
            let _ = thread.join();
        }
        self.core.dispatch.finish();
        let speeds = self.kept.iter().zip(self.core.dispatch.statistics());
        let speeds = speeds.filter_map(|(kept, now)| match (kept, now.speed, now.batches) {
            (Some(kept), Some(speed), 1..) => Some((kept.clone(), speed)),
            _ => None,
        });
        CachedSpeed::write_all(speeds.collect());
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
