//! Models that classify texts and rank pairs of them, on a running engine: scores of transformers, limits,
//! errors, other tasks.

#![expect(clippy::unwrap_used, reason = "a test says what must hold by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vecmill_engine::{
    DeviceSpec, Engine, Fault, ModelRef, Request, RequestError, ScoreActivation, ScoreInput,
    ScoreRequest, Task, Truncation,
};

/// As far as scores in `f32` may be from those in `f64`.
const TOLERANCE: f64 = 1e-5;

const MODELS: [&str; 7] = [
    "bert-rerank",
    "bert-rerank-st6",
    "bert-classify",
    "roberta-rerank",
    "xlm-roberta-rerank",
    "distilbert-classify",
    "electra-classify",
];

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(model)
}

fn engine(model: &str) -> Engine {
    let builder = Engine::builder().model(ModelRef::Folder(folder(model)));
    builder.devices(vec![DeviceSpec::CPU]).cpu_threads(2).tokenization_workers(2).start().unwrap()
}

fn input(value: &Value) -> ScoreInput {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    match value.as_array() {
        Some(pair) => ScoreInput::Pair(text(&pair[0]).into(), text(&pair[1])),
        None => ScoreInput::Text(text(value)),
    }
}

fn scores(engine: &Engine, request: ScoreRequest) -> Vec<Vec<f32>> {
    let reply = engine.score_blocking(request).unwrap();
    reply.scores.into_iter().map(|score| score.scores).collect()
}

fn error(engine: &Engine, request: ScoreRequest) -> RequestError {
    engine.score_blocking(request).unwrap_err()
}

fn assert_close(found: &[Vec<f32>], expected: &Value, what: &str) {
    assert_eq!(found.len(), expected.as_array().unwrap().len(), "{what}");
    for (index, row) in found.iter().enumerate() {
        assert_eq!(row.len(), expected[index].as_array().unwrap().len(), "{what}");
        for (label, &score) in row.iter().enumerate() {
            let expected = expected[index][label].as_f64().unwrap();
            let off = (f64::from(score) - expected).abs();
            assert!(off <= TOLERANCE, "{what} {index}: {score} and not {expected}");
        }
    }
}

#[test]
fn scores_are_those_of_transformers() {
    for model in MODELS {
        let engine = engine(model);
        let expected = fs::read(folder(model).join("expected.json")).unwrap();
        let expected: Value = serde_json::from_slice(&expected).unwrap();
        let labels = expected["labels"].as_array().unwrap();
        let labels: Vec<_> = labels.iter().map(|label| label.as_str().unwrap()).collect();
        for case in expected["cases"].as_array().unwrap() {
            let what = format!("{model}, {}", case["name"]);
            let inputs: Vec<_> = case["texts"].as_array().unwrap().iter().map(input).collect();
            let request = ScoreRequest::new(inputs);
            let reply = engine.score_blocking(request.clone()).unwrap();
            assert_eq!(*reply.labels, labels, "{what}");
            for (score, ids) in reply.scores.iter().zip(case["inputs"].as_array().unwrap()) {
                assert_eq!(score.tokens, ids.as_array().unwrap().len(), "{what}");
            }
            assert!(reply.scores.iter().any(|score| score.truncated), "{what}");
            let found: Vec<_> = reply.scores.into_iter().map(|score| score.scores).collect();
            assert_close(&found, &case["scores"], &what);
            let raw = ScoreRequest { activation: Some(ScoreActivation::Identity), ..request };
            assert_close(&scores(&engine, raw), &case["logits"], &what);
        }
    }
}

#[test]
fn a_pair_scores_the_same_alone_or_among_others() {
    let engine = engine("bert-rerank");
    let documents: Vec<String> =
        (0..300).map(|n| ["and be ", "con ", "people "][n % 3].repeat(1 + n % 40)).collect();
    let together = scores(&engine, ScoreRequest::rerank("everyone has rights", &documents));
    for index in [0, 7, 119, 299] {
        let alone = ScoreRequest::rerank("everyone has rights", [&documents[index]]);
        assert_eq!(scores(&engine, alone)[0], together[index], "to the bit");
    }
    let queries = documents.iter().map(|document| {
        let query: &str = if document.starts_with("con") { "con" } else { "everyone has rights" };
        ScoreInput::Pair(query.into(), document.clone())
    });
    let mixed = scores(&engine, ScoreRequest::new(queries));
    assert_eq!(mixed[0], together[0]);
    assert_ne!(mixed[1], together[1], "another query");
}

