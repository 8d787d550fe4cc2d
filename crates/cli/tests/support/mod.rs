//! The real binary, as those who start it, watch it and stop it see it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what must hold by panicking")]
#![allow(dead_code, reason = "each test uses some of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Nothing here takes so long, however busy the machine is.
pub(crate) const LONG: Duration = Duration::from_secs(120);

pub(crate) fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/bert-mean")
}

/// `vecmill` with these arguments and a small model, as the shell's `exec` behind `setup`.
pub(crate) fn vecmill(setup: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let script = format!("{setup}\nexec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_vecmill")]).args(arguments);
    command.args(["--cpu-threads", "1", "--model-id"]).arg(model());
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("VECMILL_DEVICE", "cpu").stdin(Stdio::null());
    command
}

/// A process that ends with the test.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// Waits for the end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let mut status = None;
        until("the process ends", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server.
pub(crate) struct Server {
    pub(crate) process: Running,
    pub(crate) address: String,
}

impl Server {
    /// Starts one behind `setup` and waits until it is ready. It is not asked on standard error where
    /// it listens: nobody may read that.
    pub(crate) fn start(setup: &str, arguments: &[&str], stderr: Stdio) -> Self {
        let server = Self::start_loading(setup, arguments, stderr);
        until("the server is ready", || {
            server.try_ask("GET /ready").is_some_and(|reply| reply.starts_with("HTTP/1.1 200 "))
        });
        server
    }

    pub(crate) fn start_loading(setup: &str, arguments: &[&str], stderr: Stdio) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let port = port.to_string();
        let mut command = vecmill(setup, &[&["serve", "--port", &port], arguments].concat());
        let process = Running(command.stderr(stderr).spawn().unwrap());
        Self { process, address: format!("127.0.0.1:{port}") }
    }

    /// The reply to a request without a body, if there is one.
    pub(crate) fn try_ask(&self, request: &str) -> Option<String> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(LONG)).unwrap();
        let head = format!("{request} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).ok()?;
        Some(reply)
    }

    pub(crate) fn ask(&self, request: &str) -> String {
        self.try_ask(request).unwrap()
    }

    pub(crate) fn connect(&self) -> Client {
        Client::new(TcpStream::connect(&self.address).unwrap())
    }

    /// The value of a metric.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let metrics = self.ask("GET /metrics");
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).parse().unwrap()
    }
}

/// A connection that is kept open.
pub(crate) struct Client(BufReader<TcpStream>);

impl Client {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self(BufReader::new(stream))
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// The head of the next reply.
    pub(crate) fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.0.read_line(&mut head).unwrap(), 0, "the reply ends early: {head}");
        }
        head
    }

    /// The status of the next reply, all of which is there.
    pub(crate) fn status(&mut self) -> u16 {
        let head = self.head().to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        self.0.read_exact(&mut body).unwrap();
        head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Asks for something that is logged, with an id that makes the line long.
    pub(crate) fn get(&mut self) -> u16 {
        let id = "x".repeat(128);
        self.send(&format!("GET /info HTTP/1.1\r\nhost: a\r\nx-request-id: {id}\r\n\r\n"));
        self.status()
    }

    /// Asks for a vector.
    pub(crate) fn embed(&mut self) -> u16 {
        self.send(&format!("{}\r\n{BODY}", head_of_embedding()));
        self.status()
    }
}

pub(crate) const BODY: &str = r#"{"model":"any","input":"a quick brown fox"}"#;

/// The head of a request for a vector, without the line that ends it.
pub(crate) fn head_of_embedding() -> String {
    let length = BODY.len();
    format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n"
    )
}

/// Waits until `done`.
#[track_caller]
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LONG, "waited too long until {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
