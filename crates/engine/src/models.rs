//! The models of an engine: which there are, and how each comes and goes.
//!
//! - [`Served`] is a model as requests see it: its name, its tokenizer, what it makes of vectors, and the
//!   class of work that the scheduler knows it by. Its weights are the devices' (`worker`).
//! - [`Models`] lists them by name. A model is loading, ready or draining; only of one that is ready a
//!   request is accepted, and from then until it is answered the request keeps it ([`Open`]).
//!
//! The choice behind it: a model that goes first refuses new requests, then answers those that it has,
//! and only then leaves the devices. So nothing that was accepted is lost, and no batch ever finds its
//! model gone.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use vecmill_encoder::Limits;
use vecmill_model::Pipeline;
use vecmill_scheduler::ClassId;

use crate::error::{RequestError, StartError};
use crate::request::Prompt;
use crate::tokenize::Tokenizer;

/// A model that requests can name.
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) class: ClassId,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) pipeline: Pipeline,
    pub(crate) default_prompt: Prompt,
    pub(crate) limits: Limits,
    /// Requests that were accepted and not answered.
    open: AtomicUsize,
    /// When the last one was accepted.
    used: Mutex<Instant>,
}

/// How a model stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelState {
    /// Its weights are being read; requests are to come again.
    Loading,
    /// Requests are accepted.
    Ready,
    /// Requests that were accepted are being answered, and no others accepted.
    Draining,
}

/// A model of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelStatus {
    /// What requests call it.
    pub name: String,
    /// How it stands.
    pub state: ModelState,
    /// Whether it never makes way for another.
    pub pinned: bool,
    /// Requests that were accepted and not answered.
    pub requests: usize,
}

struct Entry {
    name: String,
    state: ModelState,
    pinned: bool,
    /// What it is known by once it is loaded.
    served: Option<Arc<Served>>,
}

/// The models of an engine, in the order in which they were loaded.
#[derive(Default)]
pub(crate) struct Models {
    entries: RwLock<Vec<Entry>>,
    /// Classes whose models have gone.
    free: Mutex<Vec<ClassId>>,
}

/// A request's hold on its model, until the request is answered.
pub(crate) struct Open(Arc<Served>);

impl Open {
    /// A hold on a model, whatever its state.
    pub(crate) fn of(served: &Arc<Served>) -> Self {
        served.open.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(served))
    }
}

impl std::ops::Deref for Open {
    type Target = Arc<Served>;

    fn deref(&self) -> &Arc<Served> {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Served {
    /// The model `name`, whose work is of `class`.
    pub(crate) fn new(
        (name, class): (String, ClassId),
        tokenizer: Tokenizer,
        (pipeline, default_prompt): (Pipeline, Prompt),
        limits: Limits,
    ) -> Self {
        Self {
            name,
            class,
            tokenizer,
            pipeline,
            default_prompt,
            limits,
            open: AtomicUsize::new(0),
            used: Mutex::new(Instant::now()),
        }
    }

    /// The text that goes in front of each input.
    pub(crate) fn prompt(&self, prompt: &Prompt) -> Result<Arc<str>, RequestError> {
        let prompt = match prompt {
            Prompt::Default => &self.default_prompt,
            other => other,
        };
        let named = |name: &String| {
            self.pipeline.prompts.get(name).map(String::as_str).ok_or_else(|| {
                let known = self.pipeline.prompts.keys().cloned().collect();
                RequestError::UnknownPrompt { name: name.clone(), known }
            })
        };
        let text = match prompt {
            Prompt::None => "",
            Prompt::Text(text) => text,
            Prompt::Named(name) => named(name)?,
            Prompt::Default => self.pipeline.default_prompt.as_ref().map_or(Ok(""), named)?,
        };
        if text.is_empty() || self.pipeline.pool_prompt {
            Ok(text.into())
        } else {
            Err(RequestError::PromptNotPooled)
        }
    }

    /// Whether requests are being answered.
    pub(crate) fn has_work(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
    }
}

impl Models {
    /// One that is there from the start.
    pub(crate) fn with(served: Served) -> Self {
        let models = Self::default();
        models.entries().push(Entry {
            name: served.name.clone(),
            state: ModelState::Ready,
            pinned: false,
            served: Some(Arc::new(served)),
        });
        models
    }

    /// The model that a request is for: the first one where it names none.
    ///
    /// # Errors
    /// [`RequestError::UnknownModel`] or [`RequestError::ModelLoading`].
    pub(crate) fn open(&self, name: Option<&str>) -> Result<Open, RequestError> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let mut named = entries.iter().filter(|entry| name.is_none_or(|name| name == entry.name));
        let unknown = || RequestError::UnknownModel {
            name: name.unwrap_or_default().to_owned(),
            known: entries.iter().map(|entry| entry.name.clone()).collect(),
        };
        let entry = named.next().ok_or_else(unknown)?;
        match (entry.state, &entry.served) {
            (ModelState::Ready, Some(served)) => {
                *served.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                Ok(Open::of(served))
            }
            (ModelState::Loading, _) => {
                Err(RequestError::ModelLoading { name: entry.name.clone() })
            }
            _ => Err(unknown()),
        }
    }

    /// The class of each model that is ready.
    pub(crate) fn ready(&self) -> Vec<ClassId> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let ready = entries.iter().filter(|entry| entry.state == ModelState::Ready);
        ready.filter_map(|entry| entry.served.as_ref().map(|served| served.class)).collect()
    }

