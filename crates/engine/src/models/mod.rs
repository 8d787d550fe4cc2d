//! The models of an engine: which there are, and how each comes and goes.
//!
//! - [`Served`] is a model as requests see it: its name, its tokenizer, what it makes of vectors, and the
//!   class of work that the scheduler knows it by. Its weights are the devices' (`worker`).
//! - [`Models`] lists them by name. A model is loading, ready or draining; only of one that is ready a
//!   request is accepted, and from then until it is answered the request keeps it ([`Open`]).
//! - `changes` has how each comes and goes.
//!
//! The choice behind it: a model that goes first refuses new requests, then answers those that it has,
//! and only then leaves the devices. So nothing that was accepted is lost, and no batch ever finds its
//! model gone.

mod changes;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::Instant;

use vecmill_encoder::Limits;
use vecmill_model::Pipeline;
use vecmill_scheduler::ClassId;

use crate::error::RequestError;
use crate::info::Info;
use crate::request::Prompt;
use crate::tokenize::Tokenizer;
pub(crate) use changes::Changing;
pub use changes::{ModelState, ModelStatus};

/// A model that requests can name.
pub(crate) struct Served {
    pub(crate) name: Arc<str>,
    pub(crate) class: ClassId,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) pipeline: Pipeline,
    pub(crate) default_prompt: Prompt,
    pub(crate) limits: Limits,
    pub(crate) info: Arc<Info>,
    /// Requests that were accepted and not answered.
    open: AtomicUsize,
    /// Whether somebody waits until there is none.
    leaving: AtomicBool,
    /// Told when there is none, and somebody waits for that.
    left: (Mutex<()>, Condvar),
    /// When the last one was accepted.
    used: Mutex<Instant>,
}

struct Entry {
    name: Arc<str>,
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
        served.open.fetch_add(1, Ordering::SeqCst);
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
        let served = &self.0;
        if served.open.fetch_sub(1, Ordering::SeqCst) == 1 && served.leaving.load(Ordering::SeqCst)
        {
            drop(served.left.0.lock());
            served.left.1.notify_all();
        }
    }
}

impl Served {
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
}

impl Models {
    /// The model that a request is for: the first one where it names none.
    ///
    /// # Errors
    /// [`RequestError::UnknownModel`] or [`RequestError::ModelLoading`].
    pub(crate) fn open(&self, name: Option<&str>) -> Result<Open, RequestError> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let mut named = entries.iter().filter(|entry| name.is_none_or(|name| name == &*entry.name));
        let unknown = || RequestError::UnknownModel {
            name: name.unwrap_or_default().to_owned(),
            known: entries.iter().map(|entry| entry.name.to_string()).collect(),
        };
        let entry = named.next().ok_or_else(unknown)?;
        match (entry.state, &entry.served) {
            (ModelState::Ready, Some(served)) => {
                *served.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                Ok(Open::of(served))
            }
            (ModelState::Loading, _) => {
                Err(RequestError::ModelLoading { name: entry.name.to_string() })
            }
            _ => Err(unknown()),
        }
    }
}
