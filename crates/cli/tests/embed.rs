//! `vecmill embed` with a small model: every kind of input and output.
#![allow(clippy::unwrap_used, reason = "tests say what must hold by panicking")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const DIMENSIONS: usize = 32;

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(name)
}

fn embed() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vecmill"));
    command.args(["embed", "--cpu-threads", "1", "--model-id"]).arg(model("bert-mean"));
    command.env_clear().env("VECMILL_DEVICE", "cpu").stdin(Stdio::null());
    command
}

/// Runs with `input` on standard input.
fn feed(command: &mut Command, input: &[u8]) -> Output {
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    output
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The lines of a successful run.
fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", stderr(output));
    parse(&output.stdout)
}

fn parse(jsonl: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(jsonl).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn vector(line: &Value) -> Vec<f64> {
    line["embedding"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn length(vector: &[f64]) -> f64 {
    vector.iter().map(|value| value * value).sum::<f64>().sqrt()
}

#[track_caller]
fn assert_close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() < 1e-4, "{a} is not {b}");
    }
}

#[test]
fn texts_of_the_reference_get_its_vectors() {
    let text = std::fs::read_to_string(model("bert-mean").join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let cases = expected["cases"].as_array().unwrap();
    let case = cases.iter().find(|case| case["name"] == "texts").unwrap();
    let texts: Vec<&str> =
        case["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();

    let found = lines(&embed().arg("--").args(&texts).output().unwrap());
    assert_eq!(found.len(), texts.len());
    for (index, line) in found.iter().enumerate() {
        assert_eq!(line["index"], index);
        assert_eq!(line["tokens"], case["inputs"][index].as_array().unwrap().len());
        let expected: Vec<f64> = case["embeddings"][index]
            .as_array()
            .unwrap()
            .iter()
            .map(|value| value.as_f64().unwrap())
            .collect();
        assert_close(&vector(line), &expected);
    }
}

#[test]
fn every_way_in_gives_the_same_vectors_in_the_same_order() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("texts.txt");
    let json = folder.path().join("texts.jsonl");
    std::fs::write(&plain, "\u{feff}a right\r\nto move\nall beings").unwrap();
    std::fs::write(&json, "\"a right\"\n{\"body\":\"to move\"}\n\"all beings\"\n").unwrap();

    let arguments = lines(&embed().args(["a right", "to move", "all beings"]).output().unwrap());
    let stdin = lines(&feed(&mut embed(), b"a right\nto move\nall beings\n"));
    let text = lines(&embed().arg("--input").arg(&plain).output().unwrap());
    let jsonl =
        lines(&embed().arg("--input").arg(&json).args(["--field", "body"]).output().unwrap());
    for other in [stdin, text, jsonl] {
        assert_eq!(other.len(), arguments.len());
        for (one, other) in arguments.iter().zip(&other) {
            assert_eq!(one["index"], other["index"]);
            assert_eq!(one["tokens"], other["tokens"]);
            assert_close(&vector(one), &vector(other));
        }
    }
}

#[test]
fn many_texts_keep_their_order() {
    let input: String = (0..3000).map(|n| format!("{}\n", "all ".repeat(1 + n % 17))).collect();
    let found = lines(&feed(embed().args(["--queue-capacity", "64"]), input.as_bytes()));
    assert_eq!(found.len(), 3000);
    for (index, line) in found.iter().enumerate() {
        assert_eq!(line["index"], index);
        assert_eq!(line["tokens"], 3 + index % 17);
    }
}

#[test]
fn a_line_that_fails_fails_alone() {
    let long = "all ".repeat(1000);
    let input = [b"fine\n\nb\xFFd\n", long.as_bytes(), b"\nfine"].concat();
    let output = feed(embed().arg("--no-truncate"), &input);
    assert_eq!(output.status.code(), Some(3));
    let found = parse(&output.stdout);
    assert_eq!(found.len(), 5);
    assert_eq!(vector(&found[0]), vector(&found[4]));
    let report = stderr(&output);
    for (line, reason) in [(2, "blank"), (3, "not valid UTF-8"), (4, "1002 tokens")] {
        let error = found[line - 1]["error"].as_str().unwrap();
        assert!(error.starts_with(reason), "{error}");
        assert!(report.contains(&format!("line {line}: {error}")), "{report}");
    }
    assert!(report.contains("3 of 5 texts failed"), "{report}");
}

#[test]
fn long_texts_are_cut_and_say_so() {
    let found = lines(&embed().args(["short", &"all ".repeat(1000)]).output().unwrap());
    assert_eq!((&found[0]["truncated"], &found[1]["truncated"]), (&false.into(), &true.into()));
    assert_eq!(found[1]["tokens"], 160);
}

#[test]
fn blank_lines_can_be_left_out() {
    let found = lines(&feed(embed().arg("--skip-empty"), b"\none\n  \ntwo\n\n"));
    let indexes: Vec<_> = found.iter().map(|line| line["index"].as_u64().unwrap()).collect();
    assert_eq!(indexes, [0, 1]);
}

#[test]
fn no_input_is_no_output() {
    assert_eq!(lines(&feed(&mut embed(), b"")).len(), 0);
}

#[test]
fn a_matrix_has_a_row_for_each_text_of_nan_for_those_that_failed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vectors.npy");
    let output = feed(embed().arg("--output").arg(&path), b"a right\n\nto move\n");
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(output.stdout, b"");

    let bytes = std::fs::read(&path).unwrap();
    let (header, data) = bytes.split_at(128);
    assert!(
        header.starts_with(b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, ")
    );
    assert!(String::from_utf8_lossy(header).contains("'shape': (3, 32), }"));
    assert_eq!(data.len(), 3 * DIMENSIONS * 4);
    let values: Vec<f64> = data
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()).into())
        .collect();
    let rows: Vec<&[f64]> = values.chunks(DIMENSIONS).collect();
    let expected = lines(&embed().args(["a right", "to move"]).output().unwrap());
    assert_close(rows[0], &vector(&expected[0]));
    assert!(rows[1].iter().all(|value| value.is_nan()));
    assert_close(rows[2], &vector(&expected[1]));
    assert_eq!(folder.path().read_dir().unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn vectors_can_be_left_as_they_are_or_shortened() {
    let whole = lines(&embed().args(["--normalize", "false", "a right"]).output().unwrap());
    let unit = lines(&embed().args(["--normalize", "true", "a right"]).output().unwrap());
    let short = ["--normalize", "true", "--dimensions", "8", "a right"];
    let short = lines(&embed().args(short).output().unwrap());
    let (whole, unit, short) = (vector(&whole[0]), vector(&unit[0]), vector(&short[0]));
    assert!((length(&unit) - 1.0).abs() < 1e-5 && (length(&whole) - 1.0).abs() > 1e-3);
    assert_eq!(short.len(), 8);
    assert!((length(&short) - 1.0).abs() < 1e-5);
    let scaled: Vec<f64> = unit[..8].iter().map(|value| value / length(&unit[..8])).collect();
    assert_close(&short, &scaled);
}

#[test]
fn a_prompt_goes_in_front() {
    let with = lines(&embed().args(["--prompt", "all ", "right"]).output().unwrap());
    let written = lines(&embed().arg("all right").output().unwrap());
    assert_eq!(with[0]["tokens"], written[0]["tokens"]);
    assert_close(&vector(&with[0]), &vector(&written[0]));
}

#[test]
fn what_the_model_does_not_have_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vectors.jsonl");
    for (arguments, reason) in [
        (["--prompt-name", "query"], "no prompt 'query'"),
        (["--dimensions", "33"], "33 dimensions were asked for"),
    ] {
        let output = embed().args(arguments).arg("text").arg("-o").arg(&path).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(reason), "{}", stderr(&output));
        assert!(!path.exists());
    }
}

#[test]
fn a_closed_pipe_ends_quietly_as_sigpipe_does() {
    let mut command = embed();
    command.args(["--log-level", "off"]).args(["text"; 100]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command.stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(141), ""));
}

#[test]
fn input_that_can_t_be_read_is_said_before_the_model_is_loaded() {
    for wrong in ["/no/such/file.txt", "/"] {
        let output = embed().args(["--input", wrong]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).starts_with(&format!("vecmill: {wrong} can't be read: ")));
    }
}
