//! `vecmill serve` is ready when it can give vectors, and only then.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what must hold by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/bert-mean")
}

fn serve(model: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vecmill"));
    command
        .args(["serve", "--port", "0", "--cpu-threads", "1", "--admin", "--model-id"])
        .arg(model)
        .env_clear()
        .env("VECMILL_DEVICE", "cpu")
        .stderr(Stdio::piped());
    command
}

/// Ends with the test.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ask(address: &str, request: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(
        stream,
        "{request} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn drained_it_is_not_ready_and_says_so_and_restored_it_is() {
    let mut child = serve(&model()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let _ending = Ending(child);
    let line = lines.find(|line| line.contains("http://")).unwrap();
    let (_, rest) = line.split_once("http://").unwrap();
    let address: String =
        rest.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
    lines.find(|line| line.contains("try: curl")).unwrap();
    let body = r#"{"model":"any","input":"a quick brown fox"}"#;
    let embed = || ask(&address, "POST /v1/embeddings", body);
    let ready = || ask(&address, "GET /ready", "");
    let operate = |what: &str| {
        ask(&address, &format!("POST /admin/devices/{what}?device=cpu"), "");
    };
    assert!(ready().starts_with("HTTP/1.1 200 "));
    operate("drain");
    for answer in [ready(), embed()] {
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("cpu is drained") && answer.contains("retry-after"), "{answer}");
    }
    operate("restore");
    assert!(ready().starts_with("HTTP/1.1 200 "));
    let answer = embed();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn with_weights_that_give_no_numbers_it_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    copy(&model(), folder.path());
    let weights = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0xff);
    fs::write(&weights, bytes).unwrap();
    let output = serve(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("finite") && said.contains("weights are damaged"), "{said}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
