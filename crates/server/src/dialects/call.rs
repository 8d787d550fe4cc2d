//! What a dialect is, and the work that dialects share: from a request that one of them has read to
//! the reply that it writes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{FromRequest, FromRequestParts, Request as HttpRequest};
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use serde_json::Value;
use vecmill_engine::{Info, Input, Keep, Reply, Request};

use crate::app::{App, Model};
use crate::failure::Failure;
use crate::json::body;
use crate::json::known::Contract;
use crate::json::token_ids;
use crate::layers::room::Room;
use crate::reply::{self, Encoding};

/// An address of a dialect.
pub(crate) struct Address {
    pub(crate) path: &'static str,
    /// What its bodies may have in them. Where there is none, no body is read.
    pub(crate) contract: Option<&'static Contract>,
    handler: Handler,
}

impl Address {
    /// One to which work is sent.
    pub(crate) const fn work(
        path: &'static str,
        contract: &'static Contract,
        handler: Handler,
    ) -> Self {
        Self { path, contract: Some(contract), handler }
    }

    /// One that tells something.
    pub(crate) const fn about(path: &'static str, handler: Handler) -> Self {
        Self { path, contract: None, handler }
    }

    /// What answers there.
    pub(crate) fn handler(&self) -> MethodRouter<Arc<App>> {
        let handler = (self.handler)();
        match self.contract {
            Some(contract) => handler.layer(Extension(contract)),
            None => handler,
        }
    }
}

type Handler = fn() -> MethodRouter<Arc<App>>;

/// The contract of a server's API.
pub(crate) struct Dialect {
    pub(crate) addresses: &'static [Address],
    /// How it says that a request failed: status and body.
    pub(crate) explain: fn(&Failure) -> (StatusCode, Value),
}

/// How many inputs of a request were cut.
const TRUNCATED: HeaderName = HeaderName::from_static("x-vecmill-truncated");

/// What makes vectors doubtful.
const WARNING: HeaderName = HeaderName::from_static("x-vecmill-warning");

/// TEI's headers: what computed, how much, and how many milliseconds each stage took.
const COMPUTE_TYPE: HeaderName = HeaderName::from_static("x-compute-type");
const COMPUTE_TIME: HeaderName = HeaderName::from_static("x-compute-time");
const COMPUTE_CHARACTERS: HeaderName = HeaderName::from_static("x-compute-characters");
const COMPUTE_TOKENS: HeaderName = HeaderName::from_static("x-compute-tokens");
const TOTAL_TIME: HeaderName = HeaderName::from_static("x-total-time");
const TOKENIZATION_TIME: HeaderName = HeaderName::from_static("x-tokenization-time");
const QUEUE_TIME: HeaderName = HeaderName::from_static("x-queue-time");
const INFERENCE_TIME: HeaderName = HeaderName::from_static("x-inference-time");

/// The headers of every reply with vectors.
pub(crate) const REPLY_HEADERS: [HeaderName; 10] = [
    TRUNCATED,
    WARNING,
    COMPUTE_TYPE,
    COMPUTE_TIME,
    COMPUTE_CHARACTERS,
    COMPUTE_TOKENS,
    TOTAL_TIME,
    TOKENIZATION_TIME,
    QUEUE_TIME,
    INFERENCE_TIME,
];

/// A request that was admitted to work, with its body.
pub(crate) struct Call {
    pub(crate) contract: &'static Contract,
    pub(crate) app: Arc<App>,
    pub(crate) room: Room,
    pub(crate) body: String,
}

impl FromRequest<Arc<App>> for Call {
    type Rejection = Failure;

    async fn from_request(request: HttpRequest, app: &Arc<App>) -> Result<Self, Failure> {
        let (mut parts, body) = request.into_parts();
        let room = Room::from_request_parts(&mut parts, app).await?;
        let contract = *parts.extensions.get::<&'static Contract>().ok_or(Failure::Internal)?;
        let body = body::read(&parts.headers, body, app, &room, contract.held_per_byte).await?;
        Ok(Self { contract, app: Arc::clone(app), room, body })
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
        let Self { contract, app, room, body } = self;
        drop(body);
        let info = model.engine.info();
        let hold = |bytes| room.hold_more(bytes);
        let mut request = token_ids::as_meant(request, contract, &app.settings, hold)?;
        room.hold_more(reply::room(&request, info, encoding))?;
        let characters = request.inputs.iter().map(characters).sum();
        let warning = model.own_ids.warning(&request.inputs);
        request.keep = Keep::new(room.memory());
        let limit = app.settings.request_timeout;
        let reply = tokio::time::timeout(limit, model.engine.embed(request))
            .await
            .map_err(|_| Failure::Timeout { limit })??;
        let mut headers = headers(&reply, characters, info);
        headers.extend(warning.map(|warning| (WARNING, warning)));
        let body = reply::write(reply, room, write).await?;
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

/// What a reply's headers tell about the work.
fn headers(reply: &Reply, characters: usize, info: &Info) -> HeaderMap {
    let milliseconds =
        |time: Duration| HeaderValue::from(time.as_millis().min(u64::MAX.into()) as u64);
    let truncated = reply.embeddings.iter().filter(|embedding| embedding.truncated).count();
    let timings = &reply.timings;
    let kinds = HeaderValue::from_str(&device_kinds(info));
    HeaderMap::from_iter([
        (CONTENT_TYPE, reply::JSON),
        (TRUNCATED, HeaderValue::from(truncated)),
        (COMPUTE_TYPE, kinds.unwrap_or(HeaderValue::from_static("unknown"))),
        (COMPUTE_TIME, milliseconds(timings.total)),
        (COMPUTE_CHARACTERS, HeaderValue::from(characters)),
        (COMPUTE_TOKENS, HeaderValue::from(reply.tokens())),
        (TOTAL_TIME, milliseconds(timings.total)),
        (TOKENIZATION_TIME, milliseconds(timings.tokenization)),
        (QUEUE_TIME, milliseconds(timings.queue)),
        (INFERENCE_TIME, milliseconds(timings.inference)),
    ])
}

/// The kinds of the engine's devices, such as `cpu` or `cpu+cuda`.
fn device_kinds(info: &Info) -> String {
    let kind = |name: &'_ str| name.split(':').next().unwrap_or_default().to_owned();
    let kinds: BTreeSet<_> = info.devices.iter().map(|device| kind(&device.name)).collect();
    kinds.into_iter().collect::<Vec<_>>().join("+")
}

/// A model's, for tests.
#[cfg(test)]
pub(crate) fn info() -> Info {
    Info {
        dimensions: 8,
        max_input_tokens: 16,
        prompts: [("query".to_owned(), "query: ".to_owned())].into(),
        ..Info::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_devices_are_told_once_each() {
        let device = |name: &str| vecmill_engine::DeviceSummary {
            name: name.to_owned(),
            description: String::new(),
            dtype: String::new(),
        };
        let devices = ["cuda:0", "cpu", "cuda:1"].map(device).into();
        assert_eq!(device_kinds(&Info { devices, ..Info::default() }), "cpu+cuda");
    }
}
