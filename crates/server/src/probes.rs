//! What load balancers and Prometheus poll: whether the server lives, whether it is ready, and its
//! metrics.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::admin::{ask, one_at_a_time};
use crate::app::App;
use crate::failure::Failure;
use crate::reply;

const METRICS_TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Their addresses, which ask for no key.
pub(crate) fn routes(app: &Arc<App>) -> Router<Arc<App>> {
    let metrics = get(metrics).route_layer(from_fn_with_state(Arc::clone(app), one_at_a_time));
    Router::new()
        .route("/", get(health))
        .route("/health", get(health))
        .route("/ping", get(health))
        .route("/ready", get(ready))
        .route("/metrics", metrics)
}

/// The process is alive, whatever its model does.
pub(crate) async fn health() -> Response {
    reply::json(r#"{"status":"ok"}"#)
}

/// Requests for vectors would be answered: the model is loaded, and some device serves.
async fn ready(State(app): State<Arc<App>>) -> Result<Response, Failure> {
    app.model()?.engine.readiness()?;
    Ok(reply::json(r#"{"status":"ready"}"#))
}

/// The engine's metrics, read beside the async threads, and the server's own.
async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Failure> {
    let mut text = match app.model() {
        Ok(model) => ask::beside(model, |engine| {
            let mut text = String::new();
            engine.write_metrics(&mut text).map(|()| text)
        })
        .await?
        .map_err(|_| Failure::Internal)?,
        Err(_) => String::new(),
    };
    app.metrics.write_last(&app.memory, &mut text).map_err(|_| Failure::Internal)?;
    text.shrink_to_fit(); // what is not used is not counted
    Ok(([(CONTENT_TYPE, METRICS_TYPE)], Body::from(text)).into_response())
}
