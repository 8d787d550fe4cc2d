//! The only place where a failure becomes a reply: whatever the cause, from a wrong key to a panic, it
//! is JSON in the words of the dialect that the address belongs to, or, where several share one, of
//! the dialect that the request turned out to be of.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::{ALL, Dialect};
use crate::failure::{Explain, Failure};
use crate::reply;

/// Whose words an address speaks.
fn of(path: &str) -> &'static Dialect {
    let has = |dialect: &&&Dialect| dialect.addresses.iter().any(|it| it.path == path);
    ALL.iter().find(has).unwrap_or(&ALL[0])
}

/// The layer that gives a failure its status, headers and body.
pub(crate) async fn explain(request: Request, next: Next) -> Response {
    let dialect = of(request.uri().path());
    let mut response = next.run(request).await;
    let Some(failure) = response.extensions().get::<Failure>().cloned() else { return response };
    let explain = response.extensions().get::<Explain>().copied().unwrap_or(dialect.explain);
    let (status, body) = explain(&failure);
    *response.status_mut() = status;
    *response.body_mut() = Body::from(body.to_string());
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, reply::JSON);
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(wait) = failure.retry_after() {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::time::Duration;
    use vecmill_engine::{Health, RequestError};

    /// What is said at an address.
    fn said(path: &str, failure: &Failure) -> (u16, Value) {
        let (status, body) = (of(path).explain)(failure);
        (status.as_u16(), body)
    }

    #[test]
    fn openai_errors_always_have_all_four_keys() {
        let failures = [
            Failure::Malformed("expected value at line 1 column 1".into()),
            Failure::NoKey,
            Failure::Internal,
            RequestError::NoInputs.into(),
        ];
        for failure in failures {
            let (_, body) = said("/nowhere", &failure);
            let error = body["error"].as_object().unwrap();
            assert_eq!(error.len(), 4);
            for key in ["message", "type", "param", "code"] {
                assert!(error.contains_key(key), "{failure:?} lacks {key}");
            }
        }
    }

    #[test]
    fn the_fault_decides_the_status() {
        let busy = RequestError::Busy { waiting: 9, retry_after: Duration::from_millis(1500) };
        let device = RequestError::Device { device: "cpu".into(), reason: "it melted".into() };
        let memory = RequestError::NoMemory {
            device: "cpu".into(),
            reason: "all is leased".into(),
            retry_after: Duration::from_secs(2),
        };
        let large = RequestError::InputTooLarge { index: 0, needed: 9, available: 8 };
        let long = RequestError::TooManyTokens { index: 2, tokens: 900, limit: 512 };
        let token = RequestError::UnknownToken { index: 0, token: 9, last: 8 };
        let prompt = RequestError::UnknownPrompt { name: "q".into(), known: Vec::new() };
        let standing = vec![("cpu".to_owned(), Health::Drained)];
        let field = Failure::Field { param: "a".into(), problem: "is b".into() };
        let table = [
            (RequestError::NoDevice { standing }.into(), (503, "server_error"), (503, "Unhealthy")),
            (RequestError::NotFinite { index: 3 }.into(), (500, "server_error"), (424, "Backend")),
            (RequestError::NoInputs.into(), (400, "invalid_request_error"), (400, "Empty")),
            (
                RequestError::EmptyInput { index: 0 }.into(),
                (400, "invalid_request_error"),
                (400, "Empty"),
            ),
            (long.into(), (400, "invalid_request_error"), (413, "Validation")),
            (token.into(), (400, "invalid_request_error"), (422, "Tokenizer")),
            (prompt.into(), (400, "invalid_request_error"), (422, "Validation")),
            (busy.into(), (429, "requests"), (429, "Overloaded")),
            (RequestError::Expired.into(), (429, "requests"), (429, "Overloaded")),
            (memory.into(), (503, "server_error"), (503, "Overloaded")),
            (large.into(), (500, "server_error"), (424, "Backend")),
            (RequestError::Stopped.into(), (503, "server_error"), (503, "Unhealthy")),
            (device.into(), (500, "server_error"), (424, "Backend")),
            (RequestError::Lost.into(), (500, "server_error"), (424, "Backend")),
            (Failure::Internal, (500, "server_error"), (500, "Backend")),
            (Failure::Loading, (503, "server_error"), (503, "Unhealthy")),
            (
                Failure::Timeout { limit: Duration::from_secs(1) },
                (504, "server_error"),
                (504, "Backend"),
            ),
            (Failure::NoKey, (401, "invalid_request_error"), (401, "Unauthorized")),
            (
                Failure::Origin { origin: "null".into() },
                (403, "invalid_request_error"),
                (403, "Unauthorized"),
            ),
            (
                Failure::NoRoute { path: "/".into() },
                (404, "invalid_request_error"),
                (404, "Validation"),
            ),
            (field, (400, "invalid_request_error"), (422, "Validation")),
            (
                Failure::TooManyInputs { param: "input", limit: 1 },
                (400, "invalid_request_error"),
                (413, "Validation"),
            ),
            (Failure::TooLarge { limit: 1 }, (413, "invalid_request_error"), (413, "Validation")),
            (Failure::MemoryTaken, (429, "requests"), (429, "Overloaded")),
        ];
        for (failure, openai, tei) in table {
            let failure: Failure = failure;
            let (status, body) = said("/v1/embeddings", &failure);
            assert_eq!(
                (status, &body["error"]["type"]),
                (openai.0, &json!(openai.1)),
                "{failure:?}"
            );
            let (status, body) = said("/embed", &failure);
            assert_eq!((status, &body["error_type"]), (tei.0, &json!(tei.1)), "{failure:?}");
        }
    }

    #[test]
    fn the_blamed_field_is_named() {
        let param = |failure: Failure| said("/v1/embeddings", &failure).1["error"]["param"].clone();
        assert_eq!(param(RequestError::EmptyInput { index: 3 }.into()), "input[3]");
        assert_eq!(param(RequestError::NotFinite { index: 2 }.into()), "input[2]");
        assert_eq!(param(RequestError::Dimensions { asked: 0, available: 8 }.into()), "dimensions");
        assert_eq!(param(Failure::Loading), Value::Null);
    }
}
