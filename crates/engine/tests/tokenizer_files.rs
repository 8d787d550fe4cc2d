//! Tokenizers of models whose files are at odds with one another, or hostile.

#![expect(clippy::unwrap_used, reason = "a test says what must hold by panicking")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use vecmill_engine::ModelRef;
use vecmill_engine::{DeviceSpec, Engine, Request, RequestError, Tokenizer, Truncation};

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata")
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A folder with a tiny model, whose files may be changed.
struct Copy {
    folder: TempDir,
    model: PathBuf,
}

impl Copy {
    fn of(model: &str) -> Self {
        let copy =
            Self { folder: TempDir::new().unwrap(), model: testdata().join("models").join(model) };
        for entry in fs::read_dir(&copy.model).unwrap() {
            let entry = entry.unwrap();
            symlink(
                fs::canonicalize(entry.path()).unwrap(),
                copy.path(entry.file_name().to_str().unwrap()),
            )
            .unwrap();
        }
        copy
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file anew, or removes it.
    fn put(&self, name: &str, contents: Option<&Value>) {
        let path = self.path(name);
        let _ = fs::remove_file(&path);
        if let Some(contents) = contents {
            fs::write(path, serde_json::to_vec(contents).unwrap()).unwrap();
        }
    }

    /// Changes `tokenizer.json`.
    fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut json = read(&self.model.join("tokenizer.json"));
        change(&mut json);
        self.put("tokenizer.json", Some(&json));
    }

    fn tokenizer(&self) -> Result<Tokenizer, String> {
        Tokenizer::of_model(self.folder.path()).map_err(|error| error.to_string())
    }

    fn engine(&self) -> Engine {
        let engine = Engine::builder().model(ModelRef::Folder(self.folder.path().to_owned()));
        engine
            .devices(vec![DeviceSpec::CPU])
            .cpu_threads(1)
            .tokenization_workers(2)
            .start()
            .unwrap()
    }
}

#[test]
fn settings_beside_the_file_mean_what_they_mean_to_transformers() {
    let golden = read(&testdata().join("golden/tokenizer-settings.json"));
    let texts: Vec<&str> =
        golden["texts"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    for case in golden["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let copy = Copy::of(case["model"].as_str().unwrap());
        for (file, contents) in case["files"].as_object().unwrap() {
            let mut contents = contents.clone();
            if file == "tokenizer.json" {
                contents["model"] = read(&copy.model.join(file))["model"].take();
            }
            copy.put(file, Some(&contents).filter(|contents| !contents.is_null()));
        }
        let tokenizer = copy.tokenizer().unwrap();
        for (text, expected) in texts.iter().zip(case["ids"].as_array().unwrap()) {
            let ids = tokenizer.ids(text, Truncation::Refuse).unwrap();
            assert_eq!(json!(ids), *expected, "{name}: {text:?}");
        }
    }
}

#[test]
fn only_a_regular_file_of_bounded_size_is_read() {
    let copy = Copy::of("bert-mean");
    let path = copy.path("tokenizer.json");
    let said = || {
        let said = copy.tokenizer().unwrap_err();
        assert!(said.contains("tokenizer.json") && said.len() < 600, "{said}");
        said
    };
    fs::remove_file(&path).unwrap();
    assert!(said().contains("missing"));
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    assert!(said().contains("pipe"));
    fs::remove_file(&path).unwrap();
    symlink("/dev/zero", &path).unwrap();
    assert!(said().contains("device"));
    fs::remove_file(&path).unwrap();
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    assert!(said().contains("bytes"));
    fs::write(&path, b"{\"a\":".repeat(20_000)).unwrap();
    assert!(said().contains("'the whole file'"));
    fs::write(&path, b"\xff").unwrap();
    assert!(said().contains("utf-8"));
}

#[test]
fn a_hostile_part_is_named_with_its_file() {
    let copy = Copy::of("xlm-roberta-cls");
    copy.change(|json| {
        let map = json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="});
        json["normalizer"] = json!({"type": "Sequence", "normalizers": [map]});
    });
    let said = copy.tokenizer().unwrap_err();
    assert!(
        said.contains("tokenizer.json")
            && said.contains("'normalizer.normalizers[0].precompiled_charsmap'")
    );
    copy.change(|json| json["model"]["type"] = json!("x".repeat(100_000)));
    let said = copy.tokenizer().unwrap_err();
    assert!(said.len() < 600, "{} bytes", said.len());
}

#[test]
fn a_text_that_would_grow_is_refused_alone() {
    let copy = Copy::of("xlm-roberta-cls");
    copy.change(|json| {
        let content = "x".repeat(500);
        json["normalizer"] =
            json!({"type": "Replace", "pattern": {"String": "a"}, "content": content});
    });
    let engine = copy.engine();
    let long = "a".repeat(300_000);
    let refused = engine.embed_blocking(Request::new(["b", "a", &long])).unwrap_err();
    let RequestError::Tokenizer { index: 2, reason } = refused else { unreachable!("{refused}") };
    assert!(reason.contains("normalizer"), "{reason}");
    assert_eq!(engine.embed_blocking(Request::new(["b", "a"])).unwrap().embeddings.len(), 2);
}

#[test]
fn words_in_another_case_than_the_vocabulary_s_raise_a_doubt() {
    // Tiny vocabularies have all letters, so nothing is unknown: this one gets words alone.
    let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "and", "people", "water"];
    let vocabulary: serde_json::Map<_, _> =
        words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let doubt = |lowercase: bool| {
        let copy = Copy::of("bert-mean");
        copy.change(|json| {
            json["model"]["vocab"] = vocabulary.clone().into();
            json["normalizer"]["lowercase"] = lowercase.into();
        });
        copy.tokenizer().unwrap().doubt()
    };
    assert_eq!(doubt(true), None);
    let said = doubt(false).unwrap();
    assert!(said.contains("The, And, People, Water") && said.contains("do_lower_case"), "{said}");
}
