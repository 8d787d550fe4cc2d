//! A real server on a free port, with a real engine, and a client that sends exact bytes.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests say what must hold by panicking, their helpers too"
)]

pub(crate) mod engine;

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use vecmill_engine::Engine;
use vecmill_server::{Loading, ServeError, Server, Settings, Stopped};

/// How long a test waits for what must happen. Generous: it is for what would never come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A request that any server answers.
pub(crate) const ASK: &str = r#"{"input":"a","model":"m"}"#;

/// The default settings, but for `change`.
pub(crate) fn with(change: impl FnOnce(&mut Settings)) -> Settings {
    let mut settings = Settings::default();
    change(&mut settings);
    settings
}

/// Asks again until the answer is as wanted.
#[track_caller]
pub(crate) fn until<T>(mut ask: impl FnMut() -> T, wanted: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask();
        if wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "it never happened");
    }
}

/// A metric without labels, or by those that come first, of these.
#[track_caller]
pub(crate) fn value(metrics: &str, name: &str) -> usize {
    let value = metrics.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with([' ', ',']).then(|| rest.rsplit(' ').next())?
    });
    value.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
}

/// A metric without labels.
#[track_caller]
pub(crate) fn metric(server: &TestServer, name: &str) -> usize {
    value(server.get("/metrics").text(), name)
}

/// Whether the server closes the connection, within the time that a client reads.
pub(crate) fn is_closed(mut stream: &TcpStream) -> bool {
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// A running server; dropping it ends everything it started.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    runtime: tokio::runtime::Runtime,
    stop: Option<oneshot::Sender<()>>,
    stop_now: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<Result<Stopped, ServeError>>>,
}

impl TestServer {
    /// A server whose model is not loaded yet.
    pub(crate) fn loading(settings: Settings) -> (Self, Loading) {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
        let (server, loading) = Server::bind("127.0.0.1:0", settings).unwrap();
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel::<()>();
        let (stop_now, stopped_now) = oneshot::channel::<()>();
        let shutdown = async { drop(stopped.await) };
        let running = runtime.spawn(server.run(shutdown, async { drop(stopped_now.await) }));
        let (stop, stop_now, running) = (Some(stop), Some(stop_now), Some(running));
        (Self { address, runtime, stop, stop_now, running }, loading)
    }

    /// A server with the engine that the tests of a program share.
    pub(crate) fn start(settings: Settings) -> Self {
        let (server, loading) = Self::loading(settings);
        loading.ready(engine::shared());
        server
    }

    /// A server with an engine of its own.
    pub(crate) fn with_engine(settings: Settings) -> (Self, Engine) {
        let engine = engine::start(&engine::tiny("bert-mean"));
        let (server, loading) = Self::loading(settings);
        loading.ready(engine.clone());
        (server, engine)
    }

    /// Tells the server to stop, without waiting for it.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Tells a server that is stopping to wait no longer.
    pub(crate) fn stop_now(&mut self) {
        drop(self.stop_now.take());
    }

    /// Waits for a stopped server to return.
    pub(crate) fn join(&mut self) -> Stopped {
        let running = self.running.take().expect("joined once");
        let ended = async { tokio::time::timeout(PATIENCE, running).await };
        self.runtime.block_on(ended).expect("still running").unwrap().unwrap()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends exactly these bytes and reads until the server closes the connection.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        Answer::read(stream)
    }

    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: &[u8],
    ) -> Answer {
        self.raw(&message(method, path, headers, body))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Answer {
        self.request("POST", path, &["content-type: application/json"], body.as_ref())
    }

    /// Sends a request and leaves its connection open.
    pub(crate) fn send(&self, path: &str, body: &str) -> TcpStream {
        let mut stream = self.connect();
        let bytes = message("POST", path, &["content-type: application/json"], body.as_bytes());
        stream.write_all(&bytes).unwrap();
        stream
    }
}

/// A request that ends its connection.
pub(crate) fn message(method: &str, path: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    for header in headers {
        write!(head, "{header}\r\n").unwrap();
    }
    write!(head, "content-length: {}\r\n\r\n", body.len()).unwrap();
    [head.as_bytes(), body].concat()
}

/// A request that leaves its connection open.
pub(crate) fn kept(method: &str, path: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let bytes = message(method, path, headers, body);
    let text = "connection: close\r\n";
    let at = bytes.windows(text.len()).position(|here| here == text.as_bytes()).unwrap();
    [&bytes[..at], &bytes[at + text.len()..]].concat()
}

/// What a server replied.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Reads to the end of the connection.
    pub(crate) fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a whole head");
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let header = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_lowercase(), value.trim().to_owned())
        };
        let headers: Vec<_> = lines.map(header).collect();
        let body = &bytes[end + 4..];
        let chunked = headers.iter().any(|(name, _)| name == "transfer-encoding");
        let body = if chunked { joined(body) } else { body.to_vec() };
        Self { status, headers, body }
    }

    /// Reads one reply of several on a connection, by its length.
    #[track_caller]
    pub(crate) fn read_one(stream: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("the connection ended before a reply");
            bytes.push(byte[0]);
        }
        let mut answer = Self::parse(&bytes);
        let length = answer.header("content-length").unwrap_or("0").parse().unwrap();
        answer.body = vec![0; length];
        stream.read_exact(&mut answer.body).unwrap();
        answer
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Asserts OpenAI's error form, status and code; returns the error.
    #[track_caller]
    pub(crate) fn openai_error(&self, status: u16, code: Option<&str>) -> Value {
        let error = self.json()["error"].clone();
        assert_eq!((self.status, error["code"].as_str()), (status, code), "{error}");
        let mut keys: Vec<_> = error.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        assert_eq!(keys, ["code", "message", "param", "type"]);
        error
    }

    /// Asserts TEI's error form, status and type; returns the message.
    #[track_caller]
    pub(crate) fn tei_error(&self, status: u16, error_type: &str) -> String {
        let body = self.json();
        assert_eq!(
            (self.status, body["error_type"].as_str()),
            (status, Some(error_type)),
            "{body}"
        );
        assert_eq!(body.as_object().unwrap().len(), 2, "{body}");
        body["error"].as_str().unwrap().to_owned()
    }
}

/// A body that was sent in chunks.
fn joined(mut chunks: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = chunks.windows(2).position(|two| two == b"\r\n").expect("a chunk's size");
        let size = std::str::from_utf8(&chunks[..line]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&chunks[line + 2..line + 2 + size]);
        chunks = &chunks[line + 2 + size + 2..];
    }
}

/// A JSON array as numbers.
pub(crate) fn floats(array: &Value) -> Vec<f32> {
    serde_json::from_value(array.clone()).unwrap()
}
