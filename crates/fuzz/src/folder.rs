//! Models of which one file is the input: a folder of a small model, copied once per process.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use rawzip::ZipArchiveWriter;
use tempfile::TempDir;
use vecmill_engine::{Tokenizer, Truncation};
use vecmill_model::{ConvertError, DType, Model, Weights};

use crate::short;

/// The JSON files of a model, by the first byte of an input.
const SETTINGS: [&str; 9] = [
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
    "config_sentence_transformers.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
];

/// Tokenised with each tokenizer that can be opened.
const TEXTS: [&str; 4] = ["a quick brown fox", "ÄÖ 漢字 🦊\u{0}\u{301}", "", "[MASK] ##x İ"];

/// A model with a module of every kind; its files may be replaced.
struct Scratch {
    folder: TempDir,
}

impl Scratch {
    fn new() -> Self {
        // In memory where there is such a place: each input is a file.
        let memory = Path::new("/dev/shm");
        let folder =
            if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap();
        copy(&models().join("bert-dense"), folder.path());
        Self { folder }
    }

    /// Does `check` with the file `name` being `contents`; afterwards it is as it was.
    fn with(&self, name: &str, contents: &[u8], check: impl FnOnce(&Path)) {
        let path = self.folder.path().join(name);
        let before = fs::read(&path).ok();
        // A new file: mapped ones must not change.
        let _ = fs::remove_file(&path);
        fs::write(&path, contents).unwrap();
        check(self.folder.path());
        fs::remove_file(&path).unwrap();
        if let Some(before) = before {
            fs::write(&path, before).unwrap();
        }
    }
}

/// The small models of the tests.
pub(crate) fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::write(target, fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

fn scratch(name: &str, contents: &[u8], check: impl FnOnce(&Path)) {
    static SCRATCH: OnceLock<Mutex<Scratch>> = OnceLock::new();
    let scratch = SCRATCH.get_or_init(|| Mutex::new(Scratch::new()));
    scratch.lock().unwrap_or_else(PoisonError::into_inner).with(name, contents, check);
}

/// The settings of a model: the first byte chooses the file, the rest is its contents.
pub fn model_json(data: &[u8]) {
    let Some((&first, contents)) = data.split_first() else { return };
    let name = SETTINGS.get(usize::from(first) % SETTINGS.len()).unwrap();
    scratch(name, contents, |folder| match Tokenizer::of_model(folder) {
        Ok(tokenizer) => tokenise(&tokenizer),
        Err(error) => short(&error),
    });
}

/// A file of weights. What a header says that the input goes on with is made of zeros, so that the
/// input can be a header alone; the first byte may forbid that.
pub fn weights(data: &[u8]) {
    let Some((&first, contents)) = data.split_first() else { return };
    let mut contents = contents.to_vec();
    if first % 8 != 7 {
        let size = stated_size(&contents).filter(|size| *size <= 1 << 20);
        contents.resize(size.unwrap_or(0).max(contents.len()), 0);
    }
    scratch("model.safetensors", &contents, |folder| {
        if let Err(error) = Model::open(folder) {
            short(&error);
        }
    });
}

/// How long a file with this header would be.
fn stated_size(contents: &[u8]) -> Option<usize> {
    let (length, rest) = contents.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let header: serde_json::Value = serde_json::from_slice(rest.get(..length)?).ok()?;
    let end = |tensor: &serde_json::Value| tensor.get("data_offsets")?.get(1)?.as_u64();
    let last = header.as_object()?.values().filter_map(end).max()?;
    usize::try_from(last).ok()?.checked_add(8 + length)
}

/// A file of pickled weights. The first byte says whether the input is the file, or a pickle alone
/// that gets an archive and two storages.
pub fn pickles(data: &[u8]) {
    let Some((&first, contents)) = data.split_first() else { return };
    let archive = || {
        let storages = [("a/data/0", [0; 24].as_slice()), ("a/data/1", &[0; 64])];
        zip(&[&[("a/data.pkl", contents)], &storages[..]].concat())
    };
    let contents = if first % 2 == 0 { contents.to_vec() } else { archive().unwrap() };
    const NAME: &str = "pytorch_model.bin";
    scratch(NAME, &contents, |folder| match Weights::open_file(&folder.join(NAME)) {
        // All that it has is read.
        Ok(weights) => match weights.write_as(DType::BF16, &mut io::sink(), &|_| {}) {
            Ok(_) => {}
            Err(error @ ConvertError::OutOfRange { .. }) => short(&error),
            Err(error @ ConvertError::Model(_)) => short(&error), // too many for a header
            Err(error) => panic!("{error}"),
        },
        Err(error) => short(&error),
    });
}

/// A zip archive of these entries, stored.
fn zip(entries: &[(&str, &[u8])]) -> Result<Vec<u8>, rawzip::Error> {
    let mut archive = ZipArchiveWriter::new(Vec::new());
    for (name, contents) in entries {
        let (mut entry, config) = archive.new_file(*name).start()?;
        let mut writer = config.wrap(&mut entry);
        writer.write_all(contents).unwrap();
        let (_, descriptor) = writer.finish()?;
        entry.finish(descriptor)?;
    }
    archive.finish()
}

/// A model's `tokenizer.json`.
pub fn tokenizer_file(data: &[u8]) {
    scratch("tokenizer.json", data, |folder| match Tokenizer::of_model(folder) {
        Ok(tokenizer) => tokenise(&tokenizer),
        Err(error) => short(&error),
    });
}

fn tokenise(tokenizer: &Tokenizer) {
    for text in TEXTS {
        for truncation in [Truncation::End, Truncation::Start, Truncation::Refuse] {
            if let Err(error) = tokenizer.ids(text, truncation) {
                short(&error);
            }
        }
    }
}
