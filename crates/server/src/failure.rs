//! Every way in which a request can fail, and how each contract says it.
//!
//! Handlers and layers return a [`Failure`]; it travels as an extension of an empty response to the
//! one place that writes error bodies, [`explain`]. So whatever the cause, from a wrong key to a
//! panic, the reply is JSON in the words of the contract that the route belongs to.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use vecmill_engine::{Fault, RequestError};

use crate::json::token_ids;

/// The most bytes of a message, so that what a client sent is not sent back.
const MAX_MESSAGE: usize = 1000;

/// When to come back while the model loads.
const LOADING_RETRY: Duration = Duration::from_secs(5);

/// Why a request is not answered with what it asked for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the body is not valid JSON: {0}")]
    Malformed(String),
    #[error("`{param}` {problem}")]
    Field { param: String, problem: String },
    #[error("`{param}` has more than {limit} entries: send several requests")]
    TooManyInputs { param: &'static str, limit: usize },
    #[error("{0}")]
    MediaType(&'static str),
    #[error("the body is larger than {limit} bytes: send several requests")]
    TooLarge { limit: usize },
    #[error("the body did not arrive within {} s", limit.as_secs_f32())]
    SlowBody { limit: Duration },
    #[error("no API key was sent: add the header 'authorization: Bearer KEY'")]
    NoKey,
    #[error("the API key is not one of this server's")]
    WrongKey,
    #[error("a web page of {origin} asks, and only those of allowed origins may do so here")]
    Origin { origin: String },
    #[error("there is no device '{device}': expected {}", known.join(" or "))]
    UnknownDevice { device: String, known: Vec<String> },
    #[error("there is nothing at {path}")]
    NoRoute { path: String },
    #[error("{method} is not what this address is for")]
    Method { method: String },
    #[error("all {limit} places for requests are taken: try again in a moment")]
    AtCapacity { limit: usize },
    #[error("requests hold all the memory that they may: try again in a moment")]
    MemoryTaken,
    #[error(
        "this request would take {needed} bytes of memory, and requests may take {limit}: send \
         several smaller ones, or have the server's --max-request-memory raised"
    )]
    TooMuchMemory { needed: usize, limit: usize },
    #[error("the work took longer than {} s: send smaller requests", limit.as_secs_f32())]
    Timeout { limit: Duration },
    #[error("the model is being loaded: try again in a moment")]
    Loading,
    #[error("the model could not be loaded: {0}")]
    LoadFailed(String),
    #[error("the server failed at this request; its log says more")]
    Internal,
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// What the contracts call a failure.
struct Verdict {
    /// The status; OpenAI's and TEI's differ for some.
    openai_status: u16,
    tei_status: u16,
    /// OpenAI's `type` and `code`.
    kind: &'static str,
    code: Option<&'static str>,
    /// TEI's `error_type`.
    error_type: &'static str,
}

