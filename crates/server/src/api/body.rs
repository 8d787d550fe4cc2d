//! A request's body, read within limits of size and time.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};

use super::malformed::not_utf8;
use crate::app::App;
use crate::failure::Failure;

/// How much of a body that is too large is read and thrown away. A client that is still sending
/// when the connection closes sees a broken connection instead of the reply.
const DISCARD: usize = 32 << 20;

const NOT_JSON: &str = "the body must be JSON: send 'content-type: application/json'";
const ENCODED: &str = "compressed bodies are not supported: send no 'content-encoding'";

/// A body that says it is JSON, or says nothing, as text.
#[derive(Debug)]
pub(crate) struct JsonText(pub(crate) String);

impl FromRequest<Arc<App>> for JsonText {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Failure> {
        check_media_type(request.headers())?;
        let limit = app.settings.payload_limit;
        if announced_too_large(request.headers(), limit) {
            return Err(Failure::TooLarge { limit });
        }
        let patience = app.settings.read_timeout;
        let bytes = tokio::time::timeout(patience, read(request.into_body(), limit))
            .await
            .map_err(|_| Failure::SlowBody { limit: patience })??;
        String::from_utf8(bytes).map(Self).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            not_utf8(error.as_bytes(), at)
        })
    }
}

/// Any other type is refused rather than tried: web pages can send those to other origins without
/// being asked by the browser whether they may.
fn check_media_type(headers: &HeaderMap) -> Result<(), Failure> {
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(Failure::MediaType(ENCODED));
    }
    let Some(media) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let media = media.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    let media = media.trim().to_ascii_lowercase();
    let json = media == "application/json"
        || (media.starts_with("application/") && media.ends_with("+json"));
    if json { Ok(()) } else { Err(Failure::MediaType(NOT_JSON)) }
}

/// Whether the head alone shows that the body is not worth waiting for: the client asks before it
/// sends, or there is more than would be thrown away.
fn announced_too_large(headers: &HeaderMap, limit: usize) -> bool {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or(0);
    let asks = headers.contains_key(header::EXPECT);
    length > if asks { limit } else { limit.saturating_add(DISCARD) }
}

async fn read(mut body: Body, limit: usize) -> Result<Vec<u8>, Failure> {
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut bytes = Vec::with_capacity(expected.min(limit));
    let mut received = 0_usize;
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|_| Failure::Malformed("it was cut off".to_owned()))?;
        let Ok(data) = frame.into_data() else { continue }; // trailers
        received = received.saturating_add(data.len());
        if received <= limit {
            bytes.extend_from_slice(&data);
        } else if received > limit.saturating_add(DISCARD) {
            break;
        }
    }
    if received > limit { Err(Failure::TooLarge { limit }) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_or_silence_is_accepted() {
        let check = |name: header::HeaderName, value: &str| {
            check_media_type(&HeaderMap::from_iter([(name, value.parse().unwrap())]))
        };
        assert_eq!(check_media_type(&HeaderMap::new()), Ok(()));
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
}
