//! What a real engine's requests hold and when, how refusals leave their connections, and stops.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests say what must hold by panicking, their helpers too"
)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use support::engine::{Gate, until_waiting};
use support::{ASK, Answer, PATIENCE, TestServer, is_closed, kept, metric, until, with};
use vecmill_server::Settings;

fn held(server: &TestServer) -> usize {
    metric(server, "vecmill_http_request_memory_bytes")
}

/// A request for as many short texts' vectors as may be asked for at once.
fn many() -> String {
    let texts = vec!["\"a\""; 2048].join(",");
    format!(r#"{{"model":"m","input":[{texts}]}}"#)
}

/// A client that keeps its connection, as `http.client` of Python and many others: it sends a
/// request whole, reads the reply, and asks again on the same connection unless it was told not to.
struct Client<'a> {
    server: &'a TestServer,
    stream: Option<TcpStream>,
    connections: usize,
}

impl<'a> Client<'a> {
    fn new(server: &'a TestServer) -> Self {
        Self { server, stream: None, connections: 0 }
    }

    fn ask(&mut self, request: &[u8]) -> Answer {
        let mut stream = self.stream.take().unwrap_or_else(|| {
            self.connections += 1;
            self.server.connect()
        });
        stream.write_all(request).expect("the connection was closed without a word");
        let answer = Answer::read_one(&mut stream);
        if answer.header("connection") != Some("close") {
            self.stream = Some(stream);
        }
        answer
    }
}

