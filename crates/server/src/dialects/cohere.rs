//! Cohere's contract for ranking, versions 1 and 2, which differ in what they say of themselves.
//!
//! A search, the unit that Cohere bills, is a query with up to a hundred documents.

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

use super::rerank::{self, Ranked, Ranker, Row, Text};
use super::{Address, Dialect};
use crate::failure::Failure;

pub(super) static DIALECT: Dialect = Dialect {
    addresses: &[
        Address::work("/as/cohere/v1/rerank", &rerank::CONTRACT, || rerank::at(|_| Ok(&V1))),
        Address::work("/as/cohere/v2/rerank", &rerank::CONTRACT, || rerank::at(|_| Ok(&V2))),
        Address::work("/as/cohere/rerank", &rerank::CONTRACT, || rerank::at(|_| Ok(&V2))),
    ],
    explain,
};

static V1: Ranker = Ranker::usual(|ranked| write(ranked, "1"), explain);
static V2: Ranker = Ranker::usual(|ranked| write(ranked, "2"), explain);

const DOCUMENTS_OF_A_SEARCH: usize = 100;

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    results: Vec<Row<Text<'a>>>,
    meta: Value,
}

fn write(ranked: &Ranked<'_>, version: &str) -> serde_json::Result<Vec<u8>> {
    let results = ranked.rows(|text| Text { text });
    serde_json::to_vec(&Body { id: ranked.id, results, meta: meta(ranked, version) })
}

/// What Cohere says of the request.
pub(super) fn meta(ranked: &Ranked<'_>, version: &str) -> Value {
    let searches = ranked.documents.div_ceil(DOCUMENTS_OF_A_SEARCH);
    json!({"api_version": {"version": version}, "billed_units": {"search_units": searches}})
}

fn explain(failure: &Failure) -> (StatusCode, Value) {
    (failure.status(), json!({"message": failure.message()}))
}
