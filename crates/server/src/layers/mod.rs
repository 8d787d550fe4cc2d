//! What every request passes on its way to a handler, and its reply on the way back.
//!
//! Here are who may ask ([`require_key`], [`refuse_web_pages`]), and that what a request makes the
//! server hold is counted ([`account`], [`room`]); what is told of it is in [`telemetry`].

pub(crate) mod key;
pub(crate) mod room;
pub(crate) mod telemetry;

use std::sync::Arc;

use axum::body::HttpBody;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::app::App;
use crate::failure::Failure;
use room::{RequestMemory, Room};

/// Lets requests with one of the server's keys through; all, if it has none.
pub(crate) async fn require_key(
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

/// The key in `authorization: Bearer KEY`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Gives each request a room for what it makes the server hold, and lets its reply have no more.
pub(crate) async fn account(
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

/// Has replies that are made without a limit made one at a time: what they take is known afterwards.
pub(crate) async fn one_at_a_time(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Response {
    let _turn = app.watching.acquire().await;
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
