//! What every handler shares: the settings, the limits, and the model once it is loaded.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep_until};

use crate::Settings;
use crate::failure::Failure;
use crate::loading::{Model, Outcome, Served};
use crate::metrics::HttpMetrics;
use crate::room::RequestMemory;

/// The state behind all routes.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) served: Served,
    pub(crate) settings: Settings,
    pub(crate) metrics: Arc<HttpMetrics>,
    /// What requests may hold.
    pub(crate) memory: Arc<RequestMemory>,
    /// For whoever makes a reply about the server itself: one at a time.
    pub(crate) watching: Semaphore,
    /// Requests that have come whole and whose reply is not written yet.
    pub(crate) accepted: AtomicUsize,
    /// Until when bodies may come, once the server stops.
    stop: watch::Receiver<Option<Instant>>,
}

impl App {
    pub(crate) fn new(
        served: Served,
        settings: Settings,
        stop: watch::Receiver<Option<Instant>>,
    ) -> Self {
        Self {
            memory: Arc::new(RequestMemory::new(&settings)),
            watching: Semaphore::new(1),
            accepted: 0.into(),
            metrics: Arc::new(HttpMetrics::new(Arc::clone(&settings.lost_log_lines))),
            served,
            settings,
            stop,
        }
    }

    /// Whether the server finishes what it has and takes nothing more.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.borrow().is_some()
    }

    /// Returns when the server stops and no longer waits for bodies.
    pub(crate) async fn bodies_end(&self) {
        let mut stop = self.stop.clone();
        let until = stop.wait_for(Option::is_some).await.map_or(None, |until| *until);
        match until {
            Some(until) => sleep_until(until).await,
            // Whoever stops the server is gone, and so is the server.
            None => std::future::pending().await,
        }
    }

    /// The model, if it is loaded.
    pub(crate) fn model(&self) -> Result<&Model, Failure> {
        match self.served.outcome() {
            Some(Outcome::Ready(model)) => Ok(model),
            Some(Outcome::Failed(reason)) => Err(Failure::LoadFailed(reason.clone())),
            None => Err(Failure::Loading),
        }
    }

    /// The name that replies give the model.
    pub(crate) fn model_name<'a>(&'a self, model: &'a Model) -> &'a str {
        self.settings.served_model_name.as_deref().unwrap_or(&model.engine.info().model_id)
    }
}

/// A handler that takes the model runs only once there is one.
impl FromRequestParts<Arc<App>> for Model {
    type Rejection = Failure;

    async fn from_request_parts(_: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        app.model().cloned()
    }
}
