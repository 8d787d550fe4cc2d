//! What clients really send, to a real engine over a real connection.
//!
//! The requests are those that the clients' own packages wrote, taken down byte by byte:
//! openai 3.57.0, langchain-openai 1.7.4, huggingface_hub 1.33.0 and 2.4.0, langchain-community
//! 0.4.2, llama-index-embeddings-text-embeddings-inference 0.6.0, huggingface-api-haystack 3.1.0
//! and tei-client 0.2.4 (all of November 2026).

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests say what must hold by panicking, their helpers too"
)]

mod support;

use serde_json::{Value, json};
use support::engine::{cosine, damage_word, length, prompted, serve, tiny, vector};
use support::{Answer, TestServer};
use vecmill_server::Settings;

fn server() -> TestServer {
    serve(&tiny("bert-mean"), Settings::default())
}

/// Sends `field` beside a text that every route takes.
fn ask(server: &TestServer, path: &str, field: &str, value: &Value) -> Answer {
    let mut body = texts(path, "be con");
    body[field] = value.clone();
    server.post(path, body.to_string())
}

fn texts(path: &str, text: &str) -> Value {
    match path {
        "/v1/embeddings" | "/embeddings" | "/api/embed" => json!({"input": text}),
        "/as/tei/rerank" => json!({"query": text, "texts": [text]}),
        _ if path.ends_with("/rerank") => json!({"query": text, "documents": [text]}),
        _ => json!({"inputs": text}),
    }
}

/// The field that an error is about, which its message names too.
#[track_caller]
fn blamed(answer: &Answer) -> String {
    assert!((400..500).contains(&answer.status), "{} {}", answer.status, answer.text());
    let body = answer.json();
    let words = [&body["error"]["message"], &body["error"], &body["message"], &body["detail"]];
    let message = words.into_iter().find_map(Value::as_str).unwrap();
    message.split('`').nth(1).unwrap_or_else(|| panic!("{message}")).to_owned()
}

#[test]
fn openai_s_clients_are_answered() {
    let server = server();
    for body in [
        r#"{"model":"m","input":"hello","encoding_format":"base64"}"#,
        r#"{"model":"text-embedding-ada-002","input":["a"],"encoding_format":"base64"}"#,
        r#"{"model":"text-embedding-3-small","input":"a","encoding_format":"float"}"#,
        r#"{"input":["a"],"encoding_format":"float"}"#, // a vector database's, without a model
    ] {
        let headers = [
            "accept-encoding: gzip, deflate",
            "accept: application/json",
            "content-type: application/json",
            "authorization: Bearer none",
            "x-stainless-async: false",
            "x-stainless-retry-count: 0",
            "x-stainless-read-timeout: 600",
        ];
        let answer = server.request("POST", "/v1/embeddings", &headers, body.as_bytes());
        assert_eq!(answer.status, 200, "{body} {}", answer.text());
        assert_eq!(answer.header("x-vecmill-warning"), None);
        let reply = answer.json();
        let coded = reply["data"][0]["embedding"].is_string();
        assert_eq!(coded, body.contains("base64"));
        assert!(reply["usage"]["total_tokens"].as_u64().unwrap() > 2);
    }
}

