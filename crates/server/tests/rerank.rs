//! Ranking over a real connection, with real engines of tiny models, in the words of each server whose
//! clients may come. What is sent is what those clients' packages write; scores are those that
//! transformers gives the same weights.

#![expect(clippy::unwrap_used, reason = "a test says what must hold by panicking")]

mod support;

use serde_json::{Value, json};
use support::engine::{serve, tiny};
use support::{Answer, TestServer, metric, until, with};
use vecmill_server::Settings;

const QUERY: &str = "everyone";
const DOCUMENTS: [&str; 3] = ["rights and duties", "a", "everyone"];

/// What rounding and another order of sums make of scores near one.
const CLOSE: f64 = 1e-5;

/// What transformers makes of the query and a document, under `name`: scores or logits, as kept beside
/// the model.
fn expected(model: &str, name: &str, document: &str) -> Vec<f64> {
    let file = std::fs::read(tiny(model).join("expected.json")).unwrap();
    let file: Value = serde_json::from_slice(&file).unwrap();
    let cases = file["cases"].as_array().unwrap();
    let pairs = cases.iter().find(|case| case["name"] == "pairs").unwrap();
    let texts = pairs["texts"].as_array().unwrap();
    let place = texts.iter().position(|pair| *pair == json!([QUERY, document])).unwrap();
    serde_json::from_value(pairs[name][place].clone()).unwrap()
}

/// The documents' numbers by the model `bert-rerank`, under `name`.
fn numbers(name: &str) -> [f64; 3] {
    DOCUMENTS.map(|document| expected("bert-rerank", name, document)[0])
}

/// Where the documents belong.
fn best_first() -> [usize; 3] {
    let (scores, mut order) = (numbers("scores"), [0, 1, 2]);
    order.sort_by(|&one, &other| scores[other].total_cmp(&scores[one]));
    order
}

fn server() -> TestServer {
    serve(&tiny("bert-rerank"), Settings::default())
}

