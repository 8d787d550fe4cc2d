//! Ollama's contract over a real connection, with a real engine. What is sent is what the packages
//! ollama 0.6.3 and langchain-ollama 1.1.0 write.

#![expect(clippy::unwrap_used, reason = "a test says what must hold by panicking")]

mod support;

use std::io::ErrorKind;
use std::process::Command;

use serde_json::{Value, json};
use support::engine::{Gate, cosine, length, serve, shared, tiny, until_waiting};
use support::{ASK, Answer, TestServer, floats, with};
use vecmill_server::Settings;

fn ask(server: &TestServer, body: &Value) -> Answer {
    server.post("/api/embed", body.to_string())
}

/// Asserts Ollama's error form and the status; returns the message.
#[track_caller]
fn error(answer: &Answer, status: u16) -> String {
    let body = answer.json();
    assert_eq!((answer.status, body.as_object().unwrap().len()), (status, 1), "{body}");
    body["error"].as_str().unwrap().to_owned()
}

#[test]
fn ollama_s_clients_are_answered() {
    let server = TestServer::start(Settings::default());
    let expected = server.post("/embed", r#"{"inputs":["be con","a"]}"#).json();
    for body in [
        r#"{"model":"all-minilm","input":["be con","a"]}"#,
        r#"{"model":"all-minilm","input":["be con","a"],"truncate":true,"options":{"num_ctx":2048,"temperature":null,"seed":7},"keep_alive":"5m"}"#,
        r#"{"model":"all-minilm","input":["be con","a"],"options":{},"keep_alive":0,"dimensions":1000}"#,
    ] {
        let headers = ["content-type: application/json", "accept: application/json"];
        let answer = server.request("POST", "/api/embed", &headers, body.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        let reply = answer.json();
        assert_eq!(reply["model"], "all-minilm");
        assert_eq!(reply["embeddings"], expected);
        assert!(reply["total_duration"].as_u64().unwrap() > 0);
        assert_eq!(reply["load_duration"], 0);
        assert_eq!(
            reply["prompt_eval_count"].to_string(),
            answer.header("x-compute-tokens").unwrap()
        );
        assert_eq!(reply.as_object().unwrap().len(), 5);
    }
    let one = ask(&server, &json!({"input": "be con"})).json();
    assert_eq!(one["embeddings"], json!([expected[0]]));
    assert_eq!(one["model"], *shared().info().model_id);
}

#[test]
fn vectors_are_of_length_one_whatever_the_model_says() {
    let server = serve(&tiny("bert-unnormalised"), Settings::default());
    let plain = server.post("/embed", r#"{"inputs":"be con","normalize":false}"#).json();
    let plain = floats(&plain[0]);
    assert!((length(&plain) - 1.0).abs() > 0.01);
    for dimensions in [None, Some(8), Some(32), Some(33), Some(1 << 40)] {
        let reply = ask(&server, &json!({"input": "be con", "dimensions": dimensions})).json();
        let vector = floats(&reply["embeddings"][0]);
        let kept = dimensions.unwrap_or(32).min(32);
        assert_eq!(vector.len(), kept);
        assert!((length(&vector) - 1.0).abs() < 1e-5);
        assert!(cosine(&vector, &plain[..kept]) > 0.999_99);
    }
    let message = error(&ask(&server, &json!({"input": "a", "normalize": false})), 400);
    assert!(message.starts_with("`normalize` must ask for vectors of length one"), "{message}");
}

#[test]
fn without_texts_there_are_no_vectors() {
    let server = TestServer::start(Settings::default());
    for input in [json!(null), json!(""), json!([])] {
        let reply = ask(&server, &json!({"model": "m:latest", "input": input})).json();
        assert_eq!(reply, json!({"model": "m:latest", "embeddings": []}));
    }
    assert_eq!(ask(&server, &json!({"model": "m"})).status, 200);
    assert!(
        error(&ask(&server, &json!({"input": ["a", ""]})), 400).starts_with("input 1 is empty")
    );
}

#[test]
fn too_long_a_text_is_cut_or_refused() {
    let server = TestServer::start(Settings::default());
    let long = "and be con ".repeat(100);
    let cut = ask(&server, &json!({"input": ["a", long]}));
    assert_eq!(cut.header("x-vecmill-truncated"), Some("1"));
    let message = error(&ask(&server, &json!({"input": ["a", long], "truncate": false})), 400);
    assert!(
        message.starts_with("the input length exceeds the context length: input 1"),
        "{message}"
    );
    let small = error(&ask(&server, &json!({"input": "a", "options": {"num_ctx": 100}})), 400);
    assert!(small.starts_with("`options.num_ctx` must be -1 or at least 160"), "{small}");
}

#[test]
fn mistakes_have_ollama_s_form() {
    let key = "k".parse().unwrap();
    let server = TestServer::start(with(|settings| settings.max_client_batch_size = 2));
    for (body, field) in [
        (json!({"input": [1, 2]}), "input[0]"),
        (json!({"input": ["a", [1]]}), "input[1]"),
        (json!({"input": 7}), "input"),
        (json!({"input": "a", "model": 7}), "model"),
        (json!({"input": "a", "options": "fast"}), "options"),
        (json!({"input": "a", "options": {"num_ctx": "8"}}), "options.num_ctx"),
        (json!({"input": "a", "prompt": "b"}), "prompt"),
        (json!({"input": "a", "dimensions": 0}), "dimensions"),
        (json!({"input": ["a", "b", "c"]}), "input"),
    ] {
        let message = error(&ask(&server, &body), 400);
        assert!(message.starts_with(&format!("`{field}` ")), "{body} {message}");
    }
    error(&server.post("/api/embed", "{"), 400);
    error(&server.get("/api/embed"), 405);
    let server = TestServer::start(with(|settings| settings.api_keys = vec![key]));
    error(&ask(&server, &json!({"input": "a"})), 401);
    let (server, _loading) = TestServer::loading(Settings::default());
    error(&ask(&server, &json!({"input": "a"})), 503);
}

#[test]
fn a_busy_server_is_unavailable() {
    let (server, engine) =
        TestServer::with_engine(with(|settings| settings.max_concurrent_requests = 1));
    let gate = Gate::closed(&engine);
    let first = server.send("/api/embed", ASK);
    until_waiting(&engine, 1);
    let busy = ask(&server, &json!({"input": "a"}));
    assert!(error(&busy, 503).starts_with("all 1 places"), "{}", busy.text());
    assert_eq!(busy.header("retry-after"), Some("1"));
    drop(gate);
    assert_eq!(Answer::read(first).status, 200);
}

/// What a web page could send without being asked, and what `curl -d` sends.
const FORM: &str = "content-type: application/x-www-form-urlencoded";

#[test]
fn a_body_is_json_whatever_its_type_but_a_browser_s() {
    let server = TestServer::start(Settings::default());
    let send =
        |path, headers: &[&str], body: &str| server.request("POST", path, headers, body.as_bytes());
    let body = r#"{"model":"all-minilm","input":"be con"}"#;
    let expected = ask(&server, &json!({"model": "all-minilm", "input": "be con"})).json();
    for headers in [&["accept: */*", FORM][..], &["content-type: text/plain"], &[]] {
        let reply = send("/api/embed", headers, body);
        assert_eq!(reply.status, 200, "{headers:?} {}", reply.text());
        assert_eq!(reply.json()["embeddings"], expected["embeddings"]);
    }
    for browser in ["origin: https://evil.example", "origin: null", "sec-fetch-site: none"] {
        error(&send("/api/embed", &[FORM, browser], body), 415);
        let json = ["content-type: application/json", browser];
        assert_eq!(send("/api/embed", &json, body).status, 200);
    }
    error(&send("/api/embed", &[FORM], "input=be+con"), 400);
    // TEI's server reads nothing but JSON, nor does OpenAI's.
    send("/embed", &[FORM], r#"{"inputs":"a"}"#).tei_error(415, "Validation");
    send("/v1/embeddings", &[FORM], ASK).openai_error(415, Some("unsupported_media_type"));
}

#[test]
fn curl_is_answered_as_ollama_s_documents_call_it() {
    let server = TestServer::start(Settings::default());
    let url = format!("http://{}/api/embed", server.address);
    let body = r#"{"model": "all-minilm", "input": ["be con", "a"]}"#;
    let curl = Command::new("curl").args(["-sS", "--noproxy", "*", &url, "-d", body]).output();
    let curl = match curl {
        Err(error) if error.kind() == ErrorKind::NotFound => return, // the test above has its bytes
        curl => curl.unwrap(),
    };
    let reply: Value = serde_json::from_slice(&curl.stdout).unwrap();
    assert_eq!(reply["embeddings"].as_array().map(Vec::len), Some(2), "{reply}");
}
