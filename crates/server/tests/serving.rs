//! What holds for every route: states, keys, limits, errors, metrics, stopping.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use support::engine::{Gate, builder, shared, tiny, until_waiting};
use support::{ASK, Answer, PATIENCE, TestServer, is_closed, message, metric, until, value, with};
use vecmill_server::{ServeError, Server, Settings};

/// What the device has embedded.
const INPUTS: &str = "vecmill_inputs_total{device=\"cpu\"";
const GIVEN_UP: &str = "vecmill_requests_total{outcome=\"given_up\"";

const SOON: Duration = Duration::from_millis(100);

#[test]
fn a_loading_server_is_alive_but_not_ready() {
    let (server, loading) = TestServer::loading(Settings::default());
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/ping").status, 200);
    assert_eq!(server.get("/metrics").status, 200);
    for path in ["/ready", "/v1/models"] {
        let answer = server.get(path);
        answer.openai_error(503, Some("model_loading"));
        assert_eq!(answer.header("retry-after"), Some("5"), "{path}");
    }
    server.post("/v1/embeddings", ASK).openai_error(503, Some("model_loading"));
    server.post("/embed", r#"{"inputs":"a"}"#).tei_error(503, "Unhealthy");
    server.get("/info").tei_error(503, "Unhealthy");

    loading.ready(shared());
    assert_eq!(server.get("/ready").status, 200);
    assert_eq!(server.post("/v1/embeddings", ASK).status, 200);
}

#[test]
fn a_failed_server_says_why() {
    let (server, loading) = TestServer::loading(Settings::default());
    loading.failed("config.json is missing");
    for answer in [server.get("/ready"), server.post("/v1/embeddings", ASK)] {
        let error = answer.openai_error(503, Some("model_unavailable"));
        assert_eq!(error["message"], "the model could not be loaded: config.json is missing");
        assert_eq!(answer.header("retry-after"), None);
    }
    assert_eq!(server.get("/health").status, 200);

    let (server, loading) = TestServer::loading(Settings::default());
    drop(loading);
    server.get("/ready").openai_error(503, Some("model_unavailable"));
}

#[test]
fn keys_are_asked_for_where_they_should_be() {
    let keys = ["first", "second"].map(|key| key.parse().unwrap());
    let server = TestServer::start(with(|settings| settings.api_keys = keys.into()));
    let ask = |path: &str, header: &str| {
        server.request("POST", path, &["content-type: application/json", header], ASK.as_bytes())
    };
    for header in ["x: y", "authorization: Bearer wrong", "authorization: Basic first"] {
        for path in ["/v1/embeddings", "/embeddings"] {
            let answer = ask(path, header);
            answer.openai_error(401, Some("invalid_api_key"));
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            assert!(!answer.text().contains("wrong"));
        }
        ask("/embed", header).tei_error(401, "Unauthorized");
        ask("/tokenize", header).tei_error(401, "Unauthorized");
    }
    server.get("/v1/models").openai_error(401, Some("invalid_api_key"));
    server.get("/info").tei_error(401, "Unauthorized");
    for key in ["first", "second"] {
        assert_eq!(ask("/v1/embeddings", &format!("authorization: Bearer {key}")).status, 200);
    }
    for path in ["/health", "/ping", "/ready", "/metrics"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    server.get("/nowhere").openai_error(404, Some("unknown_url"));
}

#[test]
fn unknown_addresses_and_methods_are_told() {
    let server = TestServer::start(Settings::default());
    let error = server.get("/v1/nowhere?key=secret").openai_error(404, Some("unknown_url"));
    assert_eq!(error["message"], "there is nothing at /v1/nowhere");
    for (method, path, allowed) in [
        ("GET", "/v1/embeddings", "POST"),
        ("DELETE", "/v1/models", "GET,HEAD"),
        ("POST", "/metrics", "GET,HEAD"),
        ("BREW", "/health", "GET,HEAD"),
    ] {
        let answer = server.request(method, path, &[], b"");
        answer.openai_error(405, Some("method_not_supported"));
        assert_eq!(answer.header("allow"), Some(allowed), "{method} {path}");
    }
    let head = server.request("HEAD", "/health", &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(server.raw(b"not http at all\r\n\r\n").status, 400);
}

#[test]
fn the_engine_s_errors_keep_their_fault() {
    let engine = builder(&tiny("bert-mean")).queue_capacity(2).start().unwrap();
    let (server, loading) = TestServer::loading(Settings::default());
    loading.ready(engine.clone());
    let tei = |inputs: &str| server.post("/embed", format!(r#"{{"inputs":{inputs}}}"#));
    let gate = Gate::closed(&engine);
    let waits = server.send("/v1/embeddings", ASK);
    until_waiting(&engine, 1);
    // The queue has room for one more, and takes all of a request's inputs or none.
    let busy = server.post("/v1/embeddings", r#"{"input":["a","b"]}"#);
    busy.openai_error(429, Some("rate_limit_exceeded"));
    assert!(busy.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    assert!(tei(r#"["a","b"]"#).tei_error(429, "Overloaded").contains("1 inputs waiting"));
    drop(gate);
    assert_eq!(Answer::read(waits).status, 200);
    engine.shutdown();
    server.post("/v1/embeddings", ASK).openai_error(503, Some("shutting_down"));
    tei(r#""a""#).tei_error(503, "Unhealthy");
}

#[test]
fn large_bodies_are_refused_and_the_client_is_told() {
    let limit = 1000;
    let server = TestServer::start(with(|settings| settings.payload_limit = limit));
    let padded = |bytes: usize| format!("{ASK}{}", " ".repeat(bytes - ASK.len()));
    assert_eq!(server.post("/v1/embeddings", padded(limit)).status, 200);
    for bytes in [limit + 1, 20 << 20] {
        let answer = server.post("/v1/embeddings", padded(bytes));
        let error = answer.openai_error(413, Some("payload_too_large"));
        assert!(error["message"].as_str().unwrap().contains("1000 bytes"));
    }
    server.post("/embed", padded(limit + 1)).tei_error(413, "Validation");

    let mut chunked = b"POST /embed HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\
                        transfer-encoding: chunked\r\n\r\n"
        .to_vec();
    for _ in 0..11 {
        chunked.extend_from_slice(b"64\r\n");
        chunked.extend_from_slice(&[b' '; 100]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    server.raw(&chunked).tei_error(413, "Validation");
}

#[test]
fn a_client_that_asks_first_need_not_send_too_much() {
    let server = TestServer::start(with(|settings| settings.payload_limit = 1000));
    let head = |length: usize| {
        format!(
            "POST /v1/embeddings HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\
             expect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let mut stream = server.connect();
    stream.write_all(head(1001).as_bytes()).unwrap();
    Answer::read(stream).openai_error(413, Some("payload_too_large"));

    let mut stream = server.connect();
    stream.write_all(head(ASK.len()).as_bytes()).unwrap();
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(ASK.as_bytes()).unwrap();
    assert_eq!(Answer::read(stream).status, 200);
}

#[test]
fn slow_clients_are_cut_off() {
    let server = TestServer::start(with(|settings| {
        settings.read_timeout = SOON;
        settings.idle_timeout = SOON;
    }));
    let whole = message("POST", "/v1/embeddings", &[], ASK.as_bytes());
    let mut stream = server.connect();
    stream.write_all(&whole[..whole.len() - 1]).unwrap(); // all but the last byte of the body
    Answer::read(stream).openai_error(408, Some("request_timeout"));

    let mut stream = server.connect();
    stream.write_all(b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\n").unwrap();
    assert!(is_closed(&stream));
    assert!(is_closed(&server.connect()));
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let server = TestServer::start(with(|settings| settings.write_timeout = SOON));
    // Requests without end and nothing read: the replies fill the buffers on the way.
    let mut stream = server.connect();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: t\r\n\r\n".repeat(1000);
    let error = loop {
        if let Err(error) = stream.write_all(&request) {
            break error;
        }
    };
    let kind = error.kind();
    assert!(matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
}

#[test]
fn work_that_takes_too_long_is_given_up() {
    let (server, engine) =
        TestServer::with_engine(with(|settings| settings.request_timeout = SOON));
    let gate = Gate::closed(&engine);
    let before = metric(&server, INPUTS);
    server.post("/v1/embeddings", ASK).openai_error(504, Some("timeout"));
    server.post("/embed", r#"{"inputs":"a"}"#).tei_error(504, "Backend");
    drop(gate);
    let ask = || server.get("/metrics").text().to_owned();
    let text = until(ask, |text| text.contains(GIVEN_UP) && value(text, GIVEN_UP) == 2);
    assert_eq!(value(&text, INPUTS), before, "{text}");
}

#[test]
fn one_request_too_many_is_refused_at_once() {
    let (server, engine) =
        TestServer::with_engine(with(|settings| settings.max_concurrent_requests = 2));
    let gate = Gate::closed(&engine);
    let first = server.send("/v1/embeddings", ASK);
    let second = server.send("/embed", r#"{"inputs":"a"}"#);
    until_waiting(&engine, 2);
    let refused = server.post("/v1/embeddings", ASK);
    refused.openai_error(429, Some("rate_limit_exceeded"));
    assert_eq!(refused.header("retry-after"), Some("1"));
    server.post("/tokenize", r#"{"inputs":"a"}"#).tei_error(429, "Overloaded");
    for path in ["/health", "/ready", "/metrics", "/v1/models", "/info"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    drop(gate);
    assert_eq!(Answer::read(first).status, 200);
    assert_eq!(Answer::read(second).status, 200);
    assert_eq!(server.post("/v1/embeddings", ASK).status, 200);
}

#[test]
fn connections_beyond_the_limit_wait() {
    let server = TestServer::start(with(|settings| settings.max_connections = 1));
    let first = server.connect();
    let mut second = server.connect();
    second.write_all(&message("GET", "/health", &[], b"")).unwrap();
    second.set_read_timeout(Some(SOON)).unwrap();
    assert!(second.read(&mut [0]).is_err(), "answered beside the first");
    drop(first);
    second.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(Answer::read(second).status, 200);
}

#[test]
fn clients_that_leave_take_their_work_with_them() {
    let (server, engine) = TestServer::with_engine(Settings::default());
    let gate = Gate::closed(&engine);
    let before = metric(&server, INPUTS);
    let clients: Vec<_> = (0..20).map(|_| server.send("/v1/embeddings", ASK)).collect();
    let stays = server.send("/v1/embeddings", ASK);
    until_waiting(&engine, 21);
    drop(clients);
    let left = r#"{route="/v1/embeddings",method="POST",status="499"} 20"#;
    let ask = || server.get("/metrics").text().to_owned();
    let text = until(ask, |text| text.contains(left));
    assert!(text.contains("vecmill_http_requests_in_flight 2\n"), "{text}"); // this one, and who stays
    drop(gate);
    assert_eq!(Answer::read(stays).status, 200);
    let text = until(ask, |text| text.contains(GIVEN_UP) && value(text, GIVEN_UP) == 20);
    assert_eq!(value(&text, INPUTS), before + 1, "{text}");
}

#[test]
fn a_connection_serves_many_requests() {
    let server = TestServer::start(Settings::default());
    let mut stream = server.connect();
    let request = b"GET /health HTTP/1.1\r\nhost: t\r\n\r\n";
    let mut first = [0; 15];
    stream.write_all(request).unwrap();
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    stream.write_all(&message("GET", "/ready", &[], b"")).unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest.matches("HTTP/1.1 200 OK").count(), 1);
}

#[test]
fn a_stopping_server_finishes_what_it_accepted() {
    let (mut server, engine) = TestServer::with_engine(Settings::default());
    let gate = Gate::closed(&engine);
    let idle = server.connect();
    let accepted: Vec<_> = (0..3).map(|_| server.send("/v1/embeddings", ASK)).collect();
    until_waiting(&engine, 3);
    server.stop();
    until(|| TcpStream::connect(server.address).is_err(), |&refused| refused);
    assert!(is_closed(&idle));
    drop(gate);
    assert_eq!(server.join().cut_off, 0);
    for stream in accepted {
        let answer = Answer::read(stream);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json()["data"].as_array().unwrap().len(), 1);
    }
}

#[test]
fn a_stopping_server_does_not_wait_for_ever() {
    let (mut server, engine) =
        TestServer::with_engine(with(|settings| settings.shutdown_grace = SOON));
    let _gate = Gate::closed(&engine);
    let stuck = server.send("/v1/embeddings", ASK);
    until_waiting(&engine, 1);
    server.stop();
    assert_eq!(server.join().cut_off, 1);
    assert!(is_closed(&stuck));
}

#[test]
fn metrics_are_open_metrics_text() {
    let server = TestServer::start(Settings::default());
    server.post("/v1/embeddings", ASK);
    server.post("/v1/embeddings", "{");
    server.get("/nowhere/secret");
    server.request("BREW", "/health", &[], b"");
    let answer = server.get("/metrics");
    let media = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(answer.header("content-type"), Some(media));
    let text = answer.text();
    assert!(text.ends_with("\n# EOF\n"));
    assert_eq!(text.matches("# EOF").count(), 1);
    for line in [
        "# TYPE vecmill_inputs counter",
        "# TYPE vecmill_http_requests counter",
        r#"vecmill_http_requests_total{route="/v1/embeddings",method="POST",status="200"} 1"#,
        r#"vecmill_http_requests_total{route="/v1/embeddings",method="POST",status="400"} 1"#,
        r#"vecmill_http_requests_total{route="unmatched",method="GET",status="404"} 1"#,
        r#"vecmill_http_requests_total{route="/health",method="other",status="405"} 1"#,
        "# TYPE vecmill_http_request_duration_seconds histogram",
        r#"vecmill_http_request_duration_seconds_count{route="/v1/embeddings"} 2"#,
        r#"vecmill_http_request_duration_seconds_bucket{le="+Inf",route="/v1/embeddings"} 2"#,
        "vecmill_http_requests_in_flight 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("secret"));
    for line in text.lines().filter(|line| !line.starts_with("# ")) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(series.starts_with("vecmill_"), "{line}");
        assert_eq!(series.contains('{'), series.ends_with('}'), "{line}");
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
}

#[test]
fn requests_have_ids() {
    let server = TestServer::start(Settings::default());
    let echoed = server.request("GET", "/health", &["x-request-id: mine-7"], b"");
    assert_eq!(echoed.header("x-request-id"), Some("mine-7"));
    let (one, two) = (server.get("/nowhere"), server.get("/nowhere"));
    assert!(one.header("x-request-id").is_some());
    assert_ne!(one.header("x-request-id"), two.header("x-request-id"));
}

#[test]
fn browsers_may_ask_from_allowed_origins_only() {
    let key = "k".parse().unwrap();
    let server = TestServer::start(with(|settings| {
        settings.cors_allow_origin = vec!["https://app.example.com".into()];
        settings.api_keys = vec![key];
    }));
    let preflight = |origin: &str| {
        let headers = [
            &format!("origin: {origin}"),
            "access-control-request-method: POST",
            "access-control-request-headers: authorization,content-type",
        ];
        server.request("OPTIONS", "/v1/embeddings", &headers, b"")
    };
    let allowed = preflight("https://app.example.com");
    assert_eq!(allowed.status, 200);
    let origin = "access-control-allow-origin";
    assert_eq!(allowed.header(origin), Some("https://app.example.com"));
    let headers = allowed.header("access-control-allow-headers").unwrap();
    assert!(headers.contains("authorization"), "{headers}");
    assert_eq!(preflight("https://evil.example.com").header(origin), None);

    let from = ["origin: https://app.example.com"];
    let refused = server.request("POST", "/v1/embeddings", &from, ASK.as_bytes());
    refused.openai_error(401, Some("invalid_api_key"));
    assert_eq!(refused.header(origin), Some("https://app.example.com"));
    assert!(refused.header("access-control-expose-headers").unwrap().contains("x-request-id"));

    let server = TestServer::start(Settings::default());
    let by_default = server.request("OPTIONS", "/v1/embeddings", &from, b"");
    assert_eq!((by_default.status, by_default.header(origin)), (405, None));
}

#[test]
fn a_taken_address_is_an_error() {
    let (server, _) = Server::bind("127.0.0.1:0", Settings::default()).unwrap();
    let address = server.local_addr();
    let error = Server::bind(address, Settings::default()).unwrap_err();
    assert!(matches!(error, ServeError::Bind { .. }));
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}
