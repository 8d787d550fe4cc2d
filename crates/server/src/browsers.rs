//! Browsers: which web pages may use the server.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::http::header::{self, HeaderName};
use axum::middleware::Next;
use axum::response::Response;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer, ExposeHeaders};

use crate::app::App;
use crate::failure::Failure;
use crate::reply::{REPLY_HEADERS, REQUEST_ID};
use crate::settings::Origins;

/// How long a browser may remember that an origin is allowed.
const PREFLIGHT_AGE: Duration = Duration::from_secs(3600);

/// Lets pages of the allowed origins send keys and read the headers of replies.
pub(crate) fn cors(origins: Origins) -> Option<CorsLayer> {
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

/// Refuses what a browser sends for a web page, unless the page's origin is allowed. Without this,
/// any page that the operator looks at could ask a server that listens on the operator's machine
/// and has no key: browsers send such requests, and only keep the replies from the page.
pub(crate) async fn refuse_web_pages(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, Failure> {
    let allowed = &app.settings.cors_allow_origin;
    if let Some(origin) = request.headers().get(header::ORIGIN) {
        let origin = String::from_utf8_lossy(origin.as_bytes());
        if !allowed.iter().any(|known| known == "*" || *known == origin) {
            return Err(Failure::Origin { origin: origin.into_owned() });
        }
    }
    Ok(next.run(request).await)
}
