//! A real server on a free port, a stand-in for the engine, and a client that sends exact bytes.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests say what must hold by panicking, their helpers too"
)]

pub(crate) mod engine;

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use vecmill_engine::{
    Coefficients, DeviceSpec, DeviceState, DeviceStatistics, DeviceSummary, Embedding, Engine,
    Info, Input, MemoryStatistics, Prompt, Recording, Reply, Request, RequestError, Throttling,
    Timings, TokenizeRequest, Tokenizer, Truncation,
};
use vecmill_memory::{HostSource, Pool};
use vecmill_scheduler::{DeviceSettings, Scheduler, Speed, policy};
use vecmill_server::{Embedder, ModelSlot, ServeError, Server, Settings, Stopped};

pub(crate) const DIMENSIONS: usize = 4;
/// Of the vector for `wide`.
pub(crate) const WIDE: usize = 100_000;
pub(crate) const MAX_TOKENS: usize = 8;
/// Of each device's memory.
pub(crate) const BUDGET: usize = 1 << 30;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Turns texts into vectors that depend on nothing but the text. Some texts are commands: `busy`,
/// `stopped`, `broken`, `panic`, and `wait`, which waits for [`Fake::release`].
#[derive(Clone)]
pub(crate) struct Fake {
    gate: Arc<Semaphore>,
    /// Requests that wait, as seen from outside.
    waiting: watch::Sender<usize>,
    pub(crate) finished: Arc<AtomicUsize>,
    info: Arc<Info>,
    /// A real one: places and texts of tokens are not for pretending.
    tokenizer: Arc<Tokenizer>,
    /// The memory of each device, in the order of `info`.
    pub(crate) pools: Vec<Pool<HostSource>>,
    drained: Arc<Mutex<BTreeSet<String>>>,
}

