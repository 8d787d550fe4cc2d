//! The two contracts, and the work they share.
//!
//! A handler parses ([`body`], [`object`], [`options`], [`terms`]), hands the request to the model through [`embed`], and
//! writes the reply ([`reply`]). Everything that a contract has of its own is in [`openai`] or
//! [`tei`].

pub(crate) mod openai;
pub(crate) mod tei;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use vecmill_engine::{Info, Input, Keep, Reply, Request};

use crate::app::App;
use crate::failure::Failure;
use crate::layers::room::Room;
use crate::slot::Model;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// How many numbers make a reply long: about 3 ms of writing.
const LONG_REPLY: usize = 1 << 16;

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

/// A JSON response.
pub(crate) fn json(text: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, JSON)], text.into()).into_response()
}

/// Embeds within the time limit and describes the work in headers. The engine has its memory counted for as
/// long as it holds anything of the request, whether or not somebody still waits for the reply.
async fn embed(
    app: &Arc<App>,
    model: &Model,
    room: &Room,
    mut request: Request,
) -> Result<(Reply, HeaderMap), Failure> {
    let limit = app.settings.request_timeout;
    let characters = request.inputs.iter().map(characters).sum();
    let warning = model.own_ids.warning(&request.inputs);
    request.keep = Keep::new(room.memory());
    let reply = tokio::time::timeout(limit, model.engine.embed(request))
        .await
        .map_err(|_| Failure::Timeout { limit })??;
    let mut headers = headers(&reply, characters, model.engine.info());
    headers.extend(warning.map(|warning| (WARNING, warning)));
    Ok((reply, headers))
}

/// Writes a reply, beside the async threads if it is long: writing out a million numbers takes tens
/// of milliseconds, in which a thread could answer many small requests. Whoever writes keeps `room`.
async fn write(
    reply: Reply,
    room: Room,
    form: impl FnOnce(&Reply) -> serde_json::Result<Vec<u8>> + Send + 'static,
) -> Result<Vec<u8>, Failure> {
    let numbers: usize = reply.embeddings.iter().map(|embedding| embedding.vector.len()).sum();
    let write = move || {
        let mut written = form(&reply)?;
        written.shrink_to_fit(); // what is not used is not counted
        drop((reply, room));
        Ok::<_, serde_json::Error>(written)
    };
    let written = if numbers < LONG_REPLY {
        write()
    } else {
        let job = tokio::task::spawn_blocking(write);
        job.await.map_err(|_| Failure::Internal)?
    };
    written.map_err(|_| Failure::Internal)
}

/// As TEI counts: characters of text, or tokens where there is no text.
fn characters(input: &Input) -> usize {
    match input {
        Input::Text(text) => text.chars().count(),
        Input::Tokens(tokens) => tokens.len(),
    }
}

fn headers(reply: &Reply, characters: usize, info: &Info) -> HeaderMap {
    let milliseconds =
        |time: Duration| HeaderValue::from(time.as_millis().min(u64::MAX.into()) as u64);
    let truncated = reply.embeddings.iter().filter(|embedding| embedding.truncated).count();
    let timings = &reply.timings;
    let kinds = HeaderValue::from_str(&device_kinds(info));
    HeaderMap::from_iter([
        (CONTENT_TYPE, JSON),
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
fn info() -> Info {
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
        let device = |name: &str| vecmill_engine::Device {
            name: name.to_owned(),
            description: String::new(),
            dtype: String::new(),
        };
        let devices = ["cuda:0", "cpu", "cuda:1"].map(device).into();
        assert_eq!(device_kinds(&Info { devices, ..Info::default() }), "cpu+cuda");
    }
}
