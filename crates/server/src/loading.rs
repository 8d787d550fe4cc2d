//! The model's place in the server, which goes from loading to ready or to failed, once. [`Loading`]
//! is the side of whoever loads the model; what it tells is seen by every request from then on,
//! without a lock.

use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use vecmill_engine::Engine;

use crate::json::token_ids::OwnIds;

/// Tells a server how the loading of its model ended. Dropped without a word, for example by a
/// panic, it tells that loading failed.
#[derive(Debug)]
pub struct Loading {
    served: Served,
}

impl Loading {
    /// The model is loaded: requests are answered from now on.
    pub fn ready(self, engine: Engine) {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let own_ids = Arc::new(OwnIds::of(engine.info()));
        self.served.settle(Outcome::Ready(Model { engine, created, own_ids }));
    }

    /// The model could not be loaded. Anybody can read the reason at `/ready`: no secrets.
    pub fn failed(self, reason: impl Into<String>) {
        self.served.settle(Outcome::Failed(reason.into()));
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.served.settle(Outcome::Failed("loading ended without a model".to_owned()));
    }
}

/// A model that is being served.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) engine: Engine,
    /// When it became ready, in seconds since 1970.
    pub(crate) created: u64,
    /// To tell its token ids from others.
    pub(crate) own_ids: Arc<OwnIds>,
}

/// The server's side.
#[derive(Debug, Clone, Default)]
pub(crate) struct Served {
    outcome: Arc<OnceLock<Outcome>>,
}

#[derive(Debug)]
pub(crate) enum Outcome {
    Ready(Model),
    Failed(String),
}

impl Served {
    /// The handle for the loader.
    pub(crate) fn loading(&self) -> Loading {
        Loading { served: self.clone() }
    }

    /// How loading ended; `None` while it goes on.
    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        self.outcome.get()
    }

    /// The first outcome counts: the one of a drop after `ready` is ignored.
    fn settle(&self, outcome: Outcome) {
        let _ = self.outcome.set(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_loader_is_a_failure() {
        let served = Served::default();
        let loading = served.loading();
        assert!(served.outcome().is_none());
        drop(loading);
        assert!(matches!(served.outcome(), Some(Outcome::Failed(_))));
    }

    #[test]
    fn the_first_outcome_counts() {
        let served = Served::default();
        served.loading().failed("no such file");
        assert!(
            matches!(served.outcome(), Some(Outcome::Failed(reason)) if reason == "no such file")
        );
    }
}