/// Counts a request as waiting while it is held, also when its future is dropped.
struct Waiting(watch::Sender<usize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

impl Fake {
    pub(crate) fn new() -> Self {
        let device = |name: &str| DeviceSummary {
            name: name.into(),
            description: "pretended".into(),
            dtype: "float32".into(),
        };
        let info = Info {
            model_id: "test/fake".into(),
            revision: Some("main".into()),
            architecture: "bert".into(),
            dtype: "float32".into(),
            pooling: "mean".into(),
            normalized: true,
            dimensions: DIMENSIONS,
            max_input_tokens: MAX_TOKENS,
            max_batch_tokens: 1024,
            queue_capacity: 64,
            tokenization_workers: 2,
            prompts: [("query".to_owned(), "query: ".to_owned())].into(),
            devices: vec![device("cuda:0"), device("cpu"), device("cuda:1")],
            ..Info::default()
        };
        Self {
            gate: Arc::new(Semaphore::new(0)),
            waiting: watch::Sender::new(0),
            finished: Arc::default(),
            drained: Arc::default(),
            tokenizer: Arc::new(Tokenizer::of_model(&tiny_model("bert-mean")).unwrap()),
            pools: info.devices.iter().map(|_| Pool::new(HostSource, BUDGET)).collect(),
            info: Arc::new(info),
        }
    }

    /// What `ask` says of each device's memory, by the device's name.
    fn of_pools<T>(&self, ask: impl Fn(&Pool<HostSource>) -> T) -> Vec<(String, T)> {
        let names = self.info.devices.iter().map(|device| device.name.clone());
        names.zip(self.pools.iter().map(ask)).collect()
    }

    /// Lets `count` waiting requests go on.
    pub(crate) fn release(&self, count: usize) {
        self.gate.add_permits(count);
    }

    /// Returns when exactly `count` requests wait.
    pub(crate) fn until_waiting(&self, server: &TestServer, count: usize) {
        let mut waiting = self.waiting.subscribe();
        let reached = async move { waiting.wait_for(|now| *now == count).await.map(|_| ()) };
        let reached = async { tokio::time::timeout(PATIENCE, reached).await };
        server.runtime.block_on(reached).expect("never so many waiting").unwrap();
    }

    /// Words, and one token each at the start and the end.
    fn count(input: &Input) -> usize {
        match input {
            Input::Text(text) => text.split_whitespace().count() + 2,
            Input::Tokens(tokens) => tokens.len(),
        }
    }

    fn embed_one(
        &self,
        index: usize,
        input: &Input,
        request: &Request,
    ) -> Result<Embedding, RequestError> {
        let tokens = Self::count(input);
        if matches!(input, Input::Text(text) if text.is_empty()) || tokens == 0 {
            return Err(RequestError::EmptyInput { index });
        }
        if tokens > MAX_TOKENS && request.truncation == Truncation::Refuse {
            return Err(RequestError::TooManyTokens { index, tokens, limit: MAX_TOKENS });
        }
        let seed = match input {
            Input::Text(text) => text.bytes().map(f32::from).sum::<f32>(),
            Input::Tokens(tokens) => tokens.len() as f32,
        };
        let wide = matches!(input, Input::Text(text) if text == "wide");
        let keep = request.dimensions.unwrap_or(if wide { WIDE } else { DIMENSIONS });
        let vector = (0..keep).map(|n| seed / (n as f32 + 3.0)).collect();
        let truncated = tokens > MAX_TOKENS;
        Ok(Embedding { vector, tokens: tokens.min(MAX_TOKENS), truncated })
    }

    fn reply(&self, request: &Request) -> Result<Reply, RequestError> {
        if request.inputs.is_empty() {
            return Err(RequestError::NoInputs);
        }
        if let Some(asked) = request.dimensions.filter(|asked| !(1..=DIMENSIONS).contains(asked)) {
            return Err(RequestError::Dimensions { asked, available: DIMENSIONS });
        }
        if let Prompt::Named(name) = &request.prompt
            && !self.info.prompts.contains_key(name)
        {
            let known = self.info.prompts.keys().cloned().collect();
            return Err(RequestError::UnknownPrompt { name: name.clone(), known });
        }
        let inputs = request.inputs.iter().enumerate();
        let embeddings = inputs.map(|(index, input)| self.embed_one(index, input, request));
        let timings = Timings {
            tokenization: Duration::from_millis(1),
            queue: Duration::from_millis(2),
            inference: Duration::from_millis(3),
            total: Duration::from_millis(6),
        };
        Ok(Reply { embeddings: embeddings.collect::<Result<_, _>>()?, timings })
    }

    async fn run(self, request: Request) -> Result<Reply, RequestError> {
        if let Some(Input::Text(text)) = request.inputs.first() {
            match text.as_str() {
                "busy" => {
                    let retry_after = Duration::from_millis(2100);
                    return Err(RequestError::Busy { waiting: 64, retry_after });
                }
                "stopped" => return Err(RequestError::Stopped),
                "broken" => {
                    let reason = "pretended".to_owned();
                    return Err(RequestError::Device { device: "cpu".into(), reason });
                }
                "panic" => panic!("told to panic"),
                "wait" => {
                    self.waiting.send_modify(|waiting| *waiting += 1);
                    let _waiting = Waiting(self.waiting.clone());
                    self.gate.acquire().await.unwrap().forget();
                }
                _ => {}
            }
        }
        self.finished.fetch_add(1, Ordering::SeqCst);
        self.reply(&request)
    }
}

impl Embedder for Fake {
    fn embed(&self, request: Request) -> vecmill_server::ReplyFuture {
        Box::pin(self.clone().run(request))
    }

    fn tokenize(&self, request: TokenizeRequest) -> vecmill_server::TokenizedFuture {
        let fake = self.clone();
        Box::pin(async move {
            let prompt = match &request.prompt {
                Prompt::Named(name) => fake.info.prompts.get(name).ok_or_else(|| {
                    RequestError::UnknownPrompt { name: name.clone(), known: Vec::new() }
                })?,
                _ => "",
            };
            match request.texts.first().map(String::as_str) {
                Some("panic") => panic!("told to panic"),
                Some("long") => return Err(RequestError::TooMuchToTokenize { limit: 7 }),
                Some("busy") => return Err(RequestError::TokenizersBusy { places: 2 }),
                _ => {}
            }
            fake.tokenizer.list(request, prompt)
        })
    }

    fn info(&self) -> &Info {
        &self.info
    }

    fn readiness(&self) -> Result<(), RequestError> {
        Ok(())
    }

    fn write_metrics(&self, out: &mut String) -> fmt::Result {
        out.write_str("# HELP vecmill_fake Pretended.\n# TYPE vecmill_fake gauge\nvecmill_fake 1\n")
    }

    fn memory(&self) -> Vec<(String, MemoryStatistics)> {
        self.of_pools(Pool::statistics)
    }

    fn trim_memory(&self) -> Vec<(String, usize)> {
        self.of_pools(Pool::trim)
    }

    fn memory_trace(&self) -> Vec<(String, Recording)> {
        self.of_pools(Pool::recording)
    }

    fn scheduling(&self) -> Vec<(String, DeviceStatistics)> {
        let drained = self.drained.lock().unwrap();
        let standing = |device: &DeviceSummary| {
            let speed = Speed::kept(Coefficients { fixed: 0.5, per_token: 0.25, per_square: 0.0 });
            let settings = DeviceSettings { batch_tokens: 64, in_flight: 1, speed };
            let policy = policy::by_name("earliest-finish").unwrap();
            let mut scheduler = Scheduler::<()>::new(Default::default(), policy, [settings]);
            if drained.contains(&device.name) {
                scheduler.drain(Duration::ZERO, 0);
            }
            (device.name.clone(), scheduler.statistics(Duration::ZERO)[0])
        };
        self.info.devices.iter().map(standing).collect()
    }

    fn device_states(&self) -> Vec<(String, DeviceState)> {
        let throttling = Some(Throttling { power_cap: true, ..Throttling::default() });
        let state = DeviceState { throttling, power_watts: Some(700.5), ..DeviceState::default() };
        vec![("cuda:1".to_owned(), state)]
    }

    fn drain(&self, device: &str) -> bool {
        self.drained.lock().unwrap().insert(device.to_owned())
    }

    fn restore(&self, device: &str) -> bool {
        self.drained.lock().unwrap().remove(device)
    }
}

/// The folder of a tiny model with its tokenizer.
pub(crate) fn tiny_model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(name)
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
    pub(crate) fn loading(settings: Settings) -> (Self, ModelSlot) {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
        let (server, slot) = Server::bind("127.0.0.1:0", settings).unwrap();
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel::<()>();
        let (stop_now, stopped_now) = oneshot::channel::<()>();
        let shutdown = async { drop(stopped.await) };
        let running = runtime.spawn(server.run(shutdown, async { drop(stopped_now.await) }));
        let (stop, stop_now, running) = (Some(stop), Some(stop_now), Some(running));
        (Self { address, runtime, stop, stop_now, running }, slot)
    }

    /// A server with a real engine and a tiny model.
    pub(crate) fn with_engine(settings: Settings) -> (Self, Engine) {
        let (server, slot) = Self::loading(settings);
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/models/bert-mean");
        let builder = Engine::builder().model(model.parse().unwrap()).cpu_threads(1);
        let engine = builder.devices(vec![DeviceSpec::Cpu]).start().unwrap();
        slot.ready(engine.clone());
        (server, engine)
    }

    /// A server with a fake model.
    pub(crate) fn start(settings: Settings) -> (Self, Fake) {
        let (server, slot) = Self::loading(settings);
        let fake = Fake::new();
        slot.ready(fake.clone());
        (server, fake)
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
