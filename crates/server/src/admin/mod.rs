//! What the operator can see and do: the devices ([`devices`]) and their memory ([`memory`]).
//!
//! The choice behind it: these addresses are off unless [`Settings::admin`](crate::Settings::admin)
//! says otherwise, ask for a key where there are keys, and answer no web pages. They are not limited
//! in number like work is, so that they answer when the server is busiest.

pub(crate) mod ask;
mod devices;
mod memory;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};

use crate::app::App;
use crate::browsers::refuse_web_pages;

/// What only the operator is to see and to do.
pub(crate) fn routes(app: &Arc<App>) -> Router<Arc<App>> {
    Router::new()
        .route("/admin/devices", get(devices::reports))
        .route("/admin/devices/drain", post(devices::drain))
        .route("/admin/devices/restore", post(devices::restore))
        .route("/admin/memory", get(memory::figures))
        .route("/admin/memory/trim", post(memory::trim))
        .route("/admin/memory/recording", get(memory::recording))
        .route_layer(from_fn_with_state(Arc::clone(app), one_at_a_time))
        .route_layer(from_fn_with_state(Arc::clone(app), refuse_web_pages))
}

/// Has replies that are made without a limit made one at a time: what they take is known afterwards.
pub(crate) async fn one_at_a_time(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Response {
    let _turn = app.watching.acquire().await;
    next.run(request).await
}