/// What a client asks beside `query` and the documents in `field`.
fn asked(field: &str, more: &Value) -> Value {
    let mut body = json!({"model": "m", "query": QUERY, field: DOCUMENTS});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[track_caller]
fn ok(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// Asserts that `places` has the best documents in their order, with these numbers under `name`; gives
/// what they have as documents.
#[track_caller]
fn ranked(places: &Value, name: &str, of: &str) -> Vec<Value> {
    let scores = numbers(of);
    let places = places.as_array().unwrap();
    assert!(!places.is_empty());
    let document = |(place, index): (&Value, usize)| {
        assert_eq!(place["index"], json!(index), "{places:?}");
        let score = place[name].as_f64().unwrap();
        assert!((score - scores[index]).abs() < CLOSE, "{places:?}");
        let keys = 2 + place.get("document").or(place.get("text")).into_iter().count();
        assert_eq!(place.as_object().unwrap().len(), keys, "{place}");
        place.get("document").or(place.get("text")).cloned().unwrap_or_default()
    };
    places.iter().zip(best_first()).map(document).collect()
}

/// The documents in their order, as `form` writes them.
fn texts(form: impl Fn(&'static str) -> Value) -> Vec<Value> {
    best_first().map(|index| form(DOCUMENTS[index])).into()
}

fn object(text: &str) -> Value {
    json!({ "text": text })
}

fn keys(body: &Value) -> Vec<&str> {
    body.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn tei_s_clients_are_answered() {
    let server = server();
    for (path, more, scores) in [
        ("/rerank", json!({"raw_scores": false}), "scores"),
        ("/rerank", json!({"raw_scores": true, "truncate": true}), "logits"),
        ("/rerank", json!({"truncate": null, "truncation_direction": "Right"}), "scores"),
        ("/as/tei/rerank", json!({}), "scores"),
        ("/", json!({}), "scores"),
    ] {
        let answer = server.post(path, asked("texts", &more).to_string());
        let body = ok(&answer);
        assert_eq!(body.as_array().unwrap().len(), 3);
        assert_eq!(ranked(&body, "score", scores), [Value::Null, Value::Null, Value::Null]);
        let tokens: usize = answer.header("x-compute-tokens").unwrap().parse().unwrap();
        assert!(tokens > 3 * 3, "{tokens}");
        assert_eq!(answer.header("x-compute-characters"), Some("50"));
    }
    let more = json!({"return_text": true, "top_n": 2});
    let body = ok(&server.post("/rerank", asked("texts", &more).to_string()));
    assert_eq!(ranked(&body, "score", "scores"), texts(Value::from)[..2]);
    // Of documents with the same score, the later one is first.
    let same = json!({"query": QUERY, "texts": ["a", "a", "a"]});
    let body = ok(&server.post("/rerank", same.to_string()));
    let order: Vec<_> = body.as_array().unwrap().iter().map(|it| it["index"].clone()).collect();
    assert_eq!(order, [2, 1, 0]);
}

#[test]
fn cohere_s_clients_are_answered() {
    let server = server();
    for (path, version) in [
        ("/v2/rerank", "2"),
        ("/v1/rerank", "1"),
        ("/as/cohere/v2/rerank", "2"),
        ("/as/cohere/v1/rerank", "1"),
        ("/as/cohere/rerank", "2"),
    ] {
        let body = ok(&server.post(path, asked("documents", &json!({"top_n": 3})).to_string()));
        assert_eq!(ranked(&body["results"], "relevance_score", "scores")[0], Value::Null);
        assert!(!body["id"].as_str().unwrap().is_empty());
        let meta =
            json!({"api_version": {"version": version}, "billed_units": {"search_units": 1}});
        assert_eq!(body["meta"], meta);
        if path.starts_with("/as/") {
            assert_eq!(keys(&body), ["id", "meta", "results"]);
        }
    }
    let objects = DOCUMENTS.map(|text| json!({"title": [1], "text": text}));
    let body = json!({
        "query": QUERY, "documents": objects, "top_n": 2, "rank_fields": ["text"],
        "return_documents": true, "max_chunks_per_doc": 1,
    });
    let body = ok(&server.post("/as/cohere/v1/rerank", body.to_string()));
    assert_eq!(ranked(&body["results"], "relevance_score", "scores"), texts(object)[..2]);
}

#[test]
fn jina_s_clients_are_answered() {
    let server = server();
    for (path, default) in
        [("/v1/rerank", Value::Null), ("/as/jina/v1/rerank", texts(object)[0].clone())]
    {
        let body = ok(&server.post(path, asked("documents", &json!({"top_n": 2})).to_string()));
        let documents = ranked(&body["results"], "relevance_score", "scores");
        assert_eq!((documents.len(), &documents[0]), (2, &default), "{path}");
        assert_eq!((&body["model"], &body["object"]), (&name(&server), &json!("list")));
        let tokens = &body["usage"]["total_tokens"];
        assert!(tokens.as_u64().unwrap() > 9);
        assert_eq!(&body["usage"]["prompt_tokens"], tokens);
    }
    let more = json!({"return_documents": true});
    let body = ok(&server.post("/as/jina/rerank", asked("documents", &more).to_string()));
    assert_eq!(ranked(&body["results"], "relevance_score", "scores"), texts(object));
    assert_eq!(keys(&body), ["model", "object", "results", "usage"]);
}

/// The name that replies give the model.
fn name(server: &TestServer) -> Value {
    server.get("/info").json()["served_model_name"].clone()
}

#[test]
fn voyage_s_clients_are_answered() {
    let server = server();
    for path in ["/v1/rerank", "/rerank", "/as/voyage/rerank", "/as/voyage/v1/rerank"] {
        for (top, expected) in [(json!(null), 3), (json!(2), 2)] {
            let more = json!({"top_k": top, "truncation": true});
            let body = ok(&server.post(path, asked("documents", &more).to_string()));
            assert_eq!(keys(&body), ["data", "model", "object", "usage"]);
            assert_eq!(ranked(&body["data"], "relevance_score", "scores").len(), expected);
            assert_eq!(keys(&body["usage"]), ["total_tokens"]);
        }
    }
    let more = json!({"top_k": null, "return_documents": true});
    let body = ok(&server.post("/v1/rerank", asked("documents", &more).to_string()));
    assert_eq!(ranked(&body["data"], "relevance_score", "scores"), texts(Value::from));
}

#[test]
fn vllm_s_clients_are_answered() {
    let server = server();
    let document = |text: &str| json!({"text": text, "multi_modal": null});
    for path in ["/as/vllm/rerank", "/as/vllm/v1/rerank", "/as/vllm/v2/rerank"] {
        let more = json!({"top_n": 0, "truncate_prompt_tokens": -1, "max_tokens_per_doc": 0});
        let body = ok(&server.post(path, asked("documents", &more).to_string()));
        assert_eq!(keys(&body), ["id", "model", "results", "usage"]);
        assert_eq!(ranked(&body["results"], "relevance_score", "scores"), texts(document));
    }
    let more = json!({"use_activation": false, "top_n": 1});
    let body = ok(&server.post("/as/vllm/rerank", asked("documents", &more).to_string()));
    assert_eq!(ranked(&body["results"], "relevance_score", "logits").len(), 1);
    let one = json!({"query": QUERY, "documents": DOCUMENTS[0]});
    let one = ok(&server.post("/rerank", one.to_string()));
    assert_eq!(one["results"].as_array().unwrap().len(), 1);
    // LiteLLM sends this to vLLM, Infinity and Together alike.
    let more = json!({"top_n": 3, "return_documents": true});
    let body = ok(&server.post("/rerank", asked("documents", &more).to_string()));
    assert_eq!(ranked(&body["results"], "relevance_score", "scores"), texts(object));
}

#[test]
fn infinity_s_clients_are_answered() {
    let server = server();
    for (path, more) in [
        ("/rerank", json!({"return_documents": false, "raw_scores": false})),
        ("/as/infinity/rerank", json!({})),
    ] {
        let body = ok(&server.post(path, asked("documents", &more).to_string()));
        assert_eq!(keys(&body), ["created", "id", "model", "object", "results", "usage"]);
        assert_eq!(body["object"], "rerank");
        assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
        ranked(&body["results"], "relevance_score", "scores");
    }
    let more = json!({"return_documents": true, "raw_scores": true});
    let body = ok(&server.post("/rerank", asked("documents", &more).to_string()));
    assert_eq!(ranked(&body["results"], "relevance_score", "logits"), texts(Value::from));
}

#[test]
fn what_no_field_tells_is_answered_for_all() {
    let server = server();
    let body = ok(&server.post("/v1/rerank", asked("documents", &json!({})).to_string()));
    ranked(&body["results"], "relevance_score", "scores");
    assert_eq!(body["data"], body["results"]);
    let more = json!({"top_n": 2});
    let body = ok(&server.post("/v1/rerank", asked("documents", &more).to_string()));
    assert!(body.get("data").is_none());
    let mut both = asked("documents", &json!({}));
    both["texts"] = json!(["a"]);
    let error = server.post("/rerank", both.to_string());
    let message = shared_error(&error, 400);
    assert!(message.starts_with("`texts` is TEI's name for `documents`"), "{message}");
    let message = shared_error(&server.post("/rerank", r#"{"query":"a"}"#), 400);
    assert_eq!(message, "`documents` is missing");
}

/// Asserts the form in which all that share an address read an error; gives the message.
#[track_caller]
fn shared_error(answer: &Answer, status: u16) -> String {
    let body = answer.json();
    assert_eq!(answer.status, status, "{body}");
    assert_eq!(keys(&body), ["detail", "error", "error_type", "message"]);
    let message = body["message"].as_str().unwrap();
    assert!(body["detail"] == *message && body["error"] == *message, "{body}");
    message.to_owned()
}

#[test]
fn each_server_s_mistakes_have_its_own_form() {
    let server = serve(&tiny("bert-rerank"), with(|settings| settings.max_client_batch_size = 2));
    let wrong = [
        (json!({"query": 7, "documents": ["a"]}), "query"),
        (json!({"documents": ["a"]}), "query"),
        (json!({"query": "a", "documents": ["a", {"title": "b"}]}), "documents[1]"),
        (json!({"query": "a", "documents": 5}), "documents"),
        (json!({"query": "a", "documents": ["a", "b", "c"]}), "documents"),
        (json!({"query": "a", "documents": ["a"], "top_n": -1}), "top_n"),
        (json!({"query": "a", "documents": ["a"], "top_n": 1, "top_k": 2}), "top_k"),
        (json!({"query": "a", "documents": ["a"], "instruction": "b"}), "instruction"),
        (json!({"query": "a", "documents": ["a"], "max_tokens_per_doc": 3}), "max_tokens_per_doc"),
        (json!({"query": "a", "documents": ["a"], "rank_fields": ["title"]}), "rank_fields"),
    ];
    for (body, field) in &wrong {
        let ask = |path: &str| {
            let answer = server.post(path, body.to_string());
            assert_eq!(answer.status, 400, "{path} {body} {}", answer.text());
            answer.json()
        };
        let begins = |message: &Value| {
            let message = message.as_str().unwrap();
            assert!(message.starts_with(&format!("`{field}` ")), "{body} {message}");
        };
        begins(&ask("/as/cohere/v2/rerank")["message"]);
        begins(&ask("/as/jina/rerank")["detail"]);
        begins(&ask("/as/voyage/rerank")["detail"]);
        for (path, kind) in
            [("/as/vllm/rerank", json!("BadRequestError")), ("/as/infinity/rerank", json!(null))]
        {
            let error = &ask(path)["error"];
            begins(&error["message"]);
            assert_eq!((&error["code"], &error["type"]), (&json!(400), &kind));
            assert_eq!(error["param"], *field);
        }
        let shared = ask("/v1/rerank");
        begins(shared.get("message").unwrap_or(&shared["detail"])); // Voyage's, of `top_k`
    }
    let none = r#"{"query":"a","documents":[]}"#;
    assert_eq!(server.post("/as/cohere/rerank", none).status, 400);
    let zero = r#"{"query":"a","documents":["a"],"top_n":0}"#;
    assert_eq!(server.post("/as/cohere/rerank", zero).status, 400);
    let tei = |body: &str| server.post("/rerank", body);
    tei(r#"{"query":"a","texts":[]}"#).tei_error(400, "Empty");
    tei(r#"{"query":"a","texts":["a","b","c"]}"#).tei_error(413, "Validation");
    tei(r#"{"query":"a","texts":["a",7]}"#).tei_error(422, "Validation");
    shared_error(&server.get("/rerank"), 405);
}

#[test]
fn too_long_a_pair_is_cut_or_refused() {
    let server = server();
    let long = "and be con ".repeat(100);
    let body = |more: Value| {
        let mut body = json!({"query": QUERY, "texts": ["a", long]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body.to_string()
    };
    let cut = server.post("/rerank", body(json!({})));
    assert_eq!((cut.status, cut.header("x-vecmill-truncated")), (200, Some("1")));
    let refused = server.post("/rerank", body(json!({"truncate": false})));
    let message = refused.tei_error(413, "Validation");
    assert!(message.starts_with("input 1 has "), "{message}");
}

#[test]
fn a_model_says_what_it_is_for() {
    let ranks = server();
    let embeds = serve(&tiny("bert-mean"), Settings::default());
    let classifies = serve(&tiny("bert-classify"), Settings::default());
    let (texts, documents) = (asked("texts", &json!({})), asked("documents", &json!({})));
    let (texts, documents) = (texts.to_string(), documents.to_string());

    let message = ranks.post("/embed", r#"{"inputs":"a"}"#).tei_error(424, "Backend");
    assert!(message.contains("gives scores, and vectors were asked for"), "{message}");
    let error = ranks.post("/v1/embeddings", r#"{"input":"a"}"#);
    assert_eq!(error.openai_error(400, Some("wrong_task"))["param"], "model");
    assert_eq!(ranks.post("/api/embed", r#"{"input":"a"}"#).status, 400);

    let message = embeds.post("/rerank", &texts).tei_error(424, "Backend");
    assert!(message.contains("gives vectors, and scores were asked for"), "{message}");
    embeds.post("/predict", r#"{"inputs":"a"}"#).tei_error(424, "Backend");
    shared_error(&embeds.post("/v1/rerank", &documents), 400);
    let error = embeds.post("/as/vllm/rerank", &documents);
    assert_eq!((error.status, &error.json()["error"]["code"]), (400, &json!(400)));

    let message = classifies.post("/rerank", &texts).tei_error(424, "Backend");
    assert_eq!(message, "the model tells 3 labels apart: only one with a single label can rank");
    let error = classifies.post("/as/cohere/rerank", &documents);
    assert_eq!((error.status, error.json()["message"].as_str()), (400, Some(&*message)));

    let kind = |server: &TestServer| server.get("/info").json()["model_type"].clone();
    let one = json!({"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}});
    assert_eq!(kind(&ranks), json!({ "reranker": one }));
    let labels = &kind(&classifies)["classifier"]["id2label"];
    assert_eq!(*labels, json!({"0": "entailment", "1": "neutral", "2": "contradiction"}));
}

#[test]
fn predict_tells_labels_with_their_scores() {
    let server = serve(&tiny("bert-classify"), Settings::default());
    let labels = ["entailment", "neutral", "contradiction"];
    let labelled = |name| {
        let scores = expected("bert-classify", name, "a");
        let mut all: Vec<(&str, f64)> = labels.into_iter().zip(scores).collect();
        all.sort_by(|one, other| other.1.total_cmp(&one.1));
        all
    };
    let (scaled, raw) = (labelled("scores"), labelled("logits"));
    let check = |predictions: &Value, expected: &[(&str, f64)]| {
        let predictions = predictions.as_array().unwrap();
        assert_eq!(predictions.len(), expected.len());
        for (prediction, (label, score)) in predictions.iter().zip(expected) {
            assert_eq!(prediction["label"], *label);
            assert!((prediction["score"].as_f64().unwrap() - score).abs() < CLOSE);
        }
    };
    let pair = json!([QUERY, "a"]);
    let ask = |path: &str, body: Value| ok(&server.post(path, body.to_string()));
    check(&ask("/predict", json!({"inputs": pair})), &scaled);
    check(&ask("/predict", json!({"inputs": pair, "raw_scores": true})), &raw);
    // As huggingface_hub's text_classification sends to the address itself.
    check(&ask("/", json!({"inputs": pair, "parameters": {}})), &scaled);
    let several = ask("/predict", json!({"inputs": [["a"], pair]}));
    assert_eq!(several.as_array().unwrap().len(), 2);
    check(&several[1], &scaled);
    assert_eq!(several[0], ask("/predict", json!({"inputs": "a"})));
    let wrong = server.post("/predict", r#"{"inputs":["a","b","c"]}"#);
    let message = wrong.tei_error(422, "Validation");
    assert!(message.starts_with("`inputs` must be a string, a pair"), "{message}");
    server.post("/predict", r#"{"inputs":"a","query":"b"}"#).tei_error(422, "Validation");
}

#[test]
fn scores_are_within_nought_and_one_where_the_contract_says_so() {
    // Its files say that nothing is applied.
    let server = serve(&tiny("xlm-roberta-rerank"), Settings::default());
    let best = |path: &str, field: &str| {
        let body = ok(&server.post(path, asked(field, &json!({})).to_string()));
        let place = if field == "texts" { &body[0] } else { &body["results"][0] };
        place.get("score").or(place.get("relevance_score")).unwrap().as_f64().unwrap()
    };
    let raw = best("/as/vllm/rerank", "documents");
    assert!(raw > 1.0, "{raw}");
    let scaled = 1.0 / (1.0 + (-raw).exp());
    for (path, field) in
        [("/rerank", "texts"), ("/v1/rerank", "documents"), ("/as/jina/rerank", "documents")]
    {
        assert!((best(path, field) - scaled).abs() < CLOSE, "{path}");
    }
}

#[test]
fn many_documents_are_ranked_on_any_terms_and_counted() {
    let server = server();
    let documents: Vec<String> = (0..1000).map(|n| format!("rights {n}")).collect();
    let body = json!({"query": QUERY, "documents": documents, "top_n": 10});
    let headers = ["content-type: application/json", "x-vecmill-priority: bulk"];
    let answer = server.request("POST", "/v1/rerank", &headers, body.to_string().as_bytes());
    let reply = ok(&answer);
    assert_eq!(reply["results"].as_array().unwrap().len(), 10);
    assert_eq!(reply["meta"]["billed_units"]["search_units"], 10);
    assert_eq!(
        reply["usage"]["total_tokens"].to_string(),
        answer.header("x-compute-tokens").unwrap()
    );
    assert_eq!(reply["id"], answer.header("x-request-id").unwrap());
    until(|| metric(&server, "vecmill_http_request_memory_bytes"), |held| *held < 64 << 10);
}