#[test]
fn a_body_that_does_not_come_takes_no_place_and_only_what_has_come() {
    let server = TestServer::start(with(|settings| {
        settings.max_concurrent_requests = 2;
    }));
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: t\r\ncontent-length: 1900000\r\n\r\n{";
    let half: Vec<_> = (0..40)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    let in_flight = "vecmill_http_requests_in_flight";
    until(|| metric(&server, in_flight), |&now| now == half.len() + 1);
    assert!(held(&server) < 40 * 1024, "{}", held(&server));
    assert_eq!(server.post("/v1/embeddings", ASK).status, 200);
    drop(half);
    until(|| held(&server), |&bytes| bytes == 0);
}

#[test]
fn a_reply_counts_until_its_reader_has_it() {
    let server = TestServer::start(with(|settings| {
        settings.max_concurrent_requests = 1;
    }));
    let body = many();
    let request = kept("POST", "/v1/embeddings", &[], body.as_bytes());
    // Replies that nobody reads fill the buffers on the way, and then wait.
    let mut stream = server.connect();
    for _ in 0..24 {
        stream.write_all(&request).unwrap();
    }
    // Work on one holds more than its reply, and a reply that leaves holds nothing.
    let waits = || (500_000..1_500_000).contains(&held(&server));
    until(|| (0..50).all(|_| waits()), |&waits| waits);
    server.post("/v1/embeddings", ASK).openai_error(429, Some("rate_limit_exceeded"));
    let reply = held(&server);
    assert!(metric(&server, "vecmill_http_request_memory_peak_bytes") > reply);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..24 {
        assert_eq!(Answer::read_one(&mut stream).status, 200);
    }
    // The place is free a moment after the last byte is read.
    until(|| server.post("/v1/embeddings", ASK).status, |&status| status == 200);
    until(|| held(&server), |&bytes| bytes == 0);
}

#[test]
fn what_never_fits_is_refused_with_the_limit() {
    let server = TestServer::start(with(|settings| {
        settings.max_request_memory = 4 << 20;
    }));
    let refused = server.post("/v1/embeddings", many());
    let error = refused.openai_error(413, Some("payload_too_large"));
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("--max-request-memory"), "{message}");
    let long = format!(r#"{{"inputs":"{}"}}"#, "a ".repeat(500_000));
    server.post("/tokenize", &long).tei_error(413, "Validation");
    assert_eq!(server.post("/v1/embeddings", ASK).status, 200);
    until(|| held(&server), |&bytes| bytes == 0);
}

#[test]
fn bodies_that_come_share_what_there_is() {
    let server = TestServer::start(with(|settings| {
        settings.max_request_memory = 12 << 20;
    }));
    // Four bodies that are nearly there take most of it; a fifth finds none, and small ones do.
    let whole = format!(r#"{{"model":"m","input":"{}"}}"#, "a".repeat(1_300_000));
    let bytes = kept("POST", "/v1/embeddings", &[], whole.as_bytes());
    let start = || {
        let mut stream = server.connect();
        stream.write_all(&bytes[..bytes.len() - 1]).unwrap();
        stream
    };
    let mut bodies: Vec<_> = (0..4).map(|_| start()).collect();
    until(|| held(&server), |&bytes| bytes >= 4 * 1_300_000);
    let fifth = Answer::read_one(&mut start());
    assert_eq!((fifth.status, fifth.header("retry-after")), (429, Some("1")));
    assert_eq!(server.post("/v1/embeddings", ASK).status, 200);
    for path in ["/health", "/ready", "/metrics", "/info"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    // Work takes more than a body: what is there no room for is refused, and the place is free again.
    let mut statuses: Vec<_> = bodies
        .iter_mut()
        .map(|stream| {
            stream.write_all(&bytes[bytes.len() - 1..]).unwrap();
            Answer::read_one(stream).status
        })
        .collect();
    statuses.dedup();
    assert!(statuses == [429, 413] || statuses == [429] || statuses == [413], "{statuses:?}");
    drop(bodies);
    until(|| held(&server), |&bytes| bytes == 0);
    assert_eq!(server.post("/v1/embeddings", ASK).status, 200);
}

#[test]
fn no_request_is_lost_after_a_refusal() {
    let key = "k".parse().unwrap();
    let server = TestServer::start(with(|settings| {
        settings.api_keys = vec![key];
        settings.payload_limit = 200_000;
    }));
    let mut client = Client::new(&server);
    let good = ["authorization: Bearer k", "content-type: application/json"];
    let text = ["authorization: Bearer k", "content-type: text/plain"];
    let mut refusals = Vec::new();
    for bytes in [0, 30, 20_000, 150_000] {
        let body = vec![b' '; bytes];
        refusals.extend([
            (401, kept("POST", "/v1/embeddings", &[], &body)),
            (404, kept("POST", "/v1/nowhere", &good, &body)),
            (405, kept("POST", "/health", &good, &body)),
            (405, kept("PUT", "/v1/embeddings", &good, &body)),
            (415, kept("POST", "/embed", &text, &body)),
            (400, kept("POST", "/embed", &good, &body)),
        ]);
    }
    let ask = kept("POST", "/v1/embeddings", &good, ASK.as_bytes());
    let mut answered = 0;
    for (status, refused) in refusals.iter().cycle().take(100) {
        assert_eq!(client.ask(refused).status, *status);
        assert_eq!(client.ask(&ask).status, 200);
        answered += 2;
    }
    assert_eq!((answered, client.connections), (200, 1));
    // Too large to be read for nothing: the client is told that the connection ends.
    for bytes in [200_001, 1_000_000] {
        let refused = client.ask(&kept("POST", "/embed", &good, &vec![b' '; bytes]));
        assert_eq!(refused.status, 413);
        assert_eq!(client.ask(&ask).status, 200);
    }
}

#[test]
fn a_refusal_does_not_send_back_what_was_sent() {
    let server = TestServer::start(Settings::default());
    let long = "é".repeat(700_000);
    let twice = format!(r#"{{"{long}":1,"{long}":2}}"#);
    for (path, body) in [
        ("/embed".to_owned(), format!(r#"{{"inputs":"a","prompt_name":"{long}"}}"#)),
        ("/embed".to_owned(), twice.clone()),
        ("/v1/embeddings".to_owned(), twice),
        ("/v1/embeddings".to_owned(), format!(r#"{{"input":"a","encoding_format":"{long}"}}"#)),
        (format!("/{}", "y".repeat(10_000)), String::new()),
    ] {
        let answer = server.post(&path, body);
        assert!((400..500).contains(&answer.status), "{}", answer.status);
        assert!(answer.body.len() < 4000, "{}", answer.body.len());
    }
}

#[test]
fn requests_sent_at_once_are_all_answered() {
    let server = TestServer::start(Settings::default());
    let mut stream = server.connect();
    let refused = kept("POST", "/v1/nowhere", &[], &[b'x'; 10_000]);
    let chunked = b"POST /health HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n\
                    5\r\nhello\r\n0\r\n\r\n";
    let good = kept("POST", "/v1/embeddings", &[], ASK.as_bytes());
    stream.write_all(&[&refused, &chunked[..], &good, &refused, &good].concat()).unwrap();
    for status in [404, 405, 200, 404, 200] {
        assert_eq!(Answer::read_one(&mut stream).status, status);
    }
}

#[test]
fn a_client_that_is_refused_before_it_sends_may_send_or_not() {
    let key = "k".parse().unwrap();
    let server = TestServer::start(with(|settings| settings.api_keys = vec![key]));
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\n\
                content-length: 1000\r\n\r\n";
    for body in [&[][..], &[b' '; 1000]] {
        let mut stream = server.connect();
        stream.write_all(head.as_bytes()).unwrap();
        let answer = Answer::read_one(&mut stream);
        assert_eq!((answer.status, answer.header("connection")), (401, Some("close")));
        // What is sent all the same is never taken for another request.
        let _ = stream.write_all(body);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
    }
}

#[test]
fn a_client_that_still_sends_gets_its_refusal() {
    let server = TestServer::start(with(|settings| settings.payload_limit = 1000));
    for head in [
        "content-length: 20000000\r\n\r\n".to_owned(),
        format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n", 20_000_000),
    ] {
        let mut stream = server.connect();
        write!(stream, "POST /embed HTTP/1.1\r\nhost: t\r\n{head}").unwrap();
        stream.write_all(&vec![b' '; 20_000_000]).unwrap();
        let answer = Answer::read_one(&mut stream);
        assert_eq!((answer.status, answer.header("connection")), (413, Some("close")));
    }
    // Nor does a head that is too large or no head at all cost the client the reply.
    for (head, status) in [
        (format!("GET /health HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(400_000)), 431),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "y".repeat(400_000)), 431),
        (format!("GET /health HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(2000)), 431),
        (format!("nothing of the kind\r\n{}", "z".repeat(400_000)), 400),
    ] {
        let mut stream = server.connect();
        stream.write_all(head.as_bytes()).unwrap();
        assert_eq!(Answer::read_one(&mut stream).status, status);
    }
}

#[test]
fn a_stop_waits_for_nobody_who_has_not_asked() {
    let grace = Duration::from_secs(3600);
    let mut server = TestServer::start(with(|settings| {
        settings.shutdown_grace = grace;
        settings.idle_timeout = grace;
        settings.read_timeout = grace;
    }));
    let silent = server.connect();
    let mut idle = server.connect();
    idle.write_all(&kept("GET", "/health", &[], b"")).unwrap();
    assert_eq!(Answer::read_one(&mut idle).status, 200);
    let mut half_head = server.connect();
    half_head.write_all(b"POST /v1/embeddings HTTP/1.1\r\nhost:").unwrap();
    let mut second_half_head = server.connect();
    second_half_head.write_all(&kept("GET", "/health", &[], b"")).unwrap();
    assert_eq!(Answer::read_one(&mut second_half_head).status, 200);
    second_half_head.write_all(b"POST").unwrap();
    server.stop();
    assert_eq!(server.join().cut_off, 0);
    for stream in [silent, idle, half_head, second_half_head] {
        assert!(is_closed(&stream));
    }
}

/// A server that was told to stop while a request lacked the last byte of its body.
fn stopping_at_half_a_body(grace: Duration) -> (TestServer, TcpStream) {
    let mut server = TestServer::start(with(|settings| settings.shutdown_grace = grace));
    let whole = kept("POST", "/v1/embeddings", &[], ASK.as_bytes());
    let mut stream = server.connect();
    stream.write_all(&whole[..whole.len() - 1]).unwrap();
    until(|| metric(&server, "vecmill_http_requests_in_flight"), |&now| now == 2);
    server.stop();
    until(|| TcpStream::connect(server.address).is_err(), |&refused| refused);
    (server, stream)
}

#[test]
fn a_stop_waits_for_half_a_body_and_then_says_so() {
    let (mut server, mut stream) = stopping_at_half_a_body(Duration::from_secs(3600));
    stream.write_all(&ASK.as_bytes()[ASK.len() - 1..]).unwrap();
    let answer = Answer::read_one(&mut stream);
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(server.join().cut_off, 0);

    let (mut server, mut stream) = stopping_at_half_a_body(Duration::from_millis(800));
    let answer = Answer::read_one(&mut stream);
    answer.openai_error(503, Some("shutting_down"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(server.join().cut_off, 0);
}

#[test]
fn a_request_that_came_before_the_stop_is_answered() {
    let mut server = TestServer::start(Settings::default());
    // Connections that the system has let in and the server has not seen yet, perhaps.
    let asked: Vec<_> = (0..50).map(|_| server.send("/v1/embeddings", ASK)).collect();
    server.stop();
    assert_eq!(server.join().cut_off, 0);
    for stream in asked {
        assert_eq!(Answer::read(stream).status, 200);
    }
}

#[test]
fn a_stop_that_may_not_wait_says_what_it_cut_off() {
    let (mut server, engine) = TestServer::with_engine(with(|settings| {
        settings.shutdown_grace = Duration::from_secs(3600);
    }));
    let _gate = Gate::closed(&engine);
    let stuck: Vec<_> = (0..3).map(|_| server.send("/v1/embeddings", ASK)).collect();
    until_waiting(&engine, 3);
    let mut half = server.connect();
    half.write_all(b"POST /embed HTTP/1.1\r\nhost: t\r\ncontent-length: 9\r\n\r\n{").unwrap();
    server.stop();
    until(|| TcpStream::connect(server.address).is_err(), |&refused| refused);
    server.stop_now();
    assert_eq!(server.join().cut_off, 3);
    assert!(stuck.iter().all(is_closed));
}