const fn verdict(
    (openai_status, tei_status): (u16, u16),
    kind: &'static str,
    code: Option<&'static str>,
    error_type: &'static str,
) -> Verdict {
    Verdict { openai_status, tei_status, kind, code, error_type }
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";
const LIMITED: &str = "requests";

impl Failure {
    fn verdict(&self) -> Verdict {
        match self {
            Self::Malformed(_) => verdict((400, 400), INVALID, Some("invalid_json"), "Validation"),
            Self::Field { .. } => verdict((400, 422), INVALID, None, "Validation"),
            Self::TooManyInputs { .. } => verdict((400, 413), INVALID, None, "Validation"),
            Self::MediaType(_) => {
                verdict((415, 415), INVALID, Some("unsupported_media_type"), "Validation")
            }
            Self::TooLarge { .. } | Self::TooMuchMemory { .. } => {
                verdict((413, 413), INVALID, Some("payload_too_large"), "Validation")
            }
            Self::SlowBody { .. } => {
                verdict((408, 408), INVALID, Some("request_timeout"), "Validation")
            }
            Self::NoKey | Self::WrongKey => {
                verdict((401, 401), INVALID, Some("invalid_api_key"), "Unauthorized")
            }
            Self::Origin { .. } => {
                verdict((403, 403), INVALID, Some("origin_not_allowed"), "Unauthorized")
            }
            Self::UnknownDevice { .. } => {
                verdict((404, 404), INVALID, Some("device_not_found"), "Validation")
            }
            Self::NoRoute { .. } => verdict((404, 404), INVALID, Some("unknown_url"), "Validation"),
            Self::Method { .. } => {
                verdict((405, 405), INVALID, Some("method_not_supported"), "Validation")
            }
            Self::AtCapacity { .. } | Self::MemoryTaken => {
                verdict((429, 429), LIMITED, Some("rate_limit_exceeded"), "Overloaded")
            }
            Self::Timeout { .. } => verdict((504, 504), SERVER, Some("timeout"), "Backend"),
            Self::Loading => verdict((503, 503), SERVER, Some("model_loading"), "Unhealthy"),
            Self::LoadFailed(_) => {
                verdict((503, 503), SERVER, Some("model_unavailable"), "Unhealthy")
            }
            Self::Internal => verdict((500, 500), SERVER, Some("internal_error"), "Backend"),
            Self::Request(error) => request_verdict(error),
        }
    }

    /// Whether this is for the operator to look at: neither the caller's doing nor a state that
    /// the server has told about already.
    pub(crate) fn is_incident(&self) -> bool {
        match self {
            Self::Internal | Self::Timeout { .. } => true,
            Self::Request(RequestError::Stopped) => false,
            Self::Request(error) => error.fault() == Fault::Server,
            _ => false,
        }
    }

    /// The field of an OpenAI request that is to blame.
    fn param(&self) -> Option<String> {
        match self {
            Self::Field { param, .. } => Some(param.clone()),
            Self::TooManyInputs { param, .. } => Some((*param).to_owned()),
            Self::UnknownDevice { .. } => Some("device".to_owned()),
            Self::Request(error) => match (error.input(), error) {
                (Some(index), _) => Some(format!("input[{index}]")),
                (None, RequestError::NoInputs) => Some("input".to_owned()),
                (None, RequestError::Dimensions { .. }) => Some("dimensions".to_owned()),
                (None, RequestError::UnknownPrompt { .. }) => Some("prompt_name".to_owned()),
                _ => None,
            },
            _ => None,
        }
    }

    /// When the same request may succeed.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::AtCapacity { .. } | Self::MemoryTaken => Some(Duration::from_secs(1)),
            Self::Loading => Some(LOADING_RETRY),
            Self::Request(error) => error.retry_after(),
            _ => None,
        }
    }

    /// The failure in words, with what clients of the contract look for in them.
    fn message(&self, contract: Contract) -> String {
        match (self, contract) {
            (Self::Request(RequestError::UnknownToken { .. }), _) => {
                format!("{self}; {}", token_ids::ADVICE)
            }
            // How clients of TEI learn which prompts there are: no route tells.
            (Self::Request(RequestError::UnknownPrompt { known, .. }), Contract::Tei) => {
                format!("{}. Available prompts: {known:?}", short(self.to_string()))
            }
            _ => short(self.to_string()),
        }
    }

    /// The reply in a contract's words.
    fn explained(&self, contract: Contract) -> (StatusCode, String) {
        let verdict = self.verdict();
        let message = self.message(contract);
        let (status, body) = match contract {
            Contract::OpenAi => {
                let (kind, code) = (verdict.kind, verdict.code);
                let param = self.param().map(short);
                let error = json!({"message": message, "type": kind, "param": param, "code": code});
                (verdict.openai_status, json!({ "error": error }))
            }
            Contract::Tei => {
                (verdict.tei_status, json!({"error": message, "error_type": verdict.error_type}))
            }
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, body.to_string())
    }
}

