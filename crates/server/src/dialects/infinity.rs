//! Infinity's contract for ranking: documents in replies are plain strings.

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::Value;

use super::rerank::{self, Ranked, Ranker, Row, Usage};
use super::{Address, Dialect};
use crate::failure::Failure;

pub(super) static DIALECT: Dialect = Dialect {
    addresses: &[
        Address::work("/as/infinity/rerank", &rerank::CONTRACT, || rerank::at(|_| Ok(&RANKER))),
        Address::work("/as/infinity/v1/rerank", &rerank::CONTRACT, || rerank::at(|_| Ok(&RANKER))),
    ],
    explain,
};

pub(super) static RANKER: Ranker = Ranker::usual(write, explain);

#[derive(Serialize)]
struct Body<'a> {
    object: &'a str,
    results: Vec<Row<&'a str>>,
    model: &'a str,
    usage: Usage,
    id: &'a str,
    created: u64,
}

fn write(ranked: &Ranked<'_>) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Body {
        object: "rerank",
        results: ranked.rows(|text| text),
        model: ranked.model,
        usage: ranked.usage(),
        id: ranked.id,
        created: ranked.created,
    })
}

fn explain(failure: &Failure) -> (StatusCode, Value) {
    rerank::numbered(failure, None)
}
