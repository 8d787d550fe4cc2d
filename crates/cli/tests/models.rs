//! The real binary with models whose folders are unusual: what the reference makes of them, or a
//! refusal that names the file and the reason.
#![allow(clippy::unwrap_used, reason = "tests say what must hold by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A copy of a small model of the test data.
fn copy(name: &str) -> TempDir {
    fn into(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
            if from.is_dir() {
                into(&from, &to);
            } else {
                let _ = fs::copy(&from, to).unwrap();
            }
        }
    }
    let folder = TempDir::new().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(name);
    into(&source, folder.path());
    folder
}

/// Sets a key of a file of settings, which may not be there yet.
fn set(folder: &TempDir, file: &str, key: &str, value: Value) {
    let path = folder.path().join(file);
    let contents = fs::read(&path).unwrap_or_else(|_| b"{}".to_vec());
    let mut contents: Value = serde_json::from_slice(&contents).unwrap();
    contents[key] = value;
    fs::write(path, contents.to_string()).unwrap();
}

/// Exit code, standard output and standard error.
fn vecmill(command: &[&str], model: &Path) -> (i32, String, String) {
    let mut process = Command::new(env!("CARGO_BIN_EXE_vecmill"));
    process.args(command).arg("--model").arg(model);
    let output = process.env_clear().stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

const EMBED: [&str; 4] = ["embed", "--device", "cpu", "a quick brown fox"];

/// The vector of a text, and what was said beside.
fn embedded(folder: &TempDir) -> (Vec<f64>, String) {
    let (code, out, err) = vecmill(&EMBED, folder.path());
    assert_eq!(code, 0, "{err}");
    let line: Value = serde_json::from_str(out.trim()).unwrap();
    (serde_json::from_value(line["embedding"].clone()).unwrap(), err)
}

/// What is said when the model is refused, by each command that opens it.
fn refused(folder: &TempDir) -> String {
    let (code, out, err) = vecmill(&EMBED, folder.path());
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    let output = folder.path().join("converted");
    for command in
        [&["plan"][..], &["convert", "--dtype", "f16", "--output", output.to_str().unwrap()]]
    {
        let (code, _, said) = vecmill(command, folder.path());
        assert_eq!(code, 1, "{command:?}: {said}");
    }
    assert!(!output.exists());
    err
}

/// Makes sure that a model can be planned for and converted.
fn planned_and_converted(folder: &TempDir) {
    let output = folder.path().join("converted");
    for command in
        [&["plan"][..], &["convert", "--dtype", "f16", "--output", output.to_str().unwrap()]]
    {
        let (code, _, said) = vecmill(command, folder.path());
        assert_eq!(code, 0, "{command:?}: {said}");
    }
    fs::remove_dir_all(output).unwrap();
}

fn length(vector: &[f64]) -> f64 {
    vector.iter().map(|number| number * number).sum::<f64>().sqrt()
}

#[test]
fn an_embedding_is_cut_after_it_was_normalised_as_the_reference_does() {
    let folder = copy("bert-mean");
    let (whole, said) = embedded(&folder);
    assert!((length(&whole) - 1.0).abs() < 1e-5, "it is normalised");
    assert!(!said.contains("WARN"), "{said}");
    set(&folder, "config_sentence_transformers.json", "truncate_dim", json!(20));
    let (cut, _) = embedded(&folder);
    assert_eq!(cut, whole[..20]);
    let (code, out, _) = vecmill(&[&EMBED[..], &["--dimensions", "10"]].concat(), folder.path());
    assert_eq!(code, 0);
    let line: Value = serde_json::from_str(out.trim()).unwrap();
    let asked: Vec<f64> = serde_json::from_value(line["embedding"].clone()).unwrap();
    assert_eq!(asked.len(), 10);
    assert!((length(&asked) - 1.0).abs() < 1e-5, "what is asked for is normalised anew");
}

#[test]
fn a_model_for_another_task_is_refused() {
    let folder = copy("bert-mean");
    set(&folder, "config.json", "architectures", json!(["BertForSequenceClassification"]));
    embedded(&folder); // modules.json says that it embeds
    fs::remove_file(folder.path().join("modules.json")).unwrap();
    // Now it ranks, as far as its files say, and a head is looked for.
    let message = refused(&folder);
    assert!(message.contains("classifier.weight"), "{message}");
    set(&folder, "config.json", "architectures", json!(["BertForTokenClassification"]));
    let message = refused(&folder);
    assert!(message.contains("BertForTokenClassification"), "{message}");

    set(&folder, "config.json", "architectures", json!(["BertForMaskedLM"]));
    let (code, _, message) = vecmill(&EMBED, folder.path());
    assert!(code == 1 && message.contains("--pooling"), "{message}");
    let chosen = [&EMBED[..], &["--pooling", "cls"]].concat();
    let (code, _, message) = vecmill(&chosen, folder.path());
    assert!(code == 0 && message.contains("BertForMaskedLM"), "{message}");

    planned_and_converted(&folder);

    set(&folder, "config.json", "architectures", json!(["BertModel"]));
    let (_, said) = embedded(&folder);
    for part in ["modules.json", "mean of all tokens", "1_Pooling", "sentence_bert_config.json"] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn settings_are_read_as_python_and_editors_write_them() {
    let folder = copy("bert-mean");
    let (plain, _) = embedded(&folder);
    let edit = |file: &str, edit: &dyn Fn(String) -> String| {
        let path: PathBuf = folder.path().join(file);
        fs::write(&path, edit(fs::read_to_string(&path).unwrap())).unwrap();
    };
    let more = "{\"loss_weight\": NaN, \"max_loss\": -Infinity, \"note\": \"\\ud800\",";
    edit("config.json", &|text| format!("\u{feff}{}", text.replacen('{', more, 1)));
    edit("modules.json", &|text| format!("\u{feff}{text}"));
    edit("tokenizer_config.json", &|text| text.replacen('{', "{\"loss\": 1e999,", 1));
    edit("sentence_bert_config.json", &|text| text.replace("64", "64.0"));
    let (vector, said) = embedded(&folder);
    assert_eq!(vector, plain);
    assert!(said.contains("'loss_weight', 'max_loss'"), "{said}");
    edit("1_Pooling/config.json", &|text| text.replacen('{', "{\u{a0}", 1));
    let message = refused(&folder);
    assert!(message.contains("U+00A0") && message.contains("1_Pooling/config.json"), "{message}");
}

#[test]
fn poolings_that_stand_beside_each_other_are_as_numpy_finds_them() {
    for name in ["bert-mean-and-max", "bert-poolings"] {
        let folder = copy(name);
        planned_and_converted(&folder);
        let expected = fs::read(folder.path().join("expected.json")).unwrap();
        let expected: Value = serde_json::from_slice(&expected).unwrap();
        let case =
            expected["cases"].as_array().unwrap().iter().find(|case| case["name"] == "texts");
        for (text, vector) in case.unwrap()["texts"]
            .as_array()
            .unwrap()
            .iter()
            .zip(case.unwrap()["embeddings"].as_array().unwrap())
        {
            let command = ["embed", "--device", "cpu", text.as_str().unwrap()];
            let (code, out, err) = vecmill(&command, folder.path());
            assert_eq!(code, 0, "{err}");
            let line: Value = serde_json::from_str(out.trim()).unwrap();
            let ours: Vec<f64> = serde_json::from_value(line["embedding"].clone()).unwrap();
            let theirs: Vec<f64> = serde_json::from_value(vector.clone()).unwrap();
            assert_eq!(ours.len(), theirs.len());
            let far = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(far < 1e-4, "{name}: {far}");
        }
    }
}

#[cfg(unix)]
#[test]
fn links_to_nothing_are_told_apart_from_what_is_not_there() {
    for file in [
        "config.json",
        "model.safetensors",
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ] {
        let folder = copy("bert-mean");
        let path = folder.path().join(file);
        let _ = fs::remove_file(&path);
        std::os::unix::fs::symlink("../../blobs/0000", &path).unwrap();
        let message = refused(&folder);
        assert!(message.contains(file) && message.contains("blobs/0000"), "{message}");
    }
}
