//! The same model in each form that weights come in: the same vectors, to the bit.
#![expect(clippy::unwrap_used, reason = "a test says what must hold by panicking")]

use std::path::{Path, PathBuf};

use vecmill_engine::convert::DType;
use vecmill_engine::{DeviceSpec, Engine, Request};

const TEXTS: [&str; 4] = ["a", "a quick brown fox", "jumps over the lazy dog", "once more, again"];

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(name)
}

fn vectors(folder: &Path) -> Vec<Vec<f32>> {
    let builder = Engine::builder().model(folder.to_str().unwrap().parse().unwrap());
    let engine = builder.devices(vec![DeviceSpec::CPU]).start().unwrap();
    let reply = engine.embed_blocking(Request::new(TEXTS)).unwrap();
    reply.embeddings.into_iter().map(|embedding| embedding.vector).collect()
}

#[test]
fn a_pickle_gives_the_vectors_of_its_safetensors() {
    let expected = vectors(&model("bert-mean"));
    assert_eq!(vectors(&model("bert-pickle")), expected);

    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("new");
    let builder = Engine::builder().model(model("bert-pickle").to_str().unwrap().parse().unwrap());
    let converted = builder.convert(DType::F32, &output).unwrap();
    assert_eq!(converted.rounding, None);
    assert!(
        output.join("model.safetensors").exists() && !output.join("pytorch_model.bin").exists()
    );
    assert_eq!(vectors(&output), expected);
}
