//! Which address leads where, and what every request passes on its way to a handler, and its reply
//! on the way back: what is told of it ([`track`]), JSON for every error
//! ([`explain`](dialects::explain)), browsers' origins, the count of what it holds ([`account`]),
//! panics, and keys ([`require_key`]).
//!
//! Labels of metrics and log lines name the route's pattern, never the address as sent; no line has
//! text, keys or vectors.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use axum::Router;
use axum::body::HttpBody;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::CorsLayer;

use crate::app::App;
use crate::failure::Failure;
use crate::metrics::HttpMetrics;
use crate::reply::REQUEST_ID;
use crate::room::{RequestMemory, Room};
use crate::{ServeError, admin, browsers, dialects, key, probes};

/// The longest id that is taken from a client.
const MAX_ID: usize = 128;

/// The status of a request whose client did not wait for the reply.
const CLIENT_LEFT: u16 = 499;

/// All routes. Those of the operator are there only if the settings say so. Work, like everything
/// about the model, asks for a key; what load balancers and Prometheus poll does not, and tells
/// nothing about requests' contents.
pub(crate) fn router(app: &Arc<App>) -> Result<Router, ServeError> {
    let cors = browsers::cors(app.settings.cors_origins()?);
    let operators = if app.settings.admin { admin::routes(app) } else { Router::new() };
    let about = dialects::routes()
        .merge(operators)
        .route_layer(from_fn_with_state(Arc::clone(app), require_key));
    let routes = about
        .merge(probes::routes(app))
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method);
    Ok(layered(routes, app, cors))
}

/// Routes behind what holds for all of them. The layer added last is met first.
fn layered(routes: Router<Arc<App>>, app: &Arc<App>, cors: Option<CorsLayer>) -> Router {
    let routes = routes
        .layer(CatchPanicLayer::custom(|_| Failure::Internal.into_response()))
        .layer(from_fn_with_state(Arc::clone(&app.memory), account));
    let routes = if let Some(cors) = cors { routes.layer(cors) } else { routes };
    routes
        .layer(from_fn(dialects::explain))
        .layer(from_fn_with_state(Arc::clone(&app.metrics), track))
        .with_state(Arc::clone(app))
}

async fn no_route(request: Request) -> Failure {
    Failure::NoRoute { path: request.uri().path().to_owned() }
}

async fn wrong_method(request: Request) -> Failure {
    Failure::Method { method: request.method().to_string() }
}

/// A request being served; its end is recorded when this is dropped, however it ends.
struct InFlight {
    metrics: Arc<HttpMetrics>,
    route: Arc<str>,
    method: &'static str,
    id: HeaderValue,
    status: u16,
    /// What went wrong, if that is the server's fault.
    incident: Option<String>,
    start: Instant,
}

impl InFlight {
    fn new(metrics: Arc<HttpMetrics>, request: &Request) -> Self {
        metrics.began();
        let matched = request.extensions().get::<MatchedPath>();
        Self {
            metrics,
            route: matched.map_or("unmatched", MatchedPath::as_str).into(),
            method: known(request.method()),
            id: request_id(request.headers().get(REQUEST_ID)),
            status: CLIENT_LEFT,
            incident: None,
            start: Instant::now(),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let elapsed = self.start.elapsed().as_secs_f64();
        let (method, status) = (self.method, self.status);
        self.metrics.ended(&self.route, method, status, elapsed);
        let (route, id) = (&*self.route, self.id.to_str().unwrap_or_default());
        if let Some(incident) = &self.incident {
            tracing::error!(method, route, status, seconds = elapsed, id, incident, "request");
        } else if matches!(route, "/health" | "/ping" | "/ready" | "/metrics") {
            tracing::debug!(method, route, status, seconds = elapsed, id, "request");
        } else {
            tracing::info!(method, route, status, seconds = elapsed, id, "request");
        }
    }
}

/// The layer that counts, times and logs a request, and gives its reply the id.
async fn track(
    State(metrics): State<Arc<HttpMetrics>>,
    mut request: Request,
    next: Next,
) -> Response {
    let mut in_flight = InFlight::new(metrics, &request);
    request.headers_mut().insert(REQUEST_ID, in_flight.id.clone());
    let mut response = next.run(request).await;
    in_flight.status = response.status().as_u16();
    let failure = response.extensions().get::<Failure>();
    in_flight.incident = failure.filter(|failure| failure.is_incident()).map(Failure::to_string);
    response.headers_mut().insert(REQUEST_ID, in_flight.id.clone());
    response
}

/// Methods as a bounded set of labels: a client can make names up.
fn known(method: &Method) -> &'static str {
    const KNOWN: [(Method, &str); 7] = [
        (Method::GET, "GET"),
        (Method::POST, "POST"),
        (Method::HEAD, "HEAD"),
        (Method::OPTIONS, "OPTIONS"),
        (Method::PUT, "PUT"),
        (Method::PATCH, "PATCH"),
        (Method::DELETE, "DELETE"),
    ];
    KNOWN.iter().find(|(known, _)| known == method).map_or("other", |(_, name)| name)
}

