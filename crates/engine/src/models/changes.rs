//! How models come and go: loading, ready, draining; pinned, or making way for others.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vecmill_encoder::Limits;
use vecmill_model::Pipeline;
use vecmill_scheduler::ClassId;

use super::{Entry, Models, Served};
use crate::error::StartError;
use crate::info::{Info, Task};
use crate::request::Prompt;
use crate::tokenize::Tokenizer;

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
    /// What it is for; `None` until it is loaded.
    pub task: Option<Task>,
    /// Whether it never makes way for another.
    pub pinned: bool,
    /// Requests that were accepted and not answered.
    pub requests: usize,
}

impl Served {
    /// The model that `info` is about, whose work is of `class`.
    ///
    /// # Errors
    /// If it has no such prompt.
    pub(crate) fn new(
        class: ClassId,
        tokenizer: Tokenizer,
        (pipeline, default_prompt): (Pipeline, Prompt),
        limits: Limits,
        info: Info,
    ) -> Result<Self, StartError> {
        let served = Self {
            name: info.model_id.as_str().into(),
            class,
            tokenizer,
            pipeline,
            default_prompt,
            limits,
            info: Arc::new(info),
            open: AtomicUsize::new(0),
            leaving: AtomicBool::new(false),
            left: (Mutex::new(()), Condvar::new()),
            used: Mutex::new(Instant::now()),
        };
        served.prompt(&Prompt::Default).map_err(|error| StartError::Setting {
            setting: "default prompt",
            reason: error.to_string(),
        })?;
        Ok(served)
    }

    /// Whether requests are being answered.
    pub(super) fn has_work(&self) -> bool {
        self.open.load(Ordering::SeqCst) > 0
    }

    /// Waits until all requests are answered; no others may be accepted by now.
    pub(crate) fn wait_until_left(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        let mut left = self.left.0.lock().unwrap_or_else(PoisonError::into_inner);
        while self.has_work() {
            left = self.left.1.wait(left).unwrap_or_else(PoisonError::into_inner);
        }
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
            let task = entry.served.as_ref().map(|served| served.info.task.clone());
            ModelStatus { name: name.to_string(), state, task, pinned, requests }
        };
        entries.iter().map(status).collect()
    }

    /// A model is about to be loaded. Says by which class, if one is free.
    ///
    /// # Errors
    /// If there is one of that name.
    pub(crate) fn begin(&self, name: &str) -> Result<Option<ClassId>, StartError> {
        let mut entries = self.entries();
        if entries.iter().any(|entry| &*entry.name == name) {
            let reason = format!("{name} is loaded already, or about to come or go");
            return Err(StartError::Setting { setting: "model", reason });
        }
        let (name, state) = (name.into(), ModelState::Loading);
        entries.push(Entry { name, state, pinned: false, served: None });
        Ok(self.free.lock().unwrap_or_else(PoisonError::into_inner).pop())
    }

    /// Whether a model is about to be there.
    pub(crate) fn is_loading(&self, name: &str) -> bool {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let loading = |entry: &Entry| entry.state == ModelState::Loading && &*entry.name == name;
        entries.iter().any(loading)
    }

    /// It is loaded.
    pub(crate) fn finish(&self, served: &Arc<Served>) {
        for entry in self.entries().iter_mut().filter(|entry| entry.name == served.name) {
            (entry.state, entry.served) = (ModelState::Ready, Some(Arc::clone(served)));
        }
    }

    /// A model has gone, or was not loaded after all; its class is for another one.
    pub(crate) fn remove(&self, name: &str, class: ClassId) {
        self.entries().retain(|entry| &*entry.name != name);
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(class);
    }

    /// No more requests are accepted for a model; `None` if none of that name is ready.
    pub(crate) fn drain(&self, name: &str) -> Option<Arc<Served>> {
        let mut entries = self.entries();
        let ready = |entry: &&mut Entry| &*entry.name == name && entry.state == ModelState::Ready;
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
        served.filter(|served| !served.has_work()).min_by_key(used).map(|it| it.name.to_string())
    }

    /// Whether a model may make way for others; `false` if there is none of that name.
    pub(crate) fn pin(&self, name: &str, pinned: bool) -> bool {
        let mut entries = self.entries();
        let entry = entries.iter_mut().find(|entry| &*entry.name == name);
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
