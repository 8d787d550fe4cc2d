//! Real engines with tiny models, and a way to keep one from its work.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::thread::ThreadId;

use serde_json::Value;
use tempfile::TempDir;
use vecmill_engine::ModelRef;
use vecmill_engine::{Builder, DeviceSpec, Engine, Keep, Request};
use vecmill_server::Settings;

use super::{Answer, PATIENCE, TestServer, floats, until, value};

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

/// A small engine of the model in `folder`, before it starts.
pub(crate) fn builder(folder: &Path) -> Builder {
    Engine::builder()
        .model(ModelRef::Folder(folder.to_owned()))
        .devices(vec![DeviceSpec::CPU])
        .cpu_threads(1)
        .tokenization_workers(1)
}

pub(crate) fn start(folder: &Path) -> Engine {
    builder(folder).start().unwrap()
}

/// One engine for all tests of a program that need none of their own. It has a prompt, `query`.
pub(crate) fn shared() -> Engine {
    static SHARED: OnceLock<Engine> = OnceLock::new();
    let model = || prompted(&serde_json::json!({"query": "and "}));
    SHARED.get_or_init(|| start(model().path())).clone()
}

/// A server of the model in `folder`.
pub(crate) fn serve(folder: &Path, settings: Settings) -> TestServer {
    let (server, loading) = TestServer::loading(settings);
    loading.ready(start(folder));
    server
}

/// Keeps an engine's only device from whatever comes, until it is dropped: the device's thread is
/// letting go of a request, and what the request keeps doesn't let itself go.
pub(crate) struct Gate {
    _opens: Sender<()>,
}

/// Holds whoever lets it go, unless that is its maker.
struct Hold {
    maker: ThreadId,
    held: Sender<bool>,
    opened: Mutex<Receiver<()>>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let holds = std::thread::current().id() != self.maker;
        let _ = self.held.send(holds);
        if holds {
            let _ = self.opened.get_mut().unwrap().recv();
        }
    }
}

impl Gate {
    pub(crate) fn closed(engine: &Engine) -> Self {
        loop {
            let (opens, opened) = channel();
            let (held, holds) = channel();
            let maker = std::thread::current().id();
            let keep = Keep::new(Hold { maker, held, opened: Mutex::new(opened) });
            let asked = engine.embed(Request { keep, ..Request::new(["a"]) });
            // A short text is tokenised by who asks: nobody but this thread and the device's had it.
            if holds.recv_timeout(PATIENCE).unwrap() {
                drop(asked);
                return Self { _opens: opens };
            }
        }
    }
}

/// Waits until so many inputs wait for a device.
#[track_caller]
pub(crate) fn until_waiting(engine: &Engine, inputs: usize) {
    let waiting = || {
        let mut metrics = String::new();
        engine.write_metrics(&mut metrics).unwrap();
        value(&metrics, "vecmill_queue_inputs")
    };
    until(waiting, |&now| now == inputs);
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