/// The client's id if it is harmless to repeat, else a new one.
fn request_id(sent: Option<&HeaderValue>) -> HeaderValue {
    static REQUESTS: AtomicU64 = AtomicU64::new(0);
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0));
    let harmless = |id: &&HeaderValue| {
        (1..=MAX_ID).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    sent.filter(harmless).cloned().unwrap_or_else(|| {
        let id = format!("{:016x}-{:x}", *PROCESS, REQUESTS.fetch_add(1, Ordering::Relaxed));
        HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("unknown"))
    })
}

/// Gives each request a room for what it makes the server hold, and lets its reply have no more.
async fn account(
    State(memory): State<Arc<RequestMemory>>,
    mut request: Request,
    next: Next,
) -> Result<Response, Failure> {
    let room = Room::new(&memory, request.extensions().get::<MatchedPath>());
    request.extensions_mut().insert(room.clone());
    let mut response = next.run(request).await;
    // A reply that is written as it is made has its room from whoever makes it.
    if let Some(bytes) = response.body().size_hint().exact() {
        room.settle(usize::try_from(bytes).unwrap_or(usize::MAX))?;
    }
    // It goes with the reply, until that is written.
    response.extensions_mut().insert(room);
    Ok(response)
}

/// Lets requests with one of the server's keys through; all, if it has none.
async fn require_key(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, Failure> {
    let keys = &app.settings.api_keys;
    if !keys.is_empty() {
        let sent = bearer(request.headers()).ok_or(Failure::NoKey)?;
        if !key::is_among(keys, sent) {
            return Err(Failure::WrongKey);
        }
    }
    Ok(next.run(request).await)
}

/// The key in `authorization: Bearer KEY`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;
    use crate::loading::Served;
    use crate::probes::health;
    use axum::body::Body;
    use axum::http::StatusCode;
    use axum::routing::get;
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

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        let sent = |value: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(sent("Bearer k"), Some("k".into()));
        assert_eq!(sent("bearer  k"), Some("k".into()));
        assert_eq!(sent("Basic k"), None);
        assert_eq!(sent("k"), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[test]
    fn ids_are_echoed_only_when_harmless() {
        let harmless = HeaderValue::from_static("abc-123");
        assert_eq!(request_id(Some(&harmless)), harmless);
        let long = HeaderValue::from_str(&"x".repeat(MAX_ID + 1)).unwrap();
        for bad in ["", "two words"].map(HeaderValue::from_static).iter().chain([&long]) {
            assert_ne!(request_id(Some(bad)), *bad);
        }
        assert_ne!(request_id(None), request_id(None));
    }

    #[test]
    fn made_up_methods_share_a_label() {
        assert_eq!(known(&Method::POST), "POST");
        assert_eq!(known(&Method::from_bytes(b"BREW").unwrap()), "other");
    }
}
