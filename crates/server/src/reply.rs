//! Writing vectors: the part of a request that costs the server most.
//!
//! Numbers go straight into one buffer of about the right size. Text uses the shortest digits that
//! give the same `f32` back; base64 is of the little-endian bytes, as numpy reads them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use vecmill_engine::{Embedding, Info, Reply, Request};

use crate::layers::room::PER_INPUT;

/// A generous guess at a number's digits, sign, point and comma.
const BYTES_PER_NUMBER: usize = 13;

/// As above, of base64, of which four characters stand for three bytes.
const BASE64_BYTES_PER_NUMBER: usize = 6;

/// What surrounds one vector in OpenAI's form.
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

/// OpenAI's form: a list of numbered embeddings, the model's name and what was used.
pub(crate) fn openai(
    reply: &Reply,
    model: &str,
    encoding: Encoding,
) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(size_guess(&reply.embeddings, encoding));
    let mut scratch = Vec::new();
    out.extend_from_slice(br#"{"object":"list","data":["#);
    for (index, embedding) in reply.embeddings.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(br#"{"object":"embedding","index":"#);
        serde_json::to_writer(&mut out, &index)?;
        out.extend_from_slice(br#","embedding":"#);
        match encoding {
            Encoding::Float => serde_json::to_writer(&mut out, &embedding.vector)?,
            Encoding::Base64 => push_base64(&mut out, &embedding.vector, &mut scratch),
        }
        out.push(b'}');
    }
    out.extend_from_slice(br#"],"model":"#);
    serde_json::to_writer(&mut out, model)?;
    let tokens = reply.tokens();
    let usage = serde_json::json!({"prompt_tokens": tokens, "total_tokens": tokens});
    out.extend_from_slice(br#","usage":"#);
    serde_json::to_writer(&mut out, &usage)?;
    out.push(b'}');
    Ok(out)
}

/// TEI's form: an array of arrays.
pub(crate) fn arrays(reply: &Reply) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(size_guess(&reply.embeddings, Encoding::Float));
    out.push(b'[');
    for (index, embedding) in reply.embeddings.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        serde_json::to_writer(&mut out, &embedding.vector)?;
    }
    out.push(b']');
    Ok(out)
}

/// Bytes that the reply to `request` takes while it is made, in either contract's form: the vectors
/// and what is written of them.
pub(super) fn room(request: &Request, info: &Info, encoding: Encoding) -> usize {
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
fn push_base64(out: &mut Vec<u8>, vector: &[f32], bytes: &mut Vec<u8>) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use vecmill_engine::Timings;

    fn reply(vectors: &[&[f32]]) -> Reply {
        let embedding =
            |vector: &&[f32]| Embedding { vector: vector.to_vec(), tokens: 3, truncated: false };
        let embeddings = vectors.iter().map(embedding).collect();
        Reply { embeddings, timings: Timings::default() }
    }

    fn parse(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn openai_replies_have_the_contract_s_form() {
        let written = openai(&reply(&[&[0.5, -1.0], &[2.0, 0.0]]), "a \"b\"", Encoding::Float);
        let expected = json!({
            "object": "list",
            "data": [
                {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]},
                {"object": "embedding", "index": 1, "embedding": [2.0, 0.0]},
            ],
            "model": "a \"b\"",
            "usage": {"prompt_tokens": 6, "total_tokens": 6},
        });
        assert_eq!(parse(&written.unwrap()), expected);
    }

    #[test]
    fn numbers_come_back_bit_for_bit() {
        let numbers =
            [0.1, -0.1, 1.0 / 3.0, f32::MIN_POSITIVE, 1e-45, f32::MAX, -0.0, 16_777_217.0];
        let bits = |numbers: &[f32]| numbers.iter().map(|n| n.to_bits()).collect::<Vec<_>>();
        let text: Vec<Vec<f32>> =
            serde_json::from_slice(&arrays(&reply(&[&numbers])).unwrap()).unwrap();
        assert_eq!(bits(&text[0]), bits(&numbers));
        assert!(arrays(&reply(&[&[0.1]])).unwrap().starts_with(b"[[0.1]"));

        for count in 0..numbers.len() {
            let numbers = &numbers[..count];
            let written = openai(&reply(&[numbers]), "m", Encoding::Base64).unwrap();
            let written = parse(&written);
            let bytes = STANDARD.decode(written["data"][0]["embedding"].as_str().unwrap()).unwrap();
            let read: Vec<f32> = bytes
                .chunks_exact(4)
                .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
                .collect();
            assert_eq!(bits(&read), bits(numbers));
        }
    }

    #[test]
    fn the_guess_is_enough() {
        let vector: Vec<f32> = (0..1000).map(|n| -(n as f32) / 12_345.0).collect();
        let reply = reply(&[&vector, &vector]);
        for encoding in [Encoding::Float, Encoding::Base64] {
            let written =
                openai(&reply, "sentence-transformers/all-MiniLM-L6-v2", encoding).unwrap();
            assert!(written.len() <= size_guess(&reply.embeddings, encoding), "{encoding:?}");
        }
    }
}
