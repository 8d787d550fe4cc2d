//! What each route and form of input really makes the server hold, beside what is counted for it.
//!
//! `cargo test -p vecmill-server --test held -- --nocapture` prints the table that docs/requests.md
//! has. The allocator counts all of this process, so the tests here are one: a real server, a real
//! engine with a tiny model, and a client that allocates nothing while it is measured.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests say what must hold by panicking, and this one is asked for a table"
)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use peak_alloc::PeakAlloc;
use support::engine::{serve, tiny};
use support::{TestServer, message, metric, until};
use vecmill_server::Settings;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// What a process allocates beside requests while one is served: by timers, logs, metrics.
const BESIDE: usize = 256 << 10;

/// The routes of a model that ranks.
const SCORES: [&str; 3] = ["/rerank", "/as/jina/rerank", "/predict"];

/// A form of input, and what is sent.
struct Form {
    route: &'static str,
    form: &'static str,
    body: Vec<u8>,
}

/// Documents for a query.
fn ranking(route: &'static str, form: &'static str, query: &str, documents: &str) -> Form {
    let field = if route == "/rerank" { "texts" } else { "documents" };
    let body = format!(r#"{{"query":{query},"{field}":{documents}}}"#).into_bytes();
    Form { route, form, body }
}

fn form(route: &'static str, form: &'static str, inputs: &str, more: &str) -> Form {
    let field = if ["/v1/embeddings", "/api/embed"].contains(&route) { "input" } else { "inputs" };
    let body = format!(r#"{{"{field}":{inputs}{more}}}"#).into_bytes();
    Form { route, form, body }
}

fn list(items: usize, item: &str) -> String {
    format!("[{}]", vec![item; items].join(","))
}

fn forms() -> Vec<Form> {
    let openai = "/v1/embeddings";
    let base64 = r#","encoding_format":"base64""#;
    let long = format!("\"{}\"", "a fox ".repeat(300_000));
    let escaped = format!("\"{}\"", r"\u0061 ".repeat(250_000));
    let paragraph = format!("\"{}\"", "a fox ".repeat(150));
    let ids = list(900_000, "7");
    let many_ids = list(2048, &list(450, "7"));
    let dots = format!("\"{}\"", ".".repeat(300_000));
    vec![
        form(openai, "one long text", &long, ""),
        form(openai, "one long text, escaped", &escaped, ""),
        form(openai, "2,048 short texts", &list(2048, "\"a\""), ""),
        form(openai, "2,048 short texts, base64", &list(2048, "\"a\""), base64),
        form(openai, "2,048 paragraphs", &list(2048, &paragraph), ""),
        form(openai, "one list of ids", &ids, ""),
        form(openai, "2,048 lists of ids", &many_ids, base64),
        form("/embed", "one long text", &long, ""),
        form("/embed", "2,048 short texts", &list(2048, "\"a\""), ""),
        form("/api/embed", "2,048 short texts", &list(2048, "\"a\""), ""),
        form("/tokenize", "one long text", &dots, ""),
        form("/tokenize", "2,048 short texts", &list(2048, "\"a\""), ""),
        ranking("/rerank", "a long query, 2,048 short texts", &long, &list(2048, "\"a\"")),
        ranking("/as/jina/rerank", "2,048 paragraphs, returned", "\"a\"", &list(2048, &paragraph)),
        ranking("/as/jina/rerank", "one long text, escaped, returned", "\"a\"", &escaped),
        form("/predict", "2,048 pairs", &list(2048, r#"["a","a fox"]"#), ""),
    ]
}

/// Sends and reads to the end of the connection, without allocating; the reply's status and length.
fn ask(server: &TestServer, request: &[u8], buffer: &mut [u8]) -> (u16, usize) {
    let mut stream = server.connect();
    stream.write_all(request).unwrap();
    let mut length = 0;
    let mut status = 0;
    loop {
        let read = stream.read(buffer).unwrap();
        if read == 0 {
            return (status, length);
        }
        if length == 0 {
            status = std::str::from_utf8(&buffer[9..12]).unwrap().parse().unwrap();
        }
        length += read;
    }
}

/// The most that one request holds beside what the process held before, and what is counted for it.
fn measure(form: &Form) -> (usize, usize, usize) {
    let model = if SCORES.contains(&form.route) { "bert-rerank" } else { "bert-mean" };
    let server = serve(&tiny(model), Settings::default());
    let request = message("POST", form.route, &[], &form.body);
    let mut buffer = vec![0; 1 << 16];
    // The first time, caches are filled and buffers grow that stay.
    let (status, reply) = ask(&server, &request, &mut buffer);
    assert_eq!(status, 200, "{} {}", form.route, form.form);
    until(|| metric(&server, "vecmill_http_request_memory_bytes"), |&held| held == 0);
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    ask(&server, &request, &mut buffer);
    let held = ALLOCATED.peak_usage() - before;
    (held, metric(&server, "vecmill_http_request_memory_peak_bytes"), reply)
}

/// The most that a connection holds which is idle, has sent half a head, or much of one.
fn connection(sent: &[u8]) -> usize {
    const CONNECTIONS: usize = 100;
    let server = TestServer::with_engine(Settings::default()).0;
    let open = || {
        let mut stream = server.connect();
        stream.write_all(sent).unwrap();
        stream
    };
    let mut streams: Vec<TcpStream> = Vec::with_capacity(2 * CONNECTIONS);
    streams.extend((0..CONNECTIONS).map(|_| open()));
    server.get("/health"); // accepted after those, so those are there
    let before = ALLOCATED.current_usage();
    streams.extend((0..CONNECTIONS).map(|_| open()));
    // Nobody tells when what was sent has been read: when the most no longer grows.
    let (mut most, mut since) = (0, 0);
    while since < 100 {
        server.get("/health");
        let now = ALLOCATED.current_usage().saturating_sub(before) / CONNECTIONS;
        since = if now > most { 0 } else { since + 1 };
        most = most.max(now);
    }
    most
}

#[test]
fn no_request_holds_more_than_is_counted() {
    println!("| route | form | body | reply | held | counted | held per byte sent |");
    println!("|---|---|---|---|---|---|---|");
    let kib = |bytes: usize| bytes.div_ceil(1 << 10);
    let mut broken = Vec::new();
    for form in forms() {
        let (held, counted, reply) = measure(&form);
        let body = form.body.len();
        println!(
            "| {} | {} | {} KiB | {} KiB | {} KiB | {} KiB | {:.1} |",
            form.route,
            form.form,
            kib(body),
            kib(reply),
            kib(held),
            kib(counted),
            held as f64 / body as f64
        );
        if held > counted + BESIDE {
            broken.push((form.route, form.form, held, counted));
        }
    }
    let half_head = format!("POST / HTTP/1.1\r\nx: {}", "y".repeat(15_000));
    let headers = format!("POST / HTTP/1.1\r\n{}", "x: yyyyyyyyyyyy\r\n".repeat(95));
    let half_body = format!("{headers}content-length: 100\r\n\r\n{{");
    for (form, sent) in [("nothing", ""), ("half a head", &half_head), ("half a body", &half_body)]
    {
        let held = connection(sent.as_bytes());
        println!("| a connection | {form} | | | {} KiB | 80 KiB | |", kib(held));
        if held > 80 << 10 {
            broken.push(("a connection", form, held, 80 << 10));
        }
    }
    assert!(broken.is_empty(), "{broken:?}");
}