    pub(crate) fn status(&self) -> Vec<ModelStatus> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let status = |entry: &Entry| {
            let open = |served: &Arc<Served>| served.open.load(Ordering::Acquire);
            let requests = entry.served.as_ref().map_or(0, open);
            let &Entry { ref name, state, pinned, .. } = entry;
            ModelStatus { name: name.clone(), state, pinned, requests }
        };
        entries.iter().map(status).collect()
    }

    /// A model is about to be loaded. Says by which class, if one is free.
    ///
    /// # Errors
    /// If there is one of that name.
    pub(crate) fn begin(&self, name: &str) -> Result<Option<ClassId>, StartError> {
        let mut entries = self.entries();
        if entries.iter().any(|entry| entry.name == name) {
            let reason = format!("{name} is loaded already, or about to come or go");
            return Err(StartError::Setting { setting: "model", reason });
        }
        let (name, state) = (name.to_owned(), ModelState::Loading);
        entries.push(Entry { name, state, pinned: false, served: None });
        Ok(self.free.lock().unwrap_or_else(PoisonError::into_inner).pop())
    }

    /// It is loaded.
    pub(crate) fn finish(&self, served: &Arc<Served>) {
        for entry in self.entries().iter_mut().filter(|entry| entry.name == served.name) {
            (entry.state, entry.served) = (ModelState::Ready, Some(Arc::clone(served)));
        }
    }

    /// A model has gone, or was not loaded after all; its class is for another one.
    pub(crate) fn remove(&self, name: &str, class: ClassId) {
        self.entries().retain(|entry| entry.name != name);
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(class);
    }

    /// No more requests are accepted for a model; `None` if none of that name is ready.
    pub(crate) fn drain(&self, name: &str) -> Option<Arc<Served>> {
        let mut entries = self.entries();
        let ready = |entry: &&mut Entry| entry.name == name && entry.state == ModelState::Ready;
        let entry = entries.iter_mut().find(ready)?;
        entry.state = ModelState::Draining;
        entry.served.clone()
    }

    /// The least recently used model that may make way: neither pinned nor at work.
    pub(crate) fn least_used(&self) -> Option<String> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let idle = entries.iter().filter(|entry| entry.state == ModelState::Ready && !entry.pinned);
        let served = idle.filter_map(|entry| entry.served.as_ref());
        let used =
            |served: &&Arc<Served>| *served.used.lock().unwrap_or_else(PoisonError::into_inner);
        served.filter(|served| !served.has_work()).min_by_key(used).map(|it| it.name.clone())
    }

    /// Whether a model may make way for others; `false` if there is none of that name.
    pub(crate) fn pin(&self, name: &str, pinned: bool) -> bool {
        let mut entries = self.entries();
        let entry = entries.iter_mut().find(|entry| entry.name == name);
        entry.map(|entry| entry.pinned = pinned).is_some()
    }

    fn entries(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Entry>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Models {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.status()).finish()
    }
}

/// Held by whoever loads or unloads: one at a time.
#[derive(Default)]
pub(crate) struct Changing(Mutex<()>);

impl Changing {
    pub(crate) fn begin(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
