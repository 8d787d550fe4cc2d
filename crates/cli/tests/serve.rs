//! `vecmill serve` with a small model: from the first line to the last signal.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what must hold by panicking")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use support::{LONG, Running};

/// A server that ends with the test, and what it says on standard error.
struct Server {
    process: Running,
    lines: Receiver<String>,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let mut command = support::vecmill("", &[&["serve", "--port", "0"], arguments].concat());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || stderr.lines().try_for_each(|line| sender.send(line.unwrap())));
        Self { process: Running(child), lines }
    }

    /// The next line; `None` where the server has closed standard error.
    fn line(&self) -> Option<String> {
        match self.lines.recv_timeout(LONG) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("waited too long for a line"),
        }
    }

    /// The next line with `word` in it.
    fn line_with(&mut self, word: &str) -> String {
        let mut others = Vec::new();
        while let Some(line) = self.line() {
            if line.contains(word) {
                return line;
            }
            others.push(line);
        }
        panic!("the server ended without '{word}':\n{}", others.join("\n"));
    }

    fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// How it ended, and what it said until then.
    fn end(mut self) -> (ExitStatus, String) {
        let rest: Vec<_> = std::iter::from_fn(|| self.line()).collect();
        (self.process.end(), rest.join("\n"))
    }
}

/// A connection whose replies don't take for ever.
fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

fn address(line: &str) -> String {
    let (_, rest) = line.split_once("http://").unwrap();
    rest.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect()
}

