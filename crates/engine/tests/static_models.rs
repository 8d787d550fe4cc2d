//! Models that are a table and no transformer, against what sentence-transformers and NumPy make of
//! them (`scripts/golden/static.py`).
#![expect(clippy::unwrap_used, reason = "a test says what must hold by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use vecmill_engine::{DeviceSpec, Engine, Request, RequestError};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/static").join(name)
}

fn engine(folder: &Path) -> Engine {
    let builder = Engine::builder().model(folder.to_str().unwrap().parse().unwrap());
    builder.devices(vec![DeviceSpec::CPU]).start().unwrap()
}

#[test]
fn a_text_is_the_mean_of_its_tokens_rows() {
    for name in ["table", "model2vec"] {
        let expected = fs::read(folder(name).join("expected.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
        let case = &expected["cases"][0];
        let texts: Vec<String> = serde_json::from_value(case["texts"].clone()).unwrap();
        let inputs: Vec<Vec<u32>> = serde_json::from_value(case["inputs"].clone()).unwrap();
        let vectors: Vec<Vec<f32>> = serde_json::from_value(case["embeddings"].clone()).unwrap();
        let engine = engine(&folder(name));
        // What has no tokens has no mean.
        let (known, empty): (Vec<usize>, Vec<usize>) =
            (0..texts.len()).partition(|&index| !inputs[index].is_empty());
        assert!(known.len() > 10 && !empty.is_empty());
        for index in empty {
            let refused = engine.embed_blocking(Request::new([texts[index].as_str()]));
            assert!(matches!(refused, Err(RequestError::EmptyInput { .. })), "{refused:?}");
        }
        let all = Request::new(known.iter().map(|&index| texts[index].as_str()));
        let reply = engine.embed_blocking(all).unwrap();
        for (&index, embedding) in known.iter().zip(&reply.embeddings) {
            let text = &texts[index];
            assert_eq!(embedding.tokens, inputs[index].len(), "{name}: {text:?}");
            let pairs = embedding.vector.iter().zip(&vectors[index]);
            let largest = pairs.map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f32::max);
            assert!(largest <= 1e-6, "{name}: {text:?}: {largest}");
            let alone = engine.embed_blocking(Request::new([text.as_str()])).unwrap();
            assert_eq!(alone.embeddings[0].vector, embedding.vector, "{name}: {text:?}");
        }
    }
}
