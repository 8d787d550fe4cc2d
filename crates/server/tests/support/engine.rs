//! A real engine with a tiny model behind a real server.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use vecmill_engine::fetch::ModelRef;
use vecmill_engine::{DeviceSpec, Engine};
use vecmill_server::Settings;

use super::{Answer, TestServer, floats};

pub(crate) fn tiny(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(model)
}

/// A copy of a tiny model that has these prompts.
pub(crate) fn prompted(prompts: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&tiny("bert-mean"), folder.path());
    let config = serde_json::json!({ "prompts": prompts }).to_string();
    fs::write(folder.path().join("config_sentence_transformers.json"), config).unwrap();
    folder
}

pub(crate) fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        if path.is_dir() {
            fs::create_dir(to.join(&name)).unwrap();
            copy(&path, &to.join(&name));
        } else {
            fs::copy(&path, to.join(&name)).unwrap();
        }
    }
}

/// Makes the embedding of a word of the tiny model's vocabulary no number.
pub(crate) fn damage_word(folder: &Path, word: &str) {
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    let tokenizer = json(&fs::read(folder.join("tokenizer.json")).unwrap());
    let row = number(&tokenizer["model"]["vocab"][word]);
    let weights = folder.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let header = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let words = &json(&bytes[8..header])["embeddings.word_embeddings.weight"];
    let width = number(&words["shape"][1]) * size_of::<f32>();
    let begin = header + number(&words["data_offsets"][0]) + row * width;
    bytes[begin..begin + width].fill(0xff);
    fs::write(weights, bytes).unwrap();
}

/// A server of the model in `folder`.
pub(crate) fn serve(folder: &Path, settings: Settings) -> TestServer {
    let (server, slot) = TestServer::loading(settings);
    let engine = Engine::builder()
        .model(ModelRef::Folder(folder.to_owned()))
        .devices(vec![DeviceSpec::Cpu])
        .cpu_threads(1)
        .tokenization_workers(1);
    slot.ready(engine.start().unwrap());
    server
}

/// The first vector of a reply in either contract's form.
#[track_caller]
pub(crate) fn vector(answer: &Answer) -> Vec<f32> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    match answer.json() {
        Value::Array(vectors) => floats(&vectors[0]),
        reply => floats(&reply["data"][0]["embedding"]),
    }
}

/// The cosine of two vectors.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    assert_eq!(a.len(), b.len());
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

pub(crate) fn length(vector: &[f32]) -> f32 {
    vector.iter().map(|x| x * x).sum::<f32>().sqrt()
}
