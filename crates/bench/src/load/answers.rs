//! What a reply must say: of each the number of tokens, of some every vector.

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// One request in so many is watched: each of its replies is read in full.
const WATCHED: usize = 32;

/// Two replies to the same text agree at least so much: half precision rounds differently in batches
/// of other sizes.
const LEAST_COSINE: f64 = 0.999;

/// A request made beforehand, and what is known of its replies.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) bytes: Vec<u8>,
    texts: usize,
    watched: bool,
    first: OnceLock<Vec<Vec<f32>>>,
}

#[derive(Deserialize)]
struct Body {
    data: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    embedding: String,
}

impl Request {
    /// The `number`th request, for some texts.
    pub(super) fn new(number: usize, host: &str, texts: &[String]) -> Self {
        let input = serde_json::json!({
            "input": texts, "model": "bench", "encoding_format": "base64",
        });
        let body = input.to_string();
        let head = format!(
            "POST /v1/embeddings HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        Self {
            bytes: (head + &body).into_bytes(),
            texts: texts.len(),
            watched: number.is_multiple_of(WATCHED),
            first: OnceLock::new(),
        }
    }

    pub(super) fn texts(&self) -> usize {
        self.texts
    }

    /// Tokens that a good reply says it took.
    pub(super) fn check(&self, status: u16, body: &[u8]) -> Result<u64, String> {
        if status != 200 {
            let text = String::from_utf8_lossy(&body[..body.len().min(300)]);
            return Err(format!("status {status}: {text}"));
        }
        if self.watched {
            self.check_vectors(body)?;
        }
        total_tokens(body).ok_or_else(|| "the reply does not say how many tokens it took".into())
    }

    fn check_vectors(&self, body: &[u8]) -> Result<(), String> {
        let vectors = vectors(body)?;
        if vectors.len() != self.texts {
            return Err(format!("{} vectors for {} texts", vectors.len(), self.texts));
        }
        for (vector, first) in vectors.iter().zip(self.first.get_or_init(|| vectors.clone())) {
            let cosine = cosine(vector, first);
            // NaN is also what a vector of zeros gives.
            if cosine.is_nan() || cosine < LEAST_COSINE {
                return Err(format!("the same text got other vectors, with a cosine of {cosine}"));
            }
        }
        Ok(())
    }
}

fn vectors(body: &[u8]) -> Result<Vec<Vec<f32>>, String> {
    let body: Body = serde_json::from_slice(body).map_err(|error| format!("no reply: {error}"))?;
    let decode = |row: Row| {
        let bytes =
            STANDARD.decode(row.embedding).map_err(|error| format!("no vector: {error}"))?;
        let (numbers, _) = bytes.as_chunks::<4>();
        Ok(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    };
    body.data.into_iter().map(decode).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The number behind the last `total_tokens`, which is at the very end.
fn total_tokens(body: &[u8]) -> Option<u64> {
    let end = str::from_utf8(&body[body.len().saturating_sub(80)..]).ok()?;
    let (_, number) = end.rsplit_once("\"total_tokens\":")?;
    number.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(vector: [f32; 2]) -> String {
        let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
        let vector = STANDARD.encode(bytes);
        format!(r#"{{"data":[{{"embedding":"{vector}"}}],"usage":{{"total_tokens": 12}}}}"#)
    }

    #[test]
    fn a_watched_text_must_get_the_same_finite_vector_each_time() {
        let request = Request::new(0, "host", &["a text".to_owned()]);
        let check = |vector| request.check(200, reply(vector).as_bytes());
        assert_eq!(check([1.0, 0.0]), Ok(12));
        assert_eq!(check([1.0, 1e-3]), Ok(12));
        for bad in [[0.9, 0.3], [0.0, 0.0], [f32::NAN, 0.0], [-1.0, 0.0]] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        assert!(request.check(429, b"busy").is_err_and(|error| error.contains("429: busy")));
        let two = Request::new(0, "host", &["a".to_owned(), "b".to_owned()]);
        assert!(two.check(200, reply([1.0, 0.0]).as_bytes()).is_err());
    }
}
