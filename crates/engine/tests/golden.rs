//! The default model on real texts, against vectors that transformers computed in fp32
//! (`scripts/golden/minilm.py`).

#![expect(clippy::unwrap_used, reason = "a test says what must hold by panicking")]

mod support;

use std::fs;
use std::path::PathBuf;

use support::cosine;
use vecmill_engine::{DeviceSpec, Engine, Request};

/// A cosine between unit vectors that agree to fp32 rounding is above this: the issue of accuracy
/// is closed at 0.99999.
const LOWEST_COSINE: f64 = 0.99999;

fn testdata(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(path)
}

fn texts() -> Vec<String> {
    let lines = fs::read_to_string(testdata("corpus/texts.jsonl")).unwrap();
    let text = |line: &str| -> String {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        value["text"].as_str().unwrap().to_owned()
    };
    lines.lines().map(text).collect()
}

/// Rows of a little-endian float32 matrix in NumPy's format, version 1.
fn npy(path: &str) -> Vec<Vec<f32>> {
    let bytes = fs::read(testdata(path)).unwrap();
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let text = str::from_utf8(&bytes[10..10 + header]).unwrap();
    assert!(text.contains("'<f4'") && text.contains("'fortran_order': False"), "{text}");
    let shape = text.split_once("'shape': (").unwrap().1.split_once(')').unwrap().0;
    let columns: usize = shape.split(',').nth(1).unwrap().trim().parse().unwrap();
    let (values, _) = bytes[10 + header..].as_chunks::<4>();
    let values: Vec<f32> = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
    values.chunks_exact(columns).map(<[f32]>::to_vec).collect()
}

#[test]
fn real_texts_agree_with_transformers_alone_and_in_company() {
    let engine = Engine::builder().devices(vec![DeviceSpec::CPU]).start().unwrap();
    let (texts, expected) = (texts(), npy("golden/all-MiniLM-L6-v2.f32.npy"));
    assert!(texts.len() >= 200 && texts.len() == expected.len());
    let reply = engine.embed_blocking(Request::new(texts.clone())).unwrap();
    let truncated = reply.embeddings.iter().filter(|embedding| embedding.truncated).count();
    assert!(truncated > 0, "the corpus has texts over the limit");

    let mut lowest = 1.0_f64;
    for ((embedding, expected), text) in reply.embeddings.iter().zip(&expected).zip(&texts) {
        let cosine = cosine(&embedding.vector, expected);
        assert!(cosine >= LOWEST_COSINE, "{cosine} for {text:?}");
        lowest = lowest.min(cosine);
    }
    println!("{} texts, {truncated} truncated, lowest cosine {lowest:.10}", texts.len());

    let company = engine.embed_blocking(Request::new(texts[..64].to_vec())).unwrap();
    for (text, together) in texts.iter().zip(&company.embeddings) {
        let alone = engine.embed_blocking(Request::new([text.as_str()])).unwrap();
        assert_eq!(alone.embeddings[0].vector, together.vector, "{text:?}");
    }
}
