//! The work that dialects share: from a request whose body is read within limits of size and time,
//! and that is admitted, to the reply that one of them writes.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Request as HttpRequest};
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::{IntoResponse, Response};
use tokio::time::{Instant, timeout, timeout_at};
use vecmill_engine::{Input, Keep, Reply, Request, RequestError};

use crate::app::App;
use crate::failure::Failure;
use crate::http::pace::Pace;
use crate::json::malformed::not_utf8;
use crate::json::object::Contract;
use crate::json::token_ids;
use crate::loading::Model;
use crate::reply::REQUEST_ID;
use crate::reply::{self, Encoding, WARNING, Work};
use crate::room::Room;

/// Tells in what relation the page that asks is to the server.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

const NOT_JSON: &str = "the body must be JSON: send 'content-type: application/json'";
const ENCODED: &str = "compressed bodies are not supported: send no 'content-encoding'";

/// A request that was admitted to work, with its body.
pub(crate) struct Call {
    pub(crate) contract: &'static Contract,
    pub(crate) app: Arc<App>,
    pub(crate) room: Room,
    pub(crate) body: String,
    /// The request's, as the log has it.
    pub(crate) id: String,
}

impl FromRequest<Arc<App>> for Call {
    type Rejection = Failure;

    async fn from_request(request: HttpRequest, app: &Arc<App>) -> Result<Self, Failure> {
        let (mut parts, body) = request.into_parts();
        let room = Room::from_request_parts(&mut parts, app).await?;
        let contract = *parts.extensions.get::<&'static Contract>().ok_or(Failure::Internal)?;
        let body = read_body(&parts.headers, body, app, &room, contract).await?;
        let id = parts.headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
        let id = id.unwrap_or_default().to_owned();
        Ok(Self { contract, app: Arc::clone(app), room, body, id })
    }
}

impl Call {
    /// Embeds what was read of the body, and answers with what `write` makes of the
    /// vectors, whose numbers it writes as `encoding`.
    ///
    /// The engine has the request's memory counted for as long as it holds anything of it, whether
    /// or not somebody still waits for the reply.
    pub(crate) async fn embed(
        self,
        model: &Model,
        request: Request,
        encoding: Encoding,
        write: impl FnOnce(&Reply) -> serde_json::Result<Vec<u8>> + Send + 'static,
    ) -> Result<Response, Failure> {
        let Self { contract, app, room, body, .. } = self;
        drop(body);
        let info = model.engine.info();
        let hold = |bytes| room.hold_more(bytes);
        let mut request = token_ids::as_meant(request, contract, &app.settings, hold)?;
        room.hold_more(reply::room(&request, info, encoding))?;
        let characters = request.inputs.iter().map(characters).sum();
        let warning = model.own_ids.warning(&request.inputs);
        request.keep = Keep::new(room.memory());
        let limit = app.settings.request_timeout;
        let reply = timeout(limit, model.engine.embed(request))
            .await
            .map_err(|_| Failure::Timeout { limit })??;
        let work = Work {
            characters,
            tokens: reply.tokens(),
            truncated: reply.embeddings.iter().filter(|embedding| embedding.truncated).count(),
            timings: reply.timings,
        };
        let mut headers = reply::headers(&work, info);
        headers.extend(warning.map(|warning| (WARNING, warning)));
        let numbers = reply.embeddings.iter().map(|embedding| embedding.vector.len()).sum();
        let body = reply::write(numbers, room, move || write(&reply)).await?;
        Ok((headers, body).into_response())
    }
}

/// As TEI counts: characters of text, or tokens where there is no text.
fn characters(input: &Input) -> usize {
    match input {
        Input::Text(text) => text.chars().count(),
        Input::Tokens(tokens) => tokens.len(),
    }
}

