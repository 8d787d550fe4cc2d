//! Every way in which a request can fail: what it is, and whose fault. How it is said is the
//! dialects' matter.
//!
//! Handlers and layers return a [`Failure`]; it travels as an extension of an empty response to the
//! one place that writes error bodies, [`explain`](crate::dialects::explain).

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use vecmill_engine::{Fault, RequestError};

use crate::token_inputs::ADVICE;

/// The most bytes of a message, so that what a client sent is not sent back.
const MAX_MESSAGE: usize = 1000;

/// What programs are told when the model is for something else.
const WRONG_TASK: &str = "wrong_task";

/// When to come back while the model loads.
const LOADING_RETRY: Duration = Duration::from_secs(5);

/// How a server says that a request failed: status and body.
pub(crate) type Explain = fn(&Failure) -> (StatusCode, Value);

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
    #[error("the model tells {labels} labels apart: only one with a single label can rank")]
    ManyLabels { labels: usize },
    #[error("the server failed at this request; its log says more")]
    Internal,
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl Failure {
    /// The status of HTTP that says it best, and a word for programs. A dialect may have others.
    fn verdict(&self) -> (StatusCode, Option<&'static str>) {
        let (status, code) = match self {
            Self::Malformed(_) => (400, "invalid_json"),
            Self::Field { .. } | Self::TooManyInputs { .. } => (400, ""),
            Self::MediaType(_) => (415, "unsupported_media_type"),
            Self::TooLarge { .. } | Self::TooMuchMemory { .. } => (413, "payload_too_large"),
            Self::SlowBody { .. } => (408, "request_timeout"),
            Self::NoKey | Self::WrongKey => (401, "invalid_api_key"),
            Self::Origin { .. } => (403, "origin_not_allowed"),
            Self::UnknownDevice { .. } => (404, "device_not_found"),
            Self::NoRoute { .. } => (404, "unknown_url"),
            Self::Method { .. } => (405, "method_not_supported"),
            Self::AtCapacity { .. } | Self::MemoryTaken => (429, "rate_limit_exceeded"),
            Self::ManyLabels { .. } => (400, WRONG_TASK),
            Self::Timeout { .. } => (504, "timeout"),
            Self::Loading => (503, "model_loading"),
            Self::LoadFailed(_) => (503, "model_unavailable"),
            Self::Internal => (500, "internal_error"),
            Self::Request(error) => request_verdict(error),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, (!code.is_empty()).then_some(code))
    }

    /// The status of HTTP that says it best.
    pub(crate) fn status(&self) -> StatusCode {
        self.verdict().0
    }

    /// A word for programs, if there is more to say than by the status.
    pub(crate) fn code(&self) -> Option<&'static str> {
        self.verdict().1
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

    /// When the same request may succeed.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::AtCapacity { .. } | Self::MemoryTaken => Some(Duration::from_secs(1)),
            Self::Loading => Some(LOADING_RETRY),
            Self::Request(error) => error.retry_after(),
            _ => None,
        }
    }

    /// The failure as a response that is to be said in other words than its address's.
    pub(crate) fn worded(self, explain: Explain) -> Response {
        let mut response = self.into_response();
        response.extensions_mut().insert(explain);
        response
    }

    /// The failure in words.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Request(RequestError::UnknownToken { .. }) => format!("{self}; {ADVICE}"),
            _ => short(self.to_string()),
        }
    }
}

fn request_verdict(error: &RequestError) -> (u16, &'static str) {
    use RequestError as E;
    match error {
        E::TooManyTokens { .. } | E::TooMuchToTokenize { .. } => (400, "context_length_exceeded"),
        E::TooLate { .. } | E::Expired => (429, "deadline_exceeded"),
        E::WrongTask { .. } => (400, WRONG_TASK),
        E::NoMemory { .. } => (503, "insufficient_memory"),
        E::InputTooLarge { .. } => (500, "insufficient_memory"),
        E::NotFinite { .. } => (500, "vector_not_finite"),
        E::Lost => (500, "internal_error"),
        E::NoDevice { .. } => (503, "no_device"),
        E::Stopped => (503, "shutting_down"),
        other => match other.fault() {
            Fault::Caller => (400, ""),
            Fault::Load => (429, "rate_limit_exceeded"),
            Fault::Server => (500, "device_failed"),
        },
    }
}

/// The beginning of a message that may repeat what a client sent.
pub(crate) fn short(mut message: String) -> String {
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
