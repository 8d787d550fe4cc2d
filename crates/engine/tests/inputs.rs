//! What one input can't have stays its own: models whose tokenizer and weights don't fit each other,
//! or are damaged, at the start and under load.

#![expect(clippy::unwrap_used, reason = "a test says what must hold by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use vecmill_engine::ModelRef;
use vecmill_engine::{
    DeviceSpec, Engine, Fault, Input, Request, RequestError, StartError, TokenizeRequest,
};

/// Embeddings of the model that the others are made of.
const ROWS: u32 = 383;

/// A copy of a model, to be changed.
struct Copy(TempDir);

impl Copy {
    fn new() -> Self {
        let copy = Self(tempfile::tempdir().unwrap());
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/bert-mean");
        copy_folder(&model, copy.0.path());
        copy
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn json(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&fs::read(self.path(file)).unwrap()).unwrap();
        change(&mut value);
        fs::write(self.path(file), value.to_string()).unwrap();
    }

    /// Adds a token to those of the tokenizer, beside its vocabulary.
    fn added_token(&self, content: &str, id: u32) {
        self.json("tokenizer.json", |file| {
            let token = json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": false
            });
            file["added_tokens"].as_array_mut().unwrap().push(token);
        });
    }

    /// Fills those bytes of a tensor with ones, which makes numbers of any format NaN.
    fn damage(&self, tensor: &str, rows: std::ops::Range<usize>) {
        let path = self.path("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let tensors: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
        let number = |value: &Value| value.as_u64().unwrap() as usize;
        let begin = header + number(&tensors[tensor]["data_offsets"][0]);
        let end = header + number(&tensors[tensor]["data_offsets"][1]);
        let row = (end - begin) / number(&tensors[tensor]["shape"][0]);
        bytes[begin + rows.start * row..begin + rows.end * row].fill(0xff);
        fs::write(path, bytes).unwrap();
    }

    fn start(&self) -> Result<Engine, StartError> {
        Engine::builder()
            .model(ModelRef::Folder(self.0.path().to_owned()))
            .devices(vec![DeviceSpec::CPU])
            .cpu_threads(1)
            .tokenization_workers(2)
            .start()
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

const WORDS: &str = "embeddings.word_embeddings.weight";

/// The row of a word that no practice text has.
fn row(engine: &Engine, word: &str) -> usize {
    let request = TokenizeRequest { texts: vec![word.to_owned()], ..TokenizeRequest::default() };
    let tokens = engine.tokenize_blocking(request).unwrap();
    assert_eq!(tokens.count(0), 1);
    tokens.token(0, 0).unwrap().id as usize
}

/// Sixteen clients, good and bad ones, at once: each good request must be answered as it is alone.
/// What the bad ones were told.
fn in_company(engine: &Engine, bad: &[Input]) -> Vec<RequestError> {
    const GOOD: [&str; 2] = ["everyone has the right to education", "human rights"];
    let alone = engine.embed_blocking(Request::new(GOOD)).unwrap().embeddings;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..16)
            .map(|client| {
                let alone = &alone;
                scope.spawn(move || {
                    let mut told = Vec::new();
                    for _ in 0..20 {
                        if client % 4 > 0 {
                            let reply = engine.embed_blocking(Request::new(GOOD)).unwrap();
                            assert_eq!(&reply.embeddings, alone);
                        } else {
                            let bad = Request::new(bad.to_vec());
                            told.push(engine.embed_blocking(bad).unwrap_err());
                        }
                    }
                    told
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    })
}

#[test]
fn a_token_beyond_the_embeddings_fails_its_input_alone() {
    for others in [&[][..], &["<other>", "<third>"]] {
        let model = Copy::new();
        let id = ROWS + others.len() as u32;
        for (other, id) in others.iter().zip(ROWS..) {
            model.added_token(other, id);
        }
        model.added_token("<extra>", id);
        let engine = model.start().unwrap();
        let errors = in_company(&engine, &["human".into(), "a <extra> one".into()]);
        assert_eq!(errors.len(), 80);
        for error in errors {
            let rows = ROWS as usize;
            assert_eq!(error, RequestError::NoEmbedding { index: 1, token: id, rows });
            assert_eq!((error.input(), error.fault()), (Some(1), Fault::Caller));
        }
        let cut = "human ".repeat(400) + "<extra>";
        assert!(engine.embed_blocking(Request::new([cut])).is_ok(), "it was cut off");
        let ids = in_company(&engine, &["human".into(), Input::Tokens(vec![2, id, 3])]);
        assert!(ids.iter().all(|error| error.input() == Some(1)), "{ids:?}");
    }
}

#[test]
fn a_vocabulary_beyond_the_embeddings_is_refused_at_the_start() {
    let model = Copy::new();
    model.json("tokenizer.json", |file| {
        file["model"]["vocab"]["unheard"] = json!(ROWS);
    });
    let error = model.start().unwrap_err();
    let tokens = ROWS as usize + 1;
    assert!(
        matches!(error, StartError::Vocabulary { tokens: t, rows } if t == tokens && rows == tokens - 1)
    );
    assert!(error.to_string().contains("384 tokens") && error.to_string().contains("383"));
}

#[test]
fn a_damaged_row_fails_those_that_have_its_word_and_names_them() {
    let model = Copy::new();
    let row = row(&model.start().unwrap(), "freedom");
    model.damage(WORDS, row..row + 1);
    let engine = model.start().unwrap();
    for error in in_company(&engine, &["human".into(), "right".into(), "of freedom".into()]) {
        assert_eq!(error, RequestError::NotFinite { index: 2 });
        assert_eq!((error.input(), error.fault()), (Some(2), Fault::Server));
        let words = error.to_string();
        assert!(words.contains("input 2") && words.contains("damaged"), "{words}");
        assert!(!words.contains("cpu"), "the device has done nothing wrong: {words}");
    }
    assert_eq!(engine.readiness(), Ok(()));
}

#[test]
fn a_model_that_makes_numbers_of_no_text_does_not_start() {
    for (tensor, rows) in [
        (WORDS, 0..ROWS as usize),
        ("embeddings.LayerNorm.weight", 3..4),
        ("encoder.layer.1.output.dense.bias", 0..32),
    ] {
        let model = Copy::new();
        model.damage(tensor, rows);
        let error = model.start().unwrap_err();
        assert!(matches!(&error, StartError::NotFinite { device, .. } if device == "cpu"));
        let words = error.to_string();
        assert!(words.contains("damaged") && !words.contains("float16"), "{words}");
    }
}