/// A body that says it is JSON, or says nothing, as text. When this returns, the request has been
/// admitted: there is a place for its work and room for what that holds, `held_per_byte` for each
/// byte of the body.
///
/// # Errors
/// [`Failure`]: another type than JSON, too long, too slow, or no place or room for it.
async fn read_body(
    headers: &HeaderMap,
    body: Body,
    app: &App,
    room: &Room,
    contract: &Contract,
) -> Result<String, Failure> {
    check_media_type(headers, contract.any_media_type)?;
    let limit = app.settings.payload_limit;
    let pace = Pace { patience: app.settings.read_timeout };
    let bytes = tokio::select! {
        biased;
        bytes = read_bytes(body, limit, pace, room) => bytes?,
        () = app.bodies_end() => return Err(RequestError::Stopped.into()),
    };
    room.admit(bytes.len(), contract.held_per_byte)?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        not_utf8(error.as_bytes(), at)
    })
}

/// Any other type than JSON is refused rather than tried: web pages can send those to other origins
/// without being asked by the browser whether they may. Browsers say where a request comes from, so
/// `any` type may be read of a program that does not, if its server reads it too.
fn check_media_type(headers: &HeaderMap, any: bool) -> Result<(), Failure> {
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(Failure::MediaType(ENCODED));
    }
    let of_browser = [header::ORIGIN, SEC_FETCH_SITE].iter().any(|it| headers.contains_key(it));
    if any && !of_browser {
        return Ok(());
    }
    let Some(media) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let media = media.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    let media = media.trim().to_ascii_lowercase();
    let json = media == "application/json"
        || (media.starts_with("application/") && media.ends_with("+json"));
    if json { Ok(()) } else { Err(Failure::MediaType(NOT_JSON)) }
}

/// Reads a body of at most `limit` bytes into memory for which there is room: for what has come, not
/// for what is announced.
async fn read_bytes(
    mut body: Body,
    limit: usize,
    pace: Pace,
    room: &Room,
) -> Result<Vec<u8>, Failure> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limit {
        return Err(Failure::TooLarge { limit });
    }
    let start = Instant::now();
    let mut bytes = Vec::new();
    loop {
        let allowed = pace.allowed(bytes.len() as u64);
        let next = timeout_at(start + allowed, poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)));
        let Some(frame) = next.await.map_err(|_| Failure::SlowBody { limit: allowed })? else {
            return Ok(bytes);
        };
        let frame = frame.map_err(|_| Failure::Malformed("it was cut off".to_owned()))?;
        let Ok(data) = frame.into_data() else { continue }; // trailers
        let length = bytes.len() + data.len();
        if length > limit {
            return Err(Failure::TooLarge { limit });
        }
        if length > bytes.capacity() {
            let most = if announced > 0 { announced } else { limit };
            let capacity = length.max(most.min(bytes.capacity() * 2));
            room.hold(capacity)?;
            bytes.reserve_exact(capacity - bytes.len());
        }
        bytes.extend_from_slice(&data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_or_silence_is_accepted() {
        let check = |name: HeaderName, value: &str| {
            check_media_type(&HeaderMap::from_iter([(name, value.parse().unwrap())]), false)
        };
        assert_eq!(check_media_type(&HeaderMap::new(), false), Ok(()));
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/x+json"] {
            assert_eq!(check(header::CONTENT_TYPE, good), Ok(()), "{good}");
        }
        for bad in ["text/plain", "application/x-www-form-urlencoded", "json", "application/jsonp"]
        {
            assert_eq!(
                check(header::CONTENT_TYPE, bad),
                Err(Failure::MediaType(NOT_JSON)),
                "{bad}"
            );
        }
        assert_eq!(check(header::CONTENT_ENCODING, "gzip"), Err(Failure::MediaType(ENCODED)));
    }

    #[test]
    fn only_programs_may_leave_the_type_wrong_and_only_where_servers_take_it() {
        let form = (header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        let check = |more: &[(HeaderName, &str)], any| {
            let headers = more.iter().chain([&form]);
            let headers = headers.map(|(name, value)| (name.clone(), value.parse().unwrap()));
            check_media_type(&headers.collect(), any)
        };
        assert_eq!(check(&[], true), Ok(()));
        for browser in [(header::ORIGIN, "null"), (SEC_FETCH_SITE, "cross-site")] {
            assert_eq!(check(&[browser], true), Err(Failure::MediaType(NOT_JSON)));
        }
        assert_eq!(
            check(&[(header::CONTENT_ENCODING, "gzip")], true),
            Err(Failure::MediaType(ENCODED))
        );
    }
}
