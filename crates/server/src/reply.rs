//! Writing replies. Vectors are the part of a request that costs the server most.
//!
//! Numbers go straight into one buffer of about the right size. Text uses the shortest digits that
//! give the same `f32` back; base64 is of the little-endian bytes, as numpy reads them.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use vecmill_engine::{Embedding, Info, Reply, Request, Timings};

use crate::failure::Failure;
use crate::room::{PER_INPUT, Room};

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The header that carries a request's id, from the client if it sent one, and back.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How many inputs of a request were cut.
const TRUNCATED: HeaderName = HeaderName::from_static("x-vecmill-truncated");

/// What makes vectors doubtful.
pub(crate) const WARNING: HeaderName = HeaderName::from_static("x-vecmill-warning");

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

/// How many numbers make a reply long: about 3 ms of writing.
const LONG_REPLY: usize = 1 << 16;

/// A generous guess at a number's digits, sign, point and comma.
const BYTES_PER_NUMBER: usize = 13;

/// As above, of base64, of which four characters stand for three bytes.
const BASE64_BYTES_PER_NUMBER: usize = 6;

/// What surrounds one vector, in OpenAI's form the most.
const BYTES_PER_ENTRY: usize = 64;

/// How a vector is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encoding {
    /// An array of numbers.
    #[default]
    Float,
    /// A string.
    Base64,
}

impl Encoding {
    /// The most that a number of a vector takes.
    fn bytes_per_number(self) -> usize {
        match self {
            Self::Float => BYTES_PER_NUMBER,
            Self::Base64 => BASE64_BYTES_PER_NUMBER,
        }
    }
}

/// A JSON response.
pub(crate) fn json(text: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, JSON)], text.into()).into_response()
}

/// Writes a reply in some form, beside the async threads if it has many numbers: writing out a
/// million takes tens of milliseconds, in which a thread could answer many small requests. Whoever
/// writes keeps `room`.
pub(crate) async fn write(
    numbers: usize,
    room: Room,
    form: impl FnOnce() -> serde_json::Result<Vec<u8>> + Send + 'static,
) -> Result<Vec<u8>, Failure> {
    let write = move || {
        let mut written = form()?;
        written.shrink_to_fit(); // what is not used is not counted
        drop(room);
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

/// An empty buffer that a reply's vectors fit into, and what is around them.
pub(crate) fn buffer(reply: &Reply, encoding: Encoding) -> Vec<u8> {
    Vec::with_capacity(size_guess(&reply.embeddings, encoding))
}

/// Appends an array of all vectors, each an array of numbers.
pub(crate) fn push_arrays(out: &mut Vec<u8>, reply: &Reply) -> serde_json::Result<()> {
    out.push(b'[');
    for (index, embedding) in reply.embeddings.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, &embedding.vector)?;
    }
    out.push(b']');
    Ok(())
}

/// Bytes that the reply to `request` takes while it is made, in whichever form: the vectors
/// and what is written of them.
pub(crate) fn room(request: &Request, info: &Info, encoding: Encoding) -> usize {
    let inputs = request.inputs.len();
    let dimensions = request.dimensions.unwrap_or(usize::MAX).min(info.dimensions);
    let written = dimensions.saturating_mul(encoding.bytes_per_number()) + BYTES_PER_ENTRY;
    let each = dimensions.saturating_mul(size_of::<f32>()) + written + PER_INPUT;
    inputs.saturating_mul(each)
}

fn size_guess(embeddings: &[Embedding], encoding: Encoding) -> usize {
    let numbers: usize = embeddings.iter().map(|embedding| embedding.vector.len()).sum();
    numbers * encoding.bytes_per_number() + (embeddings.len() + 2) * BYTES_PER_ENTRY
}

/// Appends `"…"`; `bytes` is room for the vector's bytes, kept from one to the next.
pub(crate) fn push_base64(out: &mut Vec<u8>, vector: &[f32], bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.resize(size_of_val(vector), 0);
    for (four, number) in bytes.chunks_exact_mut(size_of::<f32>()).zip(vector) {
        four.copy_from_slice(&number.to_le_bytes());
    }
    out.push(b'"');
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, b'=');
    let written = STANDARD.encode_slice(bytes, &mut out[start..]);
    debug_assert_eq!(written, Ok(out.len() - start));
    out.push(b'"');
}

/// What a reply's headers tell.
pub(crate) struct Work {
    pub(crate) characters: usize,
    pub(crate) tokens: usize,
    /// How many inputs were cut.
    pub(crate) truncated: usize,
    pub(crate) timings: Timings,
}

/// What a reply's headers tell about the work.
pub(crate) fn headers(work: &Work, info: &Info) -> HeaderMap {
    let milliseconds =
        |time: Duration| HeaderValue::from(time.as_millis().min(u64::MAX.into()) as u64);
    let timings = &work.timings;
    let kinds = HeaderValue::from_str(&device_kinds(info));
    HeaderMap::from_iter([
        (CONTENT_TYPE, JSON),
        (TRUNCATED, HeaderValue::from(work.truncated)),
        (COMPUTE_TYPE, kinds.unwrap_or(HeaderValue::from_static("unknown"))),
        (COMPUTE_TIME, milliseconds(timings.total)),
        (COMPUTE_CHARACTERS, HeaderValue::from(work.characters)),
        (COMPUTE_TOKENS, HeaderValue::from(work.tokens)),
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A reply with these vectors, each of three tokens.
    pub(crate) fn reply(vectors: &[&[f32]]) -> Reply {
        let embedding =
            |vector: &&[f32]| Embedding { vector: vector.to_vec(), tokens: 3, truncated: false };
        let embeddings = vectors.iter().map(embedding).collect();
        Reply { embeddings, timings: Timings::default() }
    }

    #[test]
    fn numbers_come_back_bit_for_bit() {
        let numbers =
            [0.1, -0.1, 1.0 / 3.0, f32::MIN_POSITIVE, 1e-45, f32::MAX, -0.0, 16_777_217.0];
        let bits = |numbers: &[f32]| numbers.iter().map(|n| n.to_bits()).collect::<Vec<_>>();
        let mut out = Vec::new();
        push_arrays(&mut out, &reply(&[&numbers, &[0.1]])).unwrap();
        let text: Vec<Vec<f32>> = serde_json::from_slice(&out).unwrap();
        assert_eq!(bits(&text[0]), bits(&numbers));
        assert!(out.ends_with(b",[0.1]]"));

        for count in 0..numbers.len() {
            let (numbers, mut out) = (&numbers[..count], Vec::new());
            push_base64(&mut out, numbers, &mut Vec::new());
            let coded: String = serde_json::from_slice(&out).unwrap();
            let bytes = STANDARD.decode(coded).unwrap();
            let read: Vec<f32> = bytes
                .chunks_exact(4)
                .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
                .collect();
            assert_eq!(bits(&read), bits(numbers));
        }
    }

    #[test]
    fn kinds_of_devices_are_told_once_each() {
        let device = |name: &str| vecmill_engine::DeviceSummary {
            name: name.into(),
            description: String::new(),
            dtype: String::new(),
        };
        let devices = ["cuda:0", "cpu", "cuda:1"].map(device).into();
        assert_eq!(device_kinds(&Info { devices, ..Info::default() }), "cpu+cuda");
    }
}
