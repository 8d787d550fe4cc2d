//! Token ids in place of text, the model's own and others', with a real engine.

#![expect(clippy::unwrap_used, reason = "a test says what must hold by panicking")]

mod support;

use serde_json::json;
use support::engine::{cosine, serve, tiny, vector};
use support::{Answer, TestServer};
use vecmill_server::{Settings, TokenInputs};

const TEXT: &str = "Hello world";
/// What OpenAI's tiktoken 0.14 (cl100k_base) makes of it.
const OPENAI: [u32; 2] = [9906, 1917];

fn server(token_inputs: TokenInputs) -> TestServer {
    serve(&tiny("bert-mean"), Settings { token_inputs, ..Settings::default() })
}

fn openai(server: &TestServer, input: &serde_json::Value) -> Answer {
    server.post("/v1/embeddings", json!({"input": input, "model": "m"}).to_string())
}

fn tei(server: &TestServer, inputs: &serde_json::Value) -> Answer {
    server.post("/embed", json!({ "inputs": inputs }).to_string())
}

/// The model's own ids of a text.
fn own_ids(server: &TestServer, text: &str) -> Vec<u64> {
    let tokens = server.post("/tokenize", json!({"inputs": text}).to_string()).json();
    tokens[0].as_array().unwrap().iter().map(|token| token["id"].as_u64().unwrap()).collect()
}

#[test]
fn the_model_s_own_ids_are_used_and_others_are_doubted() {
    let server = server(TokenInputs::Model);
    let own = own_ids(&server, TEXT);
    for ask in [openai, tei] {
        let text = ask(&server, &json!(TEXT));
        let ids = ask(&server, &json!([own]));
        assert_eq!(vector(&ids), vector(&text));
        assert_eq!(ids.header("x-vecmill-warning"), None);
        assert_eq!(text.header("x-vecmill-warning"), None);

        let doubtful = ask(&server, &json!([own, own[1..]]));
        assert_eq!(doubtful.status, 200);
        let warning = doubtful.header("x-vecmill-warning").unwrap();
        assert!(warning.starts_with("input 1 is probably not the model's own"), "{warning}");
        assert!(warning.ends_with(", 2"), "{warning}"); // [CLS]
    }
}

#[test]
fn an_id_that_the_model_has_not_names_the_cause_and_the_way_out() {
    let server = server(TokenInputs::Model);
    let answer = openai(&server, &json!([[2, 5, 3], OPENAI]));
    let error = answer.openai_error(400, None);
    assert_eq!(error["param"], "input[1]");
    let message = error["message"].as_str().unwrap();
    for part in [
        "input 1 has token id 9906",
        "check_embedding_ctx_length=False",
        "--token-inputs cl100k_base",
    ] {
        assert!(message.contains(part), "{message}");
    }
    tei(&server, &json!([OPENAI])).tei_error(422, "Tokenizer");
}

#[test]
fn ids_can_be_refused() {
    let server = server(TokenInputs::Refuse);
    let error = openai(&server, &json!(["a", [2, 5, 3]])).openai_error(400, None);
    assert_eq!(error["param"], "input[1]");
    assert!(error["message"].as_str().unwrap().contains("check_embedding_ctx_length=False"));
    assert_eq!(openai(&server, &json!([2, 5, 3])).openai_error(400, None)["param"], "input[0]");
    let message = tei(&server, &json!([[2, 5, 3]])).tei_error(422, "Validation");
    assert!(message.starts_with("`inputs[0]` is token ids"), "{message}");
    assert_eq!(openai(&server, &json!(TEXT)).status, 200);
}

#[test]
fn openai_s_ids_are_the_text_that_they_stand_for() {
    let server = server(TokenInputs::Cl100kBase);
    let text = vector(&openai(&server, &json!(TEXT)));
    let langchain = format!(
        r#"{{"model":"text-embedding-3-small","input":[{OPENAI:?},[43063]],"encoding_format":"float"}}"#
    );
    let answer = server.post("/v1/embeddings", langchain);
    assert_eq!(vector(&answer), text);
    assert_eq!(answer.header("x-vecmill-warning"), None);
    assert_eq!(vector(&openai(&server, &json!(OPENAI))), text);
    let chinese = vector(&openai(&server, &json!([57668, 53901, 3922, 3574, 244, 98220])));
    assert_eq!(chinese, vector(&openai(&server, &json!("你好，世界"))));
    assert!(cosine(&chinese, &text) < 0.999);

    // A character in halves: what is left of each becomes U+FFFD.
    let half = vector(&openai(&server, &json!([57668, 53901, 3922, 3574])));
    assert_eq!(half, vector(&openai(&server, &json!("你好，\u{fffd}"))));

    let error = openai(&server, &json!([[9906], [100_256]])).openai_error(400, None);
    assert_eq!(error["param"], "input[1]");
    assert!(error["message"].as_str().unwrap().contains("100256"));
    assert_eq!(openai(&server, &json!([[]])).openai_error(400, None)["param"], "input[0]");

    // TEI's routes take the model's own.
    let own = own_ids(&server, TEXT);
    assert_eq!(vector(&tei(&server, &json!([own]))), vector(&tei(&server, &json!(TEXT))));
}

#[test]
fn ids_stand_for_no_more_text_than_a_body_may_have() {
    let settings = Settings {
        token_inputs: TokenInputs::Cl100kBase,
        payload_limit: 2000,
        ..Settings::default()
    };
    let server = serve(&tiny("bert-mean"), settings);
    let spaces = json!([[9906], vec![58_040; 40]]); // 128 spaces each
    let error = openai(&server, &spaces).openai_error(400, None);
    assert_eq!(error["param"], "input[1]");
    assert!(error["message"].as_str().unwrap().contains("2000 bytes"));
}
