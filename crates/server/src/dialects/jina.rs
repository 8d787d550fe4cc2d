//! Jina's contract for ranking. Replies have the documents' texts unless a request says otherwise.

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

use super::rerank::{self, Ranked, Ranker, Row, Text, Usage};
use super::{Address, Dialect};
use crate::failure::Failure;

pub(super) static DIALECT: Dialect = Dialect {
    addresses: &[
        Address::work("/as/jina/v1/rerank", &rerank::CONTRACT, || rerank::at(|_| Ok(&RANKER))),
        Address::work("/as/jina/rerank", &rerank::CONTRACT, || rerank::at(|_| Ok(&RANKER))),
    ],
    explain,
};

static RANKER: Ranker = Ranker { returns_documents: true, ..Ranker::usual(write, explain) };

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    object: &'a str,
    usage: Usage,
    results: Vec<Row<Text<'a>>>,
}

fn write(ranked: &Ranked<'_>) -> serde_json::Result<Vec<u8>> {
    let results = ranked.rows(|text| Text { text });
    serde_json::to_vec(&Body {
        model: ranked.model,
        object: "list",
        usage: ranked.usage(),
        results,
    })
}

fn explain(failure: &Failure) -> (StatusCode, Value) {
    (failure.status(), json!({"detail": failure.message()}))
}
