//! A hub on this machine's loopback interface, for as much of its protocol as downloads use.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// The commit of every model.
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The token that requests should come with.
pub(super) const SECRET: &str = "hf_verysecret";

/// How the hub of a test answers.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Mood {
    Well,
    /// Refuses with this status, header line and body.
    Status(u16, &'static str, &'static str),
    /// Sends half of the weights and then nothing.
    Stalls,
}

/// A hub on this machine's loopback interface.
pub(super) struct FakeHub {
    pub(super) endpoint: String,
    /// The paths asked for, and whether the token came along.
    pub(super) requests: Arc<Mutex<Vec<(String, bool)>>>,
}

impl FakeHub {
    pub(super) fn start(mood: Mood, files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, files) = (Arc::clone(&requests), Arc::new(files));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, files) = (Arc::clone(&seen), Arc::clone(&files));
                thread::spawn(move || answer(stream, mood, &files, &seen));
            }
        });
        Self { endpoint, requests }
    }

    pub(super) fn downloads(&self, file: &str) -> usize {
        let requests = self.requests.lock().unwrap();
        // One request finds the file's size, the next has its contents.
        requests.iter().filter(|(path, _)| path.ends_with(&format!("/{file}"))).count() / 2
    }
}

fn answer(
    mut stream: TcpStream,
    mood: Mood,
    files: &BTreeMap<String, Vec<u8>>,
    seen: &Mutex<Vec<(String, bool)>>,
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let path = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned();
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        let mut lines = headers.iter().map(|line| line.split_once(": ").unwrap());
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let has_token = header("authorization") == Some(format!("Bearer {SECRET}"));
    seen.lock().unwrap().push((path.clone(), has_token));
    if let Mood::Status(status, line, body) = mood {
        let length = body.len();
        let head = format!("HTTP/1.1 {status} No\r\n{line}content-length: {length}\r\n\r\n{body}");
        return stream.write_all(head.as_bytes()).unwrap();
    }
    let Some((_, file)) = path.split_once(&format!("/resolve/{COMMIT}/")) else {
        let siblings: Vec<_> =
            files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        let length = body.len();
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
        return stream.write_all((head + &body).as_bytes()).unwrap();
    };
    let (contents, range) = (&files[file], header("range").unwrap());
    let (start, end) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (start, size) = (start.parse::<usize>().unwrap(), contents.len());
    let end = end.parse().map_or(size, |last: usize| last + 1);
    let head = format!(
        "HTTP/1.1 206 Partial\r\ncontent-length: {}\r\ncontent-range: bytes {start}-{}/{size}\r\n\
         etag: \"{}\"\r\nx-repo-commit: {COMMIT}\r\nconnection: close\r\n\r\n",
        end - start,
        end - 1,
        file.replace('/', "-"),
    );
    let stalls = mood == Mood::Stalls && end - start > 1 && file.ends_with(".safetensors");
    let sent = if stalls { (start + end) / 2 } else { end };
    stream.write_all(&[head.as_bytes(), &contents[start..sent]].concat()).unwrap();
    if stalls {
        thread::park_timeout(Duration::from_secs(20));
    }
}
