//! A hub on this machine's loopback interface, for as much of its protocol as downloads use.
//!
//! Large files are redirected to a content network, as the real hub does, with their hash and size in
//! the redirect. A test may answer any request differently.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The commit of every model.
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The token that requests should come with.
pub(super) const SECRET: &str = "hf_verysecret";

pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) path: String,
    /// The byte from which on a file was asked for.
    pub(super) from: usize,
    pub(super) has_token: bool,
    /// How often the same path had been asked for before.
    pub(super) before: usize,
}

impl Ask {
    /// Whether the request is for this file's contents, wherever they come from.
    pub(super) fn is_for(&self, file: &str) -> bool {
        self.path.ends_with(&format!("/{file}"))
    }

    pub(super) fn is_list(&self) -> bool {
        self.path.contains("/revision/")
    }
}

/// Something else than a good hub's answer.
#[derive(Debug, Clone)]
pub(super) enum Act {
    /// Status, header lines that end in `\r\n`, body.
    Answer(u16, String, Vec<u8>),
    /// The good answer, of which only so many parts in a hundred are sent before the connection ends.
    Cut(usize),
    /// The same, but the connection stays open and silent.
    Hang(usize),
    /// The good answer with one byte altered, length and hash as they were.
    Garble,
    /// Every byte of the good answer on its own, with pauses.
    Drip,
}

impl Act {
    pub(super) fn answer(status: u16, headers: &str, body: &str) -> Option<Self> {
        Some(Self::Answer(status, headers.to_owned(), body.as_bytes().to_vec()))
    }
}

type Otherwise = dyn Fn(&Ask) -> Option<Act> + Send + Sync;

/// A hub on this machine's loopback interface.
pub(super) struct FakeHub {
    pub(super) endpoint: String,
    pub(super) requests: Arc<Mutex<Vec<Ask>>>,
}

struct Shared {
    files: Files,
    otherwise: Box<Otherwise>,
    requests: Arc<Mutex<Vec<Ask>>>,
}

impl FakeHub {
    pub(super) fn start(files: Files) -> Self {
        Self::otherwise(files, |_| None)
    }

    /// A hub that answers as `otherwise` says, and well where it says nothing.
    pub(super) fn otherwise(
        files: Files,
        otherwise: impl Fn(&Ask) -> Option<Act> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let otherwise = Box::new(otherwise);
        let shared = Arc::new(Shared { files, otherwise, requests: Arc::clone(&requests) });
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { endpoint, requests }
    }

    /// How often a file's contents were asked for.
    pub(super) fn downloads(&self, file: &str) -> usize {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|ask| ask.path.contains("/resolve/") && ask.is_for(file)).count()
    }
}

/// Answers one request; whoever asked may be gone by then.
fn serve(mut stream: TcpStream, shared: &Shared) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let path = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned();
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        let mut lines = headers.iter().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let has_token = header("authorization") == Some(format!("Bearer {SECRET}"));
    let range = header("range");
    let from = range.as_deref().and_then(|range| range.strip_prefix("bytes="));
    let from = from.and_then(|range| range.trim_end_matches('-').parse().ok()).unwrap_or(0);
    let ask = {
        let mut requests = shared.requests.lock().unwrap();
        let before = requests.iter().filter(|ask| ask.path == path).count();
        let ask = Ask { path, from, has_token, before };
        requests.push(ask.clone());
        ask
    };
    let good = good(&ask, &shared.files);
    match (shared.otherwise)(&ask) {
        None => drop(stream.write_all(&good)),
        Some(Act::Answer(status, lines, body)) => {
            drop(stream.write_all(&message(status, &lines, &body)));
        }
        Some(Act::Cut(parts)) => drop(stream.write_all(&good[..good.len() * parts / 100])),
        Some(Act::Hang(parts)) => {
            drop(stream.write_all(&good[..good.len() * parts / 100]));
            thread::park_timeout(Duration::from_secs(20));
        }
        Some(Act::Garble) => {
            let mut good = good;
            *good.last_mut().unwrap() ^= 1;
            drop(stream.write_all(&good));
        }
        Some(Act::Drip) => {
            let head = good.windows(4).position(|part| part == b"\r\n\r\n").unwrap() + 4;
            drop(stream.write_all(&good[..head]));
            for byte in &good[head..] {
                if stream.write_all(&[*byte]).is_err() {
                    return;
                }
                thread::park_timeout(Duration::from_millis(100));
            }
        }
    }
}

/// What a good hub answers.
fn good(ask: &Ask, files: &Files) -> Vec<u8> {
    let path = ask.path.as_str();
    if path.contains("/revision/") {
        let siblings: Vec<_> = files.keys().map(|name| json!({"rfilename": name})).collect();
        let body = json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return message(200, "content-type: application/json\r\n", body.as_bytes());
    }
    if path.contains("/tree/") {
        let body =
            json!(files.iter().map(|(name, contents)| tree(name, contents)).collect::<Vec<_>>());
        return message(200, "content-type: application/json\r\n", body.to_string().as_bytes());
    }
    let of_network = path.strip_prefix("/network/");
    let asked = of_network.or_else(|| Some(path.split_once(&format!("/resolve/{COMMIT}/"))?.1));
    let Some((name, contents)) = asked.and_then(|name| files.get_key_value(name)) else {
        return message(404, "x-error-code: EntryNotFound\r\n", b"{}");
    };
    let commit = format!("x-repo-commit: {COMMIT}\r\n");
    if of_network.is_none() && is_large(name) {
        let (size, hash) = (contents.len(), hex(&Sha256::digest(contents)));
        let lines = format!(
            "{commit}x-linked-etag: \"{hash}\"\r\nx-linked-size: {size}\r\n\
             location: /network/{name}\r\n"
        );
        return message(302, &lines, b"");
    }
    let size = contents.len();
    if ask.from > 0 && ask.from >= size {
        return message(416, &format!("content-range: bytes */{size}\r\n"), b"");
    }
    let range = format!("content-range: bytes {}-{}/{size}\r\n", ask.from, size.max(1) - 1);
    let etag = match of_network {
        Some(_) => "\"of-the-network\"".to_owned(),
        None => format!("\"{}\"", git(contents)),
    };
    let (status, range) = if ask.from > 0 { (206, range.as_str()) } else { (200, "") };
    message(status, &format!("{commit}etag: {etag}\r\n{range}"), &contents[ask.from..])
}

fn tree(name: &str, contents: &[u8]) -> serde_json::Value {
    let (oid, size) = (git(contents), contents.len());
    let mut file = json!({"type": "file", "path": name, "oid": oid, "size": size});
    if is_large(name) {
        file["lfs"] = json!({"oid": hex(&Sha256::digest(contents)), "size": size});
    }
    file
}

fn is_large(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|ending| ending == "safetensors")
}

fn git(contents: &[u8]) -> String {
    let head = format!("blob {}\0", contents.len());
    hex(&Sha1::new().chain_update(head).chain_update(contents).finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn message(status: u16, lines: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} -\r\n{lines}content-length: {length}\r\nconnection: close\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}