#[test]
fn the_order_of_a_pair_counts_where_tokens_have_types() {
    let engine = engine("bert-rerank");
    let pair = |one: &str, other: &str| ScoreInput::Pair(one.into(), other.to_owned());
    let found = scores(&engine, ScoreRequest::new([pair("and", "and be"), pair("and be", "and")]));
    assert_ne!(found[0], found[1]);
}

#[test]
fn requests_that_can_t_be_answered_say_why() {
    let engine = engine("bert-rerank");
    let none: [&str; 0] = [];
    assert_eq!(error(&engine, ScoreRequest::rerank("a", none)), RequestError::NoInputs);
    let empty = ScoreRequest::new([ScoreInput::Text("a".into()), ScoreInput::Text(String::new())]);
    assert_eq!(error(&engine, empty), RequestError::EmptyInput { index: 1 });
    let empty = ScoreRequest::rerank("", ["a", ""]);
    assert_eq!(error(&engine, empty), RequestError::EmptyInput { index: 1 });
    let long = "and ".repeat(100);
    let whole = ScoreRequest {
        truncation: Truncation::Refuse,
        ..ScoreRequest::rerank("and", ["and", &long])
    };
    let refused = error(&engine, whole);
    assert!(matches!(refused, RequestError::TooManyTokens { index: 1, .. }), "{refused}");
    let unknown = ScoreRequest { model: Some("other".into()), ..ScoreRequest::rerank("a", ["b"]) };
    assert!(matches!(error(&engine, unknown), RequestError::UnknownModel { .. }));
    engine.shutdown();
    assert_eq!(error(&engine, ScoreRequest::rerank("a", ["b"])), RequestError::Stopped);
}

#[test]
fn a_model_is_asked_for_what_it_is_for() {
    let engine = engine("bert-classify");
    let refused = engine.embed_blocking(Request::new(["and"])).unwrap_err();
    assert_eq!(refused.fault(), Fault::Caller);
    let RequestError::WrongTask { does: "scores", asked: "vectors", .. } = &refused else {
        panic!("{refused}")
    };
    assert!(refused.to_string().contains("bert-classify"), "{refused}");
    let Task::Score { labels, activation } = &engine.info().task else { panic!() };
    assert_eq!((labels.len(), *activation), (3, ScoreActivation::Softmax));

    let beside = engine.load(ModelRef::Folder(folder("bert-mean"))).unwrap();
    let tasks: Vec<_> = engine.models().into_iter().map(|model| model.task).collect();
    assert!(matches!(tasks.as_slice(), [Some(Task::Score { .. }), Some(Task::Embed)]), "{tasks:?}");
    let refused = error(
        &engine,
        ScoreRequest { model: Some(beside.clone()), ..ScoreRequest::rerank("and", ["be"]) },
    );
    assert!(matches!(refused, RequestError::WrongTask { does: "vectors", .. }), "{refused}");
    let embedded = engine.embed_blocking(Request { model: Some(beside), ..Request::new(["and"]) });
    assert_eq!(embedded.unwrap().embeddings[0].vector.len(), 32);
    let reranker = engine.load(ModelRef::Folder(folder("bert-rerank"))).unwrap();
    let request = ScoreRequest { model: Some(reranker), ..ScoreRequest::rerank("and", ["be"]) };
    assert_eq!(scores(&engine, request)[0].len(), 1);
}

#[test]
fn scores_that_nobody_waits_for_are_given_up() {
    let engine = engine("bert-rerank");
    let documents = vec!["and be con ".repeat(20); 2000];
    drop(engine.score(ScoreRequest::rerank("and", documents)));
    assert_eq!(scores(&engine, ScoreRequest::rerank("and", ["be"])).len(), 1);
    engine.shutdown();
}
