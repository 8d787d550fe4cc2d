//! `vecmill convert` with small models: what comes out loads, agrees, and is there whole or not at all.
#![allow(clippy::unwrap_used, reason = "tests say what must hold by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Texts of several lengths.
const TEXTS: [&str; 4] = ["a", "a quick brown fox", "jumps over the lazy dog", "once more, again"];

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(name)
}

/// Exit code, standard output and standard error.
fn vecmill(arguments: &[&str], model: &Path, more: &[&Path]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vecmill"));
    command.args(arguments).arg("--model").arg(model);
    if let [output] = more {
        command.arg("--output").arg(output);
    }
    command.env_clear().env("VECMILL_DEVICE", "cpu").stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn convert(model: &Path, dtype: &str, output: &Path) -> (i32, String, String) {
    vecmill(&["convert", "--dtype", dtype], model, &[output])
}

fn converted(model: &Path, dtype: &str) -> TempDir {
    let home = TempDir::new().unwrap();
    let (code, out, err) = convert(model, dtype, &home.path().join("new"));
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("Largest rounding error") || out.contains("No number"), "{out}");
    home
}

fn vectors(model: &Path) -> Vec<Vec<f64>> {
    let (code, out, err) = vecmill(&[&["embed"][..], &TEXTS].concat(), model, &[]);
    assert_eq!(code, 0, "{err}");
    let lines = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|line| serde_json::from_value(line["embedding"].clone()).unwrap()).collect()
}

fn lowest_cosine(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()).fold(1.0, f64::min)
}

/// The tensors of a safetensors file: what the header says of each, and its bytes.
fn tensors(file: &Path) -> BTreeMap<String, (Value, Vec<u8>)> {
    let contents = fs::read(file).unwrap();
    let (length, rest) = contents.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length).try_into().unwrap());
    let header: BTreeMap<String, Value> = serde_json::from_slice(header).unwrap();
    let of_tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    let read = |(name, info): (String, Value)| {
        let [start, end]: [usize; 2] =
            serde_json::from_value(info["data_offsets"].clone()).unwrap();
        (name, (info, data[start..end].to_vec()))
    };
    of_tensors.map(read).collect()
}

fn write_tensors(file: &Path, tensors: BTreeMap<String, (Value, Vec<u8>)>) {
    let (mut header, mut data) = (BTreeMap::new(), Vec::new());
    for (name, (mut info, bytes)) in tensors {
        info["data_offsets"] = json!([data.len(), data.len() + bytes.len()]);
        header.insert(name, info);
        data.extend(bytes);
    }
    let header = serde_json::to_vec(&header).unwrap();
    fs::write(file, [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()).unwrap();
}

/// A copy of the test model `bert-mean`.
fn copy() -> TempDir {
    fn copy_into(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let (path, target) =
                (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
            if path.is_dir() {
                copy_into(&path, &target);
            } else {
                fs::copy(path, target).unwrap();
            }
        }
    }
    let folder = TempDir::new().unwrap();
    copy_into(&model("bert-mean"), folder.path());
    folder
}

#[test]
fn converted_models_agree_with_the_original() {
    for name in ["bert-mean", "bert-dense", "bert-bf16", "roberta-mean", "distilbert-mean"] {
        let original = vectors(&model(name));
        for (dtype, least) in [("f16", 0.99999), ("bfloat16", 0.999), ("f32", 1.0 - 1e-12)] {
            let home = converted(&model(name), dtype);
            let cosine = lowest_cosine(&original, &vectors(&home.path().join("new")));
            assert!(cosine >= least, "{name} in {dtype}: {cosine}");
        }
    }
}

#[test]
fn matrices_get_the_format_and_biases_single_precision() {
    let home = converted(&model("bert-dense"), "float16");
    for file in ["model.safetensors", "2_Dense/model.safetensors"] {
        let (old, new) = (
            tensors(&model("bert-dense").join(file)),
            tensors(&home.path().join("new").join(file)),
        );
        assert!(old.keys().eq(new.keys()), "{file}");
        for (name, (info, bytes)) in &new {
            let matrix = info["shape"].as_array().unwrap().len() > 1;
            assert_eq!(info["dtype"], if matrix { "F16" } else { "F32" }, "{name}");
            assert_eq!(info["shape"], old[name].0["shape"], "{name}");
            assert!(matrix || *bytes == old[name].1, "{name} was not to change");
        }
    }
}

#[test]
fn shards_become_one_file() {
    let sharded = copy();
    let file = sharded.path().join("model.safetensors");
    let mut first = tensors(&file);
    let middle = first.keys().nth(first.len() / 2).unwrap().clone();
    let second = first.split_off(&middle);
    let shards = [("model-00001.safetensors", first), ("model-00002.safetensors", second)];
    let mut map = BTreeMap::new();
    for (shard, tensors) in shards {
        map.extend(tensors.keys().map(|name| (name.clone(), shard)));
        write_tensors(&sharded.path().join(shard), tensors);
    }
    fs::remove_file(&file).unwrap();
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    fs::write(sharded.path().join("model.safetensors.index.json"), index).unwrap();

    let (of_shards, of_one) =
        (converted(sharded.path(), "f16"), converted(&model("bert-mean"), "f16"));
    let weights = |home: &TempDir| fs::read(home.path().join("new/model.safetensors")).unwrap();
    assert!(weights(&of_shards) == weights(&of_one));
    let new: Vec<_> = fs::read_dir(of_shards.path().join("new")).unwrap().collect();
    let names = new.iter().map(|entry| entry.as_ref().unwrap().file_name());
    assert_eq!(names.filter(|name| name.to_string_lossy().starts_with("model")).count(), 1);
}

#[test]
fn a_pickle_becomes_the_safetensors_that_it_was_made_of() {
    let home = converted(&model("bert-pickle"), "f32");
    let file = |folder: &Path| tensors(&folder.join("model.safetensors"));
    let (old, new) = (file(&model("bert-mean")), file(&home.path().join("new")));
    assert!(old.keys().eq(new.keys()));
    for (name, (info, bytes)) in &new {
        assert_eq!(info["shape"], old[name].0["shape"], "{name}");
        assert!(*bytes == old[name].1, "{name}");
    }
}

#[test]
fn what_the_format_cannot_hold_is_named_and_nothing_is_left() {
    let folder = copy();
    let file = folder.path().join("model.safetensors");
    let mut tensors = tensors(&file);
    let name = "encoder.layer.0.attention.self.query.weight";
    tensors.get_mut(name).unwrap().1[4..8].copy_from_slice(&70_000f32.to_le_bytes());
    write_tensors(&file, tensors);

    let home = TempDir::new().unwrap();
    let (code, out, err) = convert(folder.path(), "f16", &home.path().join("new"));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains(name) && err.contains("7e4") && err.contains("bfloat16"), "{err}");
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    converted(folder.path(), "bf16");
}

#[test]
fn nothing_is_overwritten() {
    let home = converted(&model("bert-mean"), "f16");
    let before = fs::read(home.path().join("new/model.safetensors")).unwrap();
    let (code, _, err) = convert(&model("bert-mean"), "f32", &home.path().join("new"));
    assert_eq!(code, 1);
    assert!(err.contains("exists already"), "{err}");
    assert!(fs::read(home.path().join("new/model.safetensors")).unwrap() == before);
}