/// Asks without a body.
fn ask(address: &str, request: &str) -> String {
    let mut stream = connect(address);
    let head = format!("{request} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn post(address: &str, head: &str) -> String {
    post_body(address, head, r#"{"model":"any","input":"a quick brown fox"}"#)
}

fn post_body(address: &str, head: &str, body: &str) -> String {
    let mut stream = connect(address);
    let length = body.len();
    write!(
        stream,
        "POST /v1/embeddings HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nconnection: close\r\n{head}\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn it_says_where_it_listens_serves_and_stops_at_a_signal() {
    for signal in ["INT", "TERM"] {
        let mut server = Server::start(&["--served-model-name", "tiny"]);
        let address = address(&server.line_with("http://"));
        let ready = server.line_with("ready: ");
        assert!(ready.contains("tiny, 32 dimensions, on cpu ("), "{ready}");
        assert!(server.line_with("try: curl").contains(&format!("http://{address}/v1/embeddings")));
        let answer = post(&address, "");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"tiny\""), "{answer}");
        server.signal(signal);
        let (status, rest) = server.end();
        assert_eq!(status.code(), Some(0), "{rest}");
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Server::start(&["--shutdown-grace", "24h"]);
    let address = address(&server.line_with("http://"));
    server.line_with("try: curl");
    // A request that has begun and never ends, for which the first signal waits a while. It has
    // not come whole, so nothing is lost.
    let mut stream = connect(&address);
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
                content-length: 100\r\nexpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    stream.read_exact(&mut [0; 12]).unwrap();
    server.signal("INT");
    server.line_with("stopping");
    server.signal("INT");
    let (status, rest) = server.end();
    assert_eq!(status.code(), Some(0), "{rest}");
}

/// Starts requests that take long, and returns when they are at work.
fn long_requests(address: &str) -> Vec<TcpStream> {
    let texts = vec![format!("\"{}\"", "fox ".repeat(100)); 500].join(",");
    let body = format!("{{\"model\":\"any\",\"input\":[{texts}]}}");
    let length = body.len();
    let start = |_| {
        let mut stream = connect(address);
        let head = format!("POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: {length}");
        write!(stream, "{head}\r\n\r\n{body}").unwrap();
        stream
    };
    let streams = (0..4).map(start).collect();
    let waiting = |line: &str| line.starts_with("vecmill_queue_inputs ") && !line.ends_with(" 0");
    while !ask(address, "GET /metrics").lines().any(waiting) {}
    streams
}

#[test]
fn a_stop_that_cut_requests_off_says_so_and_how_many() {
    // Either the time for stopping is over, or a second signal ends it.
    for (grace, signals) in [("0s", 1), ("24h", 2)] {
        let mut server = Server::start(&["--shutdown-grace", grace]);
        let address = address(&server.line_with("http://"));
        server.line_with("try: curl");
        let requests = long_requests(&address);
        server.signal("TERM");
        if signals == 2 {
            server.line_with("stopping");
            server.signal("TERM");
        }
        let (status, rest) = server.end();
        assert_eq!(status.code(), Some(4), "{rest}");
        assert!(rest.contains(" accepted requests were cut off: "), "{rest}");
        drop(requests);
    }
}

#[test]
fn a_stop_finishes_what_was_accepted() {
    let mut server = Server::start(&["--shutdown-grace", "5m"]);
    let address = address(&server.line_with("http://"));
    server.line_with("try: curl");
    let requests = long_requests(&address);
    server.signal("TERM");
    let (status, rest) = server.end();
    assert_eq!(status.code(), Some(0), "{rest}");
    for mut stream in requests {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("}}"), "{rest}");
    }
}

#[test]
fn keys_are_asked_for_and_not_shown() {
    let mut server = Server::start(&["--api-key", "k3y", "--log-level", "trace"]);
    let address = address(&server.line_with("http://"));
    let hint = server.line_with("try: curl");
    assert!(hint.contains("$API_KEY"), "{hint}");
    assert!(post(&address, "").starts_with("HTTP/1.1 401 "));
    assert!(post(&address, "authorization: Bearer k3y\r\n").starts_with("HTTP/1.1 200 "));
    server.signal("TERM");
    let (_, rest) = server.end();
    assert!(!rest.contains("k3y"), "{rest}");
}

#[test]
fn its_memory_can_be_seen_and_recorded_by_the_operator() {
    let mut server = Server::start(&["--admin", "--memory-give-back", "never"]);
    let address = address(&server.line_with("http://"));
    server.line_with("try: curl");
    assert!(post(&address, "").starts_with("HTTP/1.1 200 "));
    let memory = ask(&address, "GET /admin/memory");
    assert!(
        memory.contains("\"device\":\"cpu\"") && memory.contains("\"budget_bytes\":"),
        "{memory}"
    );
    let recording = ask(&address, "GET /admin/memory/recording?device=cpu");
    assert!(recording.contains("\r\ncontent-disposition: attachment"), "{recording}");
    assert!(ask(&address, "POST /admin/memory/trim").starts_with("HTTP/1.1 200 "));

    let (_, csv) = recording.split_once("\r\n\r\n").unwrap();
    let recording = vecmill_engine::Recording::read(csv.as_bytes()).unwrap();
    assert!(!recording.events.is_empty());
}

#[test]
fn its_memory_is_nobody_else_s_business() {
    let mut server = Server::start(&[]);
    let address = address(&server.line_with("http://"));
    server.line_with("try: curl");
    assert!(ask(&address, "GET /admin/memory").starts_with("HTTP/1.1 404 "));
}

#[test]
fn the_log_can_be_json_throughout() {
    let mut server = Server::start(&["--json-output"]);
    let mut lines = vec![server.line_with("\"ready\"")];
    server.signal("TERM");
    let (status, rest) = server.end();
    assert_eq!(status.code(), Some(0));
    lines.extend(rest.lines().map(str::to_owned));
    for line in lines {
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(event["level"].is_string(), "{line}");
    }
}

#[test]
fn openai_s_token_ids_are_read_where_the_operator_says_so() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "\u{feff}k3y\r\n").unwrap(); // as an editor may leave it
    let path = keys.path().to_str().unwrap();
    let mut server = Server::start(&["--token-inputs", "cl100k_base", "--api-key-file", path]);
    let address = address(&server.line_with("http://"));
    server.line_with("try: curl");
    let vector = |input: &str| {
        let body = format!(r#"{{"input":{input}}}"#);
        let answer = post_body(&address, "authorization: Bearer k3y\r\n", &body);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        answer.split_once("\"embedding\":[").unwrap().1.split_once(']').unwrap().0.to_owned()
    };
    assert_eq!(vector("[[9906,1917]]"), vector("\"Hello world\""));
}

#[test]
fn doubtful_token_ids_are_logged_once() {
    let mut server = Server::start(&[]);
    let address = address(&server.line_with("http://"));
    server.line_with("try: curl");
    for _ in 0..3 {
        let answer = post_body(&address, "", r#"{"input":[5,6,7]}"#);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("x-vecmill-warning: input 0 is probably not"), "{answer}");
    }
    server.signal("TERM");
    let (_, rest) = server.end();
    assert_eq!(rest.matches("check_embedding_ctx_length=False").count(), 1, "{rest}");
}
