//! The OpenAI and TEI contracts over a real connection.

mod support;

use std::io::Read as _;

use base64::Engine as _;
use serde_json::{Value, json};
use support::engine::{builder, shared, tiny};
use support::{TestServer, floats, until};
use vecmill_server::Settings;

/// Of the tiny models' vectors.
const DIMENSIONS: usize = 32;

/// A text longer than the tiny models take.
fn long() -> String {
    "and be con ".repeat(100)
}

fn server() -> TestServer {
    TestServer::start(Settings::default())
}

#[test]
fn openai_embeddings_have_the_contract_s_form() {
    let server = server();
    for path in ["/v1/embeddings", "/embeddings"] {
        let body = r#"{"input":["one two","three"],"model":"any-name","user":"u","extra":1}"#;
        let answer = server.post(path, body);
        assert_eq!(answer.status, 200);
        let reply = answer.json();
        assert_eq!(reply["object"], "list");
        assert_eq!(reply["model"], *shared().info().model_id);
        let tokens = reply["usage"]["total_tokens"].as_u64().unwrap();
        assert!(tokens > 7, "of three words, each between two special ones: {tokens}");
        assert_eq!(reply["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
        let data = reply["data"].as_array().unwrap();
        for (index, entry) in data.iter().enumerate() {
            assert_eq!(entry["object"], "embedding");
            assert_eq!(entry["index"], index);
            assert_eq!(floats(&entry["embedding"]).len(), DIMENSIONS);
        }
        assert_eq!(data.len(), 2);
    }
}

#[test]
fn all_forms_of_input_are_served() {
    let server = server();
    let forms = [(r#""a""#, 1), (r#"["a","b","c"]"#, 3), ("[1,2,3]", 1), ("[[1],[2,3]]", 2)];
    for (input, count) in forms {
        let openai = server.post("/v1/embeddings", format!(r#"{{"input":{input},"model":"m"}}"#));
        assert_eq!(openai.json()["data"].as_array().unwrap().len(), count, "{input}");
        let tei = server.post("/embed", format!(r#"{{"inputs":{input}}}"#));
        assert_eq!(tei.json().as_array().unwrap().len(), count, "{input}");
    }
}

#[test]
fn base64_carries_the_same_vectors() {
    let server = server();
    let ask = |format: &str| {
        let body = json!({"input": ["héllo", "x\0y"], "model": "m", "encoding_format": format});
        server.post("/v1/embeddings", body.to_string()).json()
    };
    let (text, coded) = (ask("float"), ask("base64"));
    for index in 0..2 {
        let coded = coded["data"][index]["embedding"].as_str().unwrap();
        let bytes = base64::engine::general_purpose::STANDARD.decode(coded).unwrap();
        let read = bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap()));
        assert_eq!(read.collect::<Vec<_>>(), floats(&text["data"][index]["embedding"]));
    }
}

#[test]
fn long_replies_are_whole() {
    let server = server();
    // So many numbers are written beside the async threads.
    let texts = vec!["a"; 2048];
    let one = floats(&server.post("/embed", r#"{"inputs":"a"}"#).json()[0]);
    let openai = server.post("/v1/embeddings", json!({ "input": texts }).to_string()).json();
    let tei = server.post("/embed", json!({ "inputs": texts }).to_string()).json();
    for vectors in [&openai["data"], &tei] {
        assert_eq!(vectors.as_array().unwrap().len(), 2048);
    }
    assert_eq!(
        (floats(&openai["data"][2047]["embedding"]), floats(&tei[2047])),
        (one.clone(), one)
    );
}

#[test]
fn dimensions_are_passed_on() {
    let server = server();
    let ask = |dimensions: i64| {
        let body = json!({"input": "a", "model": "m", "dimensions": dimensions});
        server.post("/v1/embeddings", body.to_string())
    };
    assert_eq!(floats(&ask(2).json()["data"][0]["embedding"]).len(), 2);
    for wrong in [0, 33, -1] {
        assert_eq!(ask(wrong).openai_error(400, None)["param"], "dimensions");
    }
}

#[test]
fn the_served_name_can_be_chosen() {
    let name = Some("my \"model\"".to_owned());
    let server = TestServer::start(Settings { served_model_name: name, ..Settings::default() });
    let reply = server.post("/v1/embeddings", r#"{"input":"a","model":"m"}"#).json();
    assert_eq!(reply["model"], "my \"model\"");
    let models = server.get("/v1/models").json();
    assert_eq!(models["object"], "list");
    assert_eq!(models["data"][0]["id"], "my \"model\"");
    assert_eq!(models["data"][0]["object"], "model");
    assert!(models["data"][0]["created"].as_u64().unwrap() > 1_700_000_000);
}

#[test]
fn replies_tell_about_the_work() {
    let server = server();
    let long = long();
    let requests = [
        ("/v1/embeddings", json!({"input": [long, "ü"], "model": "m"})),
        ("/embed", json!({"inputs": [long, "ü"]})),
    ];
    for (path, body) in requests {
        let answer = server.post(path, body.to_string());
        let number = |name: &str| answer.header(name).unwrap().parse::<usize>().unwrap();
        assert_eq!(answer.header("x-vecmill-truncated"), Some("1"), "{path}");
        assert_eq!(answer.header("x-compute-type"), Some("cpu"), "{path}");
        assert_eq!(number("x-compute-characters"), long.len() + 1, "{path}");
        // As many as the model takes, and those of one letter between two special ones.
        assert_eq!(number("x-compute-tokens"), shared().info().max_input_tokens + 3, "{path}");
        let total = number("x-total-time");
        assert_eq!(number("x-compute-time"), total, "{path}");
        for part in ["x-tokenization-time", "x-queue-time", "x-inference-time"] {
            assert!(number(part) <= total, "{path} {part}");
        }
    }
}

#[test]
fn truncation_can_be_refused() {
    let settings = Settings { auto_truncate: false, ..Settings::default() };
    let server = TestServer::start(settings);
    let long = long();
    let openai = json!({"input": ["x", long], "model": "m"}).to_string();
    let error =
        server.post("/v1/embeddings", openai).openai_error(400, Some("context_length_exceeded"));
    assert_eq!(error["param"], "input[1]");
    let tei = json!({"inputs": long}).to_string();
    server.post("/embed", tei).tei_error(413, "Validation");
    let tei = json!({"inputs": long, "truncate": true}).to_string();
    assert_eq!(server.post("/embed", tei).header("x-vecmill-truncated"), Some("1"));
}

#[test]
fn openai_mistakes_name_the_field() {
    let server = server();
    let table = [
        (r#"{"model":"m"}"#, "input"),
        (r#"{"input":"a","model":7}"#, "model"),
        (r#"{"input":[],"model":"m"}"#, "input"),
        (r#"{"input":"","model":"m"}"#, "input[0]"),
        (r#"{"input":["a","b","c",4],"model":"m"}"#, "input[3]"),
        (r#"{"input":["a",""],"model":"m"}"#, "input[1]"),
        (r#"{"input":"\ud800","model":"m"}"#, "input"),
        (r#"{"input":"a","model":"m","encoding_format":"hex"}"#, "encoding_format"),
    ];
    for (body, param) in table {
        let error = server.post("/v1/embeddings", body).openai_error(400, None);
        assert_eq!(error["param"], param, "{body}");
        assert_eq!(error["type"], "invalid_request_error");
    }
}

#[test]
fn too_many_inputs_are_refused() {
    let settings = Settings { max_client_batch_size: 2, ..Settings::default() };
    let server = TestServer::start(settings);
    let three = r#"["a","b","c"]"#;
    let openai = format!(r#"{{"input":{three},"model":"m"}}"#);
    assert_eq!(server.post("/v1/embeddings", openai).openai_error(400, None)["param"], "input");
    let tei = format!(r#"{{"inputs":{three}}}"#);
    server.post("/embed", &tei).tei_error(413, "Validation");
    server.post("/tokenize", &tei).tei_error(413, "Validation");
    assert_eq!(server.post("/embed", r#"{"inputs":["a","b"]}"#).status, 200);
}

#[test]
fn bodies_that_are_not_json_are_refused() {
    let server = server();
    for body in [&b""[..], b"{", b"[]", b"input", b"\"\xff\"", b"{\"input\":\"\xc3\"}"] {
        let error = server.post("/v1/embeddings", body).openai_error(400, Some("invalid_json"));
        assert_eq!(error["param"], Value::Null);
        server.post("/embed", body).tei_error(400, "Validation");
    }
    let deep = format!(r#"{{"model":"m","input":{}"#, "[".repeat(500_000));
    server.post("/v1/embeddings", &deep).openai_error(400, Some("invalid_json"));
    let closed = format!("{deep}{}}}", "]".repeat(500_000));
    server.post("/v1/embeddings", closed).openai_error(400, None);
    let form = ["content-type: application/x-www-form-urlencoded"];
    let body = br#"{"input":"a","model":"m"}"#;
    let answer = server.request("POST", "/v1/embeddings", &form, body);
    answer.openai_error(415, Some("unsupported_media_type"));
    let untyped = server.request("POST", "/v1/embeddings", &[], body);
    assert_eq!(untyped.status, 200);
}

#[test]
fn tei_mistakes_have_tei_s_form() {
    let server = server();
    server.post("/embed", r#"{"inputs":[]}"#).tei_error(400, "Empty");
    server.post("/embed", r#"{"inputs":["a",""]}"#).tei_error(400, "Empty");
    server.post("/embed", r#"{"inputs":7}"#).tei_error(422, "Validation");
    server.post("/embed", r#"{"inputs":"a","normalize":1}"#).tei_error(422, "Validation");
    let unknown = server.post("/embed", r#"{"inputs":"a","prompt_name":"nope"}"#);
    assert!(unknown.tei_error(422, "Validation").contains("it has query"));
    server.get("/embed").tei_error(405, "Validation");
}

#[test]
fn tokenize_s_mistakes_have_tei_s_form() {
    let server = server();
    server.post("/tokenize", r#"{"inputs":[]}"#).tei_error(400, "Empty");
    let ids = server.post("/tokenize", r#"{"inputs":["a",[1]]}"#).tei_error(422, "Validation");
    assert!(ids.starts_with("`inputs[1]` must be a string"), "{ids}");
    server.post("/tokenize", r#"{"inputs":"a","prompt_name":"no"}"#).tei_error(422, "Validation");
    let dots = |count: usize| format!(r#"{{"inputs":"{}"}}"#, ".".repeat(count));
    let server = TestServer::start(Settings { payload_limit: 2 << 20, ..Settings::default() });
    let long = server.post("/tokenize", dots(vecmill_engine::TOKENS_LIMIT));
    let long = long.tei_error(413, "Validation");
    assert!(long.contains("more than 1048576 tokens"), "{long}");
}

#[test]
fn lists_of_tokens_that_nobody_reads_keep_their_places() {
    let engine = builder(&tiny("bert-mean")).tokenization_workers(1).start().unwrap();
    let (server, loading) = TestServer::loading(Settings::default());
    loading.ready(engine);
    let dots = format!(r#"{{"inputs":"{}"}}"#, ".".repeat(300_000));
    let mut reads_no_more = server.send("/tokenize", &dots);
    reads_no_more.read_exact(&mut [0]).unwrap();
    let ask = || server.post("/tokenize", r#"{"inputs":"a"}"#);
    let busy = ask();
    busy.tei_error(429, "Overloaded");
    assert_eq!(busy.header("retry-after"), Some("1"));
    drop(reads_no_more);
    until(ask, |answer| answer.status == 200);
}

#[test]
fn info_has_tei_s_fields_and_ours() {
    let info = server().get("/info").json();
    let engine = shared();
    let expected = json!({
        "model_id": engine.info().model_id,
        "model_sha": null,
        "model_dtype": "float32",
        "model_type": {"embedding": {"pooling": "mean"}},
        "max_concurrent_requests": 512,
        "max_input_length": 160,
        "max_batch_tokens": engine.info().max_batch_tokens,
        "max_batch_requests": null,
        "max_client_batch_size": 2048,
        "auto_truncate": true,
        "tokenization_workers": 1,
        "sha": null,
        "docker_label": null,
        "dimensions": DIMENSIONS,
        "prompts": {"query": "and "},
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&info[key], value, "{key}");
    }
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    let description = &engine.info().devices[0].description;
    let device = json!({"name": "cpu", "description": description, "dtype": "float32"});
    assert_eq!(info["devices"][0], device);
}
