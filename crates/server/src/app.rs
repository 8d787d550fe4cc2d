//! What every handler shares.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use tokio::sync::Semaphore;

use crate::Settings;
use crate::failure::Failure;
use crate::slot::{Model, Outcome, Slot};
use crate::telemetry::HttpMetrics;

/// The state behind all routes.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) slot: Slot,
    pub(crate) settings: Settings,
    pub(crate) metrics: HttpMetrics,
    /// One permit for each request that may be at work.
    pub(crate) permits: Semaphore,
}

impl App {
    pub(crate) fn new(slot: Slot, settings: Settings) -> Self {
        // More permits than a semaphore has would be no limit at all.
        let permits = settings.max_concurrent_requests.min(Semaphore::MAX_PERMITS);
        Self { slot, settings, metrics: HttpMetrics::new(), permits: Semaphore::new(permits) }
    }

    /// The model, if it is loaded.
    pub(crate) fn model(&self) -> Result<&Model, Failure> {
        match self.slot.outcome() {
            Some(Outcome::Ready(model)) => Ok(model),
            Some(Outcome::Failed(reason)) => Err(Failure::LoadFailed(reason.clone())),
            None => Err(Failure::Loading),
        }
    }

    /// The name that replies give the model.
    pub(crate) fn model_name<'a>(&'a self, model: &'a Model) -> &'a str {
        self.settings.served_model_name.as_deref().unwrap_or(&model.embedder.info().model_id)
    }
}

/// A handler that takes the model runs only once there is one.
impl FromRequestParts<Arc<App>> for Model {
    type Rejection = Failure;

    async fn from_request_parts(_: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        app.model().cloned()
    }
}
