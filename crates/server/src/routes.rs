//! Which address leads where, and through what: metrics and access log ([`track`]), JSON for every
//! error ([`explain`]), browsers' origins, the count of what requests hold ([`account`]), panics, and
//! keys ([`require_key`]).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::http::{HeaderValue, Method};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, body::Body};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer, ExposeHeaders};

use crate::ServeError;
use crate::admin::{ask, devices, memory};
use crate::app::App;
use crate::dialects::{self, call::REPLY_HEADERS, explain};
use crate::failure::Failure;
use crate::layers::telemetry::{REQUEST_ID, track};
use crate::layers::{account, one_at_a_time, refuse_web_pages, require_key};
use crate::reply;
use crate::settings::Origins;

/// How long a browser may remember that an origin is allowed.
const PREFLIGHT_AGE: Duration = Duration::from_secs(3600);

const METRICS_TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// All routes. Those of the operator are there only if the settings say so. Work, like everything
/// about the model, asks for a key; what load balancers and Prometheus poll does not, and tells
/// nothing about requests' contents.
pub(crate) fn router(app: &Arc<App>) -> Result<Router, ServeError> {
    let cors = cors(app.settings.cors_origins()?);
    let operators = if app.settings.admin { operators(app) } else { Router::new() };
    let about = dialects::routes()
        .merge(operators)
        .route_layer(from_fn_with_state(Arc::clone(app), require_key));
    let polled = Router::new()
        .route("/", get(health))
        .route("/health", get(health))
        .route("/ping", get(health))
        .route("/ready", get(ready))
        .merge(
            Router::new()
                .route("/metrics", get(metrics))
                .route_layer(from_fn_with_state(Arc::clone(app), one_at_a_time)),
        );
    let routes = about.merge(polled).fallback(no_route).method_not_allowed_fallback(wrong_method);
    Ok(layered(routes, app, cors))
}

/// Routes behind what holds for all of them. The layer added last is met first.
fn layered(routes: Router<Arc<App>>, app: &Arc<App>, cors: Option<CorsLayer>) -> Router {
    let routes = routes
        .layer(CatchPanicLayer::custom(|_| Failure::Internal.into_response()))
        .layer(from_fn_with_state(Arc::clone(&app.memory), account));
    let routes = if let Some(cors) = cors { routes.layer(cors) } else { routes };
    routes
        .layer(from_fn(explain))
        .layer(from_fn_with_state(Arc::clone(&app.metrics), track))
        .with_state(Arc::clone(app))
}

/// What only the operator is to see and to do.
fn operators(app: &Arc<App>) -> Router<Arc<App>> {
    Router::new()
        .route("/admin/devices", get(devices::reports))
        .route("/admin/devices/drain", post(devices::drain))
        .route("/admin/devices/restore", post(devices::restore))
        .route("/admin/memory", get(memory::figures))
        .route("/admin/memory/trim", post(memory::trim))
        .route("/admin/memory/trace", get(memory::trace))
        .route_layer(from_fn_with_state(Arc::clone(app), one_at_a_time))
        .route_layer(from_fn_with_state(Arc::clone(app), refuse_web_pages))
}

/// Lets pages of the allowed origins send keys and read the headers of replies.
fn cors(origins: Origins) -> Option<CorsLayer> {
    let origins = match origins {
        Origins::These(origins) if origins.is_empty() => return None,
        Origins::These(origins) => AllowOrigin::list(origins),
        Origins::Any => AllowOrigin::any(),
    };
    let exposed = REPLY_HEADERS.into_iter().chain([REQUEST_ID]).collect::<Vec<HeaderName>>();
    Some(
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST])
            // Browsers do not take `*` to include `authorization`.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(ExposeHeaders::list(exposed))
            .max_age(PREFLIGHT_AGE),
    )
}

/// The process is alive, whatever its model does.
async fn health() -> Response {
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

async fn no_route(request: Request) -> Failure {
    Failure::NoRoute { path: request.uri().path().to_owned() }
}

async fn wrong_method(request: Request) -> Failure {
    Failure::Method { method: request.method().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;
    use crate::app::Served;
    use axum::http::StatusCode;
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;
    use serde_json::{Value, json};

    async fn defect() -> Response {
        panic!("a defect");
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_the_server_s_fault_and_no_more() {
        let stop = tokio::sync::watch::channel(None).1;
        let app = Arc::new(App::new(Served::default(), Settings::default(), stop));
        let routes = Router::new().route("/defect", get(defect)).route("/health", get(health));
        let router = TowerToHyperService::new(layered(routes, &app, None));
        for (path, status) in [("/defect", 500), ("/health", 200), ("/defect", 500)] {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            let reply = router.call(request).await.unwrap();
            assert_eq!(reply.status(), StatusCode::from_u16(status).unwrap());
            assert!(reply.headers().contains_key(REQUEST_ID));
            let body = axum::body::to_bytes(reply.into_body(), 1000).await.unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            if status == 500 {
                assert_eq!(body["error"]["code"], json!("internal_error"), "{body}");
            }
        }
        assert_eq!(app.memory.held(), 0);
    }
}