#[test]
fn hugging_face_s_clients_are_answered_at_the_address_itself() {
    let server = server();
    let expected = vector(&server.post("/embed", r#"{"inputs":"hello"}"#));
    for body in [
        r#"{"inputs":"hello"}"#,
        r#"{"inputs":["hello","b"],"normalize":true,"truncate":true,"truncation_direction":"Left","encoding_format":"float"}"#,
        r#"{"inputs": ["hello", "b"], "options": {"wait_for_model": true, "use_cache": true}}"#,
        r#"{"inputs":["hello"],"parameters":{}}"#,
    ] {
        let headers =
            ["accept: */*", "content-type: application/json", "x-amzn-trace-id: f8bdece0"];
        let answer = server.request("POST", "/", &headers, body.as_bytes());
        assert_eq!(vector(&answer), expected, "{body}");
    }
    let unscaled = vector(&server.post("/", r#"{"inputs":"a","normalize":false,"truncate":true}"#));
    let scaled = vector(&server.post("/", r#"{"inputs":"a","normalize":true,"dimensions":4}"#));
    assert!((length(&scaled) - 1.0).abs() < 1e-5 && scaled.len() == 4 && unscaled.len() == 32);

    // In the words that these clients read.
    server.post("/", r#"{"inputs":[]}"#).tei_error(400, "Empty");
    server.post("/", "{").tei_error(400, "Validation");
    let similarity = r#"{"inputs":{"source_sentence":"a","sentences":["b"]},"parameters":{}}"#;
    assert_eq!(blamed(&server.post("/", similarity)), "inputs");
    assert_eq!(server.get("/").status, 200);
    server.request("DELETE", "/", &[], b"").tei_error(405, "Validation");
}

#[test]
fn tei_s_clients_are_answered() {
    let folder = prompted(&json!({"query": "and ", "passage": ""}));
    let server = serve(folder.path(), Settings::default());
    let expected = vector(&server.post("/embed", r#"{"inputs":"a"}"#));
    for body in [
        r#"{"inputs":["a","b"],"truncate":true}"#,
        r#"{"inputs":["a"],"normalize":true,"truncate":false,"truncation_direction":"Right","prompt_name":null}"#,
    ] {
        assert_eq!(vector(&server.post("/embed", body)), expected, "{body}");
    }
    // tei-client learns the prompts from an error.
    let body = r#"{"inputs":"hello","add_special_tokens":false,"prompt_name":"$NOT_EXISTING_PROMPT_NAME$"}"#;
    for path in ["/tokenize", "/embed", "/"] {
        let message = server.post(path, body.replace(",\"add_special_tokens\":false", ""));
        let message = message.tei_error(422, "Validation");
        assert!(message.ends_with(r#"Available prompts: ["passage", "query"]"#), "{message}");
    }
    assert_eq!(server.get("/info").json()["model_type"]["embedding"]["pooling"], "mean");
    let last = serve(&tiny("bert-lasttoken"), Settings::default()).get("/info").json();
    assert_eq!(last["model_type"]["embedding"]["pooling"], "last_token");
}

/// A value that a field works with.
fn example(field: &str) -> Value {
    match field {
        "input" | "inputs" | "query" | "model" | "prompt" => json!("be con"),
        "texts" | "documents" => json!(["be con", "and"]),
        "top_n" | "top_k" => json!(1.0),
        "max_tokens_per_query" | "max_tokens_per_doc" => json!(0),
        "prompt_name" => json!("query"),
        "input_type" => json!("search_document"),
        "task" => json!("retrieval.passage"),
        "truncate" => json!("END"),
        "truncation_direction" | "truncation_side" => json!("right"),
        "truncate_prompt_tokens" => json!(-1),
        "max_tokens" => json!(1000.0),
        "embd_normalize" => json!(2),
        "dimensions" | "output_dimension" => json!(8.0),
        "encoding_format" => json!("float"),
        "priority" => json!(1),
        "options" => json!({"num_ctx": 2048, "temperature": 0.8, "mirostat": null}),
        "truncation" | "normalize" | "normalized" | "use_activation" | "add_special_tokens"
        | "raw_scores" | "return_documents" | "return_text" => json!(true),
        other => panic!("{other} is in the document: it needs an example here"),
    }
}

#[test]
fn every_field_does_on_every_route_what_the_document_says() {
    let folder = prompted(&json!({"query": "and ", "passage": ""}));
    let embeds = serve(folder.path(), Settings::default());
    let ranks = serve(&tiny("bert-rerank"), Settings::default());
    let routes = [
        (&embeds, "/v1/embeddings", 0),
        (&embeds, "/embeddings", 0),
        (&embeds, "/embed", 1),
        (&embeds, "/", 1),
        (&embeds, "/tokenize", 2),
        (&ranks, "/predict", 3),
        (&ranks, "/as/tei/rerank", 4),
        (&embeds, "/api/embed", 5),
        (&ranks, "/rerank", 6),
        (&ranks, "/as/cohere/v2/rerank", 6),
        (&ranks, "/as/jina/rerank", 6),
        (&ranks, "/as/voyage/rerank", 6),
        (&ranks, "/as/vllm/rerank", 6),
        (&ranks, "/as/infinity/rerank", 6),
    ];
    let document = include_str!("../../../docs/clients.md");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let mut fields = 0;
    for (field, rest) in rows.filter(|(_, rest)| rest.split('|').count() == 10) {
        let cells: Vec<&str> = rest.split('|').skip(2).map(str::trim).collect();
        fields += 1;
        for (server, path, column) in routes {
            let cell = cells[column];
            // Both at a shared address is another mistake.
            if path == "/rerank" && field == "texts" {
                continue;
            }
            let senseless = match field {
                "options" => json!(["never heard of"]),
                _ => json!({"never": ["heard of"]}),
            };
            let senseless = ask(server, path, field, &senseless);
            let null = ask(server, path, field, &Value::Null).status;
            let accepted = |value: &Value| ask(server, path, field, value).status == 200;
            if cell == "no effect" {
                assert_eq!((senseless.status, null), (200, 200), "{field} on {path}");
                continue;
            }
            assert_eq!(blamed(&senseless), field, "{path}");
            // Without texts, Ollama loads the model and is content.
            let needed = !texts(path, "")[field].is_null() && path != "/api/embed";
            assert_eq!(null == 200, !needed, "{field} on {path}");
            if cell == "works" {
                assert!(accepted(&example(field)), "{field} on {path}");
            } else if let Some(values) = cell.strip_prefix("only ") {
                for value in values.split(", ").map(|value| value.trim_matches('`')) {
                    let value = serde_json::from_str(value).unwrap();
                    assert!(accepted(&value), "{field} {value} on {path}");
                }
            } else {
                assert_eq!(cell, "refused", "{field}");
                for value in [json!("a"), json!(["a"]), json!(true), json!(1)] {
                    assert_eq!(blamed(&ask(server, path, field, &value)), field, "{path}");
                }
            }
        }
        let known_to_nobody = ask(&embeds, "/v1/embeddings", &format!("{field}_x"), &json!({}));
        assert_eq!(known_to_nobody.status, 200);
    }
    assert!(fields > 60, "{fields}");
}

#[test]
fn fields_of_other_servers_decide_on_vectors() {
    let folder = prompted(&json!({"query": "and ", "passage": ""}));
    let server = serve(folder.path(), Settings::default());
    for path in ["/v1/embeddings", "/embed", "/"] {
        let with = |field: &str, value: Value| vector(&ask(&server, path, field, &value));
        let plain = vector(&server.post(path, texts(path, "be con").to_string()));
        let prompted = vector(&server.post(path, texts(path, "and be con").to_string()));
        assert_ne!(plain, prompted);
        for (field, value) in [
            ("prompt_name", json!("query")),
            ("prompt", json!("and ")),
            ("input_type", json!("query")),
            ("input_type", json!("search_query")),
            ("task", json!("retrieval.query")),
        ] {
            assert_eq!(with(field, value.clone()), prompted, "{path} {field} {value}");
        }
        for value in ["document", "passage", "search_document", "classification"] {
            assert_eq!(with("input_type", json!(value)), plain, "{path} {value}");
        }
        for (field, value) in [
            ("normalize", json!(false)),
            ("normalized", json!(false)),
            ("use_activation", json!(false)),
            ("embd_normalize", json!(-1)),
        ] {
            let long = with(field, value);
            assert!((length(&long) - 1.0).abs() > 0.01, "{path} {field}");
            assert!(cosine(&long, &plain) > 0.999_99);
        }
        for field in ["dimensions", "output_dimension"] {
            assert_eq!(with(field, json!(8.0)).len(), 8, "{path} {field}");
            for wrong in [json!(0), json!(33), json!(8.5), json!("8"), json!(1e30)] {
                assert_eq!(blamed(&ask(&server, path, field, &wrong)), field, "{wrong}");
            }
        }
    }
}

#[test]
fn a_request_decides_what_is_cut_and_where() {
    let long = "and be con ".repeat(100);
    for auto_truncate in [true, false] {
        let settings = Settings { auto_truncate, ..Settings::default() };
        let server = serve(&tiny("bert-mean"), settings);
        for path in ["/v1/embeddings", "/embed", "/"] {
            let ask = |fields: Value| {
                let mut body = texts(path, &long);
                let fields = fields.as_object().unwrap().clone();
                body.as_object_mut().unwrap().extend(fields);
                server.post(path, body.to_string())
            };
            let end = vector(&ask(json!({"truncate": true})));
            let start = vector(&ask(json!({"truncate": true, "truncation_direction": "left"})));
            assert_ne!(start, end);
            for fields in [
                json!({"truncate": "END"}),
                json!({"truncation": true}),
                json!({"truncate_prompt_tokens": -1}),
                json!({"truncate_prompt_tokens": 160}),
            ] {
                assert_eq!(vector(&ask(fields.clone())), end, "{path} {fields}");
            }
            for fields in [
                json!({"truncate": "START"}),
                json!({"truncation": true, "truncation_side": "left"}),
            ] {
                assert_eq!(vector(&ask(fields.clone())), start, "{path} {fields}");
            }
            for fields in [
                json!({"truncate": false}),
                json!({"truncate": "NONE"}),
                json!({"truncation": false}),
            ] {
                let refused = ask(fields.clone());
                assert!((400..500).contains(&refused.status), "{path} {fields}");
                assert!(refused.text().contains("input 0 has "), "{}", refused.text());
            }
            for field in ["truncate_prompt_tokens", "max_tokens"] {
                assert_eq!(blamed(&ask(json!({field: 10}))), field, "{path}");
            }
        }
    }
}

#[test]
fn words_that_contradict_each_other_are_both_named() {
    let server = server();
    for (body, field, other) in [
        (json!({"dimensions": 8, "output_dimension": 4}), "output_dimension", "dimensions"),
        (json!({"normalize": true, "normalized": false}), "normalized", "normalize"),
        (json!({"truncate": false, "truncation": true}), "truncation", "truncate"),
        (
            json!({"truncate": "START", "truncation_direction": "right"}),
            "truncation_direction",
            "truncate",
        ),
        (json!({"prompt": "a", "prompt_name": "b"}), "prompt", "prompt_name"),
    ] {
        for path in ["/v1/embeddings", "/embed", "/"] {
            let mut body = body.clone();
            body.as_object_mut().unwrap().extend(texts(path, "a").as_object().unwrap().clone());
            let answer = server.post(path, body.to_string());
            assert_eq!(blamed(&answer), field);
            assert!(answer.text().contains(&format!("contradicts `{other}`")), "{}", answer.text());
        }
    }
    let agreeing = r#"{"input":"a","dimensions":8,"output_dimension":8.0}"#;
    assert_eq!(vector(&server.post("/v1/embeddings", agreeing)).len(), 8);
}

#[test]
fn json_s_corners_have_decided_answers() {
    let server = server();
    let mark = "\u{feff}";
    for path in ["/v1/embeddings", "/embed", "/", "/tokenize"] {
        let name = if path == "/v1/embeddings" { "input" } else { "inputs" };
        let post = |rest: &str| server.post(path, format!(r#"{{"{name}":"a"{rest}}}"#));
        let good = server.post(path, format!("{mark}{{\"{name}\":\"a\"}}"));
        assert_eq!(good.status, 200, "a byte order mark: {}", good.text());
        for harmless in [
            r#","unheard":{"deep":[1e999,"\ud800"]},"unheard":2"#.to_owned(),
            format!(r#","unheard":{}1{}"#, "[".repeat(100_000), "]".repeat(100_000)),
        ] {
            assert_eq!(post(&harmless).status, 200, "{path}");
        }
        for (rest, field) in [
            (format!(r#","{name}":"b""#), name),
            (r#","prompt_name":null,"prompt_name":"b""#.to_owned(), "prompt_name"),
            (r#","prompt_name":"\ud800""#.to_owned(), "prompt_name"),
        ] {
            assert_eq!(blamed(&post(&rest)), field, "{path} {rest}");
        }
        for (body, word) in [
            (format!(r#"{{"{name}":"a","x":NaN}}"#), "NaN at line 1 column "),
            (format!(r#"{{"{name}":"a","x":-Infinity}}"#), "-Infinity at line 1"),
            (format!("{{\u{a0}\"{name}\":\"a\"}}"), "U+00A0 (a no-break space)"),
            (format!("{mark}{mark}{{\"{name}\":\"a\"}}"), "U+FEFF (a byte order mark)"),
            (format!("{{\"{name}\":\u{200b}\"a\"}}"), "U+200B (a zero-width space)"),
        ] {
            let answer = server.post(path, &body);
            assert_eq!(answer.status, 400);
            assert!(answer.text().contains(word), "{body} {}", answer.text());
        }
        let utf16: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(server.post(path, utf16).text().contains("UTF-16"));
        let lone = format!(r#"{{"{name}":["a","\ud800"]}}"#);
        assert_eq!(blamed(&server.post(path, lone)), format!("{name}[1]"));
        let number = format!(r#"{{"{name}":["a",1e400]}}"#);
        assert_eq!(blamed(&server.post(path, number)), format!("{name}[1]"));
    }
}

#[test]
fn an_error_that_is_one_input_s_names_it() {
    let server = server();
    let long = "and be con ".repeat(100);
    for (inputs, index) in [
        (json!(["a", "b", ""]), 2),
        (json!([[2, 5, 3], [2, 999, 3]]), 1),
        (json!([[2, 5, 3], []]), 1),
        (json!(["a", long]), 1),
    ] {
        let body = json!({"input": inputs, "truncate": false}).to_string();
        let answer = server.post("/v1/embeddings", body);
        let error = answer.openai_error(400, answer.json()["error"]["code"].as_str());
        assert_eq!(error["param"], format!("input[{index}]"), "{error}");
        let named = format!("input {index} ");
        assert!(error["message"].as_str().unwrap().starts_with(&named), "{error}");
        for path in ["/embed", "/"] {
            let answer =
                server.post(path, json!({"inputs": inputs, "truncate": false}).to_string());
            assert!(answer.json()["error"].as_str().unwrap().starts_with(&named), "{path}");
        }
    }
}

#[test]
fn a_vector_that_is_no_number_names_its_input() {
    let folder = prompted(&json!({}));
    damage_word(folder.path(), "con");
    let server = serve(folder.path(), Settings::default());
    let error = server.post("/v1/embeddings", r#"{"input":["a","be con","b"]}"#);
    let error = error.openai_error(500, Some("vector_not_finite"));
    assert_eq!(error["param"], "input[1]");
    for path in ["/embed", "/"] {
        let message = server.post(path, r#"{"inputs":["a","b","be con"]}"#);
        let message = message.tei_error(424, "Backend");
        assert!(message.starts_with("input 2"), "{message}");
    }
    assert_eq!(server.post("/embed", r#"{"inputs":["a","b"]}"#).status, 200);
}

#[test]
fn a_long_name_of_a_prompt_is_not_repeated() {
    let server = server();
    let answer = ask(&server, "/v1/embeddings", "prompt_name", &json!("secret ".repeat(10_000)));
    assert_eq!(answer.openai_error(400, None)["param"], "prompt_name");
    assert!(answer.body.len() < 500);
}
