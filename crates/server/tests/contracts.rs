//! The OpenAI and TEI contracts over a real connection.

mod support;

use base64::Engine as _;
use serde_json::{Value, json};
use support::{TestServer, WIDE, floats};
use vecmill_server::Settings;

fn server() -> TestServer {
    TestServer::start(Settings::default()).0
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
        assert_eq!(reply["model"], "test/fake");
        assert_eq!(reply["usage"], json!({"prompt_tokens": 7, "total_tokens": 7}));
        let data = reply["data"].as_array().unwrap();
        for (index, entry) in data.iter().enumerate() {
            assert_eq!(entry["object"], "embedding");
            assert_eq!(entry["index"], index);
            assert_eq!(floats(&entry["embedding"]).len(), 4);
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
    let reply = server.post("/v1/embeddings", r#"{"input":["wide","a"],"model":"m"}"#).json();
    assert_eq!(floats(&reply["data"][0]["embedding"]).len(), WIDE);
    let reply = server.post("/embed", r#"{"inputs":["a","wide"]}"#).json();
    assert_eq!(floats(&reply[1]).len(), WIDE);
}

#[test]
fn dimensions_are_passed_on() {
    let server = server();
    let ask = |dimensions: i64| {
        let body = json!({"input": "a", "model": "m", "dimensions": dimensions});
        server.post("/v1/embeddings", body.to_string())
    };
    assert_eq!(floats(&ask(2).json()["data"][0]["embedding"]).len(), 2);
    for wrong in [0, 5, -1] {
        assert_eq!(ask(wrong).openai_error(400, None)["param"], "dimensions");
    }
}

#[test]
fn the_served_name_can_be_chosen() {
    let name = Some("my \"model\"".to_owned());
    let (server, _) =
        TestServer::start(Settings { served_model_name: name, ..Settings::default() });
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
    let long = "a b c d e f g h i";
    let requests = [
        ("/v1/embeddings", json!({"input": [long, "ü"], "model": "m"})),
        ("/embed", json!({"inputs": [long, "ü"]})),
    ];
    for (path, body) in requests {
        let answer = server.post(path, body.to_string());
        let expected = [
            ("x-vecmill-truncated", "1"),
            ("x-compute-type", "cpu+cuda"),
            ("x-compute-time", "6"),
            ("x-compute-characters", "18"),
            ("x-compute-tokens", "11"),
            ("x-total-time", "6"),
            ("x-tokenization-time", "1"),
            ("x-queue-time", "2"),
            ("x-inference-time", "3"),
        ];
        for (name, value) in expected {
            assert_eq!(answer.header(name), Some(value), "{path} {name}");
        }
    }
}

#[test]
fn truncation_can_be_refused() {
    let settings = Settings { auto_truncate: false, ..Settings::default() };
    let (server, _) = TestServer::start(settings);
    let long = "a b c d e f g h i";
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
    let (server, _) = TestServer::start(settings);
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
    server.post("/embed", r#"{"inputs":"busy"}"#).tei_error(429, "Overloaded");
    server.post("/embed", r#"{"inputs":"broken"}"#).tei_error(424, "Backend");
    server.post("/embed", r#"{"inputs":"stopped"}"#).tei_error(503, "Unhealthy");
    server.get("/embed").tei_error(405, "Validation");
}

#[test]
fn tokenize_s_mistakes_have_tei_s_form() {
    let server = server();
    server.post("/tokenize", r#"{"inputs":[]}"#).tei_error(400, "Empty");
    let ids = server.post("/tokenize", r#"{"inputs":["a",[1]]}"#).tei_error(422, "Validation");
    assert!(ids.starts_with("`inputs[1]` must be a string"), "{ids}");
    server.post("/tokenize", r#"{"inputs":"a","prompt_name":"no"}"#).tei_error(422, "Validation");
    server.post("/tokenize", r#"{"inputs":"panic"}"#).tei_error(500, "Backend");
    let long = server.post("/tokenize", r#"{"inputs":"long"}"#).tei_error(413, "Validation");
    assert!(long.contains("more than 7 tokens"), "{long}");
    let busy = server.post("/tokenize", r#"{"inputs":"busy"}"#);
    busy.tei_error(429, "Overloaded");
    assert_eq!(busy.header("retry-after"), Some("1"));
}

#[test]
fn info_has_tei_s_fields_and_ours() {
    let info = server().get("/info").json();
    let expected = json!({
        "model_id": "test/fake",
        "model_sha": "main",
        "model_dtype": "float32",
        "model_type": {"embedding": {"pooling": "mean"}},
        "max_concurrent_requests": 512,
        "max_input_length": 8,
        "max_batch_tokens": 1024,
        "max_batch_requests": null,
        "max_client_batch_size": 2048,
        "auto_truncate": true,
        "tokenization_workers": 2,
        "sha": null,
        "docker_label": null,
        "dimensions": 4,
        "prompts": {"query": "query: "},
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&info[key], value, "{key}");
    }
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    let device = json!({"name": "cuda:0", "description": "pretended", "dtype": "float32"});
    assert_eq!(info["devices"][0], device);
}