fn request_verdict(error: &RequestError) -> Verdict {
    match error {
        RequestError::NoInputs | RequestError::EmptyInput { .. } => {
            verdict((400, 400), INVALID, None, "Empty")
        }
        RequestError::TooManyTokens { .. } | RequestError::TooMuchToTokenize { .. } => {
            verdict((400, 413), INVALID, Some("context_length_exceeded"), "Validation")
        }
        RequestError::UnknownToken { .. }
        | RequestError::NoEmbedding { .. }
        | RequestError::Tokenizer { .. } => verdict((400, 422), INVALID, None, "Tokenizer"),
        RequestError::Busy { .. } => {
            verdict((429, 429), LIMITED, Some("rate_limit_exceeded"), "Overloaded")
        }
        RequestError::TooLate { .. } | RequestError::Expired => {
            verdict((429, 429), LIMITED, Some("deadline_exceeded"), "Overloaded")
        }
        RequestError::NoMemory { .. } => {
            verdict((503, 503), SERVER, Some("insufficient_memory"), "Overloaded")
        }
        RequestError::InputTooLarge { .. } => {
            verdict((500, 424), SERVER, Some("insufficient_memory"), "Backend")
        }
        RequestError::NotFinite { .. } => {
            verdict((500, 424), SERVER, Some("vector_not_finite"), "Backend")
        }
        RequestError::Lost => verdict((500, 424), SERVER, Some("internal_error"), "Backend"),
        RequestError::NoDevice { .. } => {
            verdict((503, 503), SERVER, Some("no_device"), "Unhealthy")
        }
        RequestError::Stopped => verdict((503, 503), SERVER, Some("shutting_down"), "Unhealthy"),
        other => match other.fault() {
            Fault::Caller => verdict((400, 422), INVALID, None, "Validation"),
            Fault::Load => verdict((429, 429), LIMITED, Some("rate_limit_exceeded"), "Overloaded"),
            Fault::Server => verdict((500, 424), SERVER, Some("device_failed"), "Backend"),
        },
    }
}

/// The beginning of a message that may repeat what a client sent.
fn short(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE).rev().find(|&end| message.is_char_boundary(end));
        message.truncate(end.unwrap_or_default());
        message.push('…');
    }
    message
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Whose error format a route speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contract {
    OpenAi,
    Tei,
}

impl Contract {
    /// TEI's own routes speak TEI's; everything else, unknown addresses included, OpenAI's.
    fn of(path: &str) -> Self {
        if matches!(path, "/" | "/embed" | "/tokenize" | "/info") {
            Self::Tei
        } else {
            Self::OpenAi
        }
    }
}

/// The layer that gives a failure its status, headers and body.
pub(crate) async fn explain(request: Request, next: Next) -> Response {
    let contract = Contract::of(request.uri().path());
    let mut response = next.run(request).await;
    let Some(failure) = response.extensions().get::<Failure>().cloned() else { return response };
    let (status, body) = failure.explained(contract);
    *response.status_mut() = status;
    *response.body_mut() = Body::from(body);
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
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
    use serde_json::Value;
    use vecmill_engine::Health;

    fn body(failure: &Failure, contract: Contract) -> (u16, Value) {
        let (status, body) = failure.explained(contract);
        (status.as_u16(), serde_json::from_str(&body).unwrap())
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
            let (_, body) = body(&failure, Contract::OpenAi);
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
        let table = [
            (RequestError::NoDevice { standing }, 503, 503, "Unhealthy"),
            (RequestError::NotFinite { index: 3 }, 500, 424, "Backend"),
            (RequestError::NoInputs, 400, 400, "Empty"),
            (RequestError::EmptyInput { index: 0 }, 400, 400, "Empty"),
            (long, 400, 413, "Validation"),
            (token, 400, 422, "Tokenizer"),
            (prompt, 400, 422, "Validation"),
            (busy, 429, 429, "Overloaded"),
            (memory, 503, 503, "Overloaded"),
            (large, 500, 424, "Backend"),
            (RequestError::Stopped, 503, 503, "Unhealthy"),
            (device, 500, 424, "Backend"),
        ];
        for (error, openai, tei, error_type) in table {
            let failure = Failure::from(error);
            assert_eq!(body(&failure, Contract::OpenAi).0, openai, "{failure:?}");
            let (status, body) = body(&failure, Contract::Tei);
            assert_eq!((status, &body["error_type"]), (tei, &json!(error_type)), "{failure:?}");
        }
    }

    #[test]
    fn the_blamed_field_is_named() {
        let param = |failure: Failure| body(&failure, Contract::OpenAi).1["error"]["param"].clone();
        assert_eq!(param(RequestError::EmptyInput { index: 3 }.into()), "input[3]");
        assert_eq!(param(RequestError::NotFinite { index: 2 }.into()), "input[2]");
        assert_eq!(param(RequestError::Dimensions { asked: 0, available: 8 }.into()), "dimensions");
        assert_eq!(param(Failure::Loading), Value::Null);
    }
}
