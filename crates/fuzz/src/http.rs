//! Requests: bodies over a socket to a server with a small model.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use vecmill_engine::Engine;
use vecmill_engine::ModelRef;
use vecmill_server::{Server, Settings};

use crate::folder::models;

/// Where bodies go, by the first byte of an input.
const ROUTES: [&str; 6] = ["/v1/embeddings", "/embed", "/tokenize", "/api/embed", "/decode", "/"];

/// How long any answer may take. Generous: it is for what would never come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that lives as long as the process, and a connection to it.
struct Client {
    address: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
}

impl Client {
    fn new() -> Self {
        let settings = Settings::default();
        let (server, loading) = Server::bind("127.0.0.1:0", settings).unwrap();
        let address = server.local_addr();
        let model = ModelRef::Folder(models().join("bert-mean"));
        let engine = Engine::builder().model(model).devices(vec!["cpu".parse().unwrap()]);
        loading.ready(engine.cpu_threads(1).start().unwrap());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let (stop, cut_off) = (std::future::pending(), std::future::pending());
            let _ = runtime.block_on(server.run(stop, cut_off)).unwrap();
        });
        Self { address, stream: None }
    }

    /// The status and body of what is answered.
    fn ask(&mut self, route: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = self.stream.take().unwrap_or_else(|| {
            let stream = TcpStream::connect(self.address).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            BufReader::new(stream)
        });
        let length = body.len();
        let head = format!(
            "POST {route} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n"
        );
        stream.get_mut().write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status: {line:?}"));
        let (mut length, mut chunked, mut close) = (0, false, false);
        loop {
            line.clear();
            stream.read_line(&mut line).unwrap();
            let header = line.trim_end().to_ascii_lowercase();
            match header.split_once(": ") {
                Some(("content-length", value)) => length = value.parse().unwrap(),
                Some(("transfer-encoding", value)) => chunked = value == "chunked",
                Some(("connection", value)) => close = value == "close",
                Some(_) => {}
                None => break,
            }
        }
        let mut answer = Vec::new();
        if chunked {
            read_chunks(&mut stream, &mut answer);
        } else {
            answer.resize(length, 0);
            stream.read_exact(&mut answer).unwrap();
        }
        if !close {
            self.stream = Some(stream);
        }
        (status, answer)
    }
}

fn read_chunks(stream: &mut BufReader<TcpStream>, into: &mut Vec<u8>) {
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let size = usize::from_str_radix(line.trim(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        stream.read_exact(&mut chunk).unwrap();
        if size == 0 {
            return;
        }
        into.extend_from_slice(&chunk[..size]);
    }
}

/// A body: the first byte chooses the route.
pub fn requests(data: &[u8]) {
    static CLIENT: OnceLock<Mutex<Client>> = OnceLock::new();
    let Some((&first, body)) = data.split_first() else { return };
    let route = ROUTES.get(usize::from(first) % ROUTES.len()).unwrap();
    let client = CLIENT.get_or_init(|| Mutex::new(Client::new()));
    let mut client = client.lock().unwrap_or_else(PoisonError::into_inner);
    let (status, answer) = client.ask(route, body);
    // Whatever a body says, it is the sender's matter or is answered.
    assert!(status == 200 || (400..500).contains(&status), "{route}: {status}");
    let json: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    if status != 200 {
        assert!(answer.len() <= crate::MESSAGE_LIMIT, "{route}: {} bytes", answer.len());
        assert!(json.get("error").is_some(), "{route}: {json}");
    }
}
