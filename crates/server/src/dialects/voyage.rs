//! Voyage's contract for ranking: `top_k` and `truncation`, and `data` in replies.

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

use super::rerank::{self, Ranked, Ranker, Row};
use super::{Address, Dialect};
use crate::failure::Failure;

pub(super) static DIALECT: Dialect = Dialect {
    addresses: &[
        Address::work("/as/voyage/v1/rerank", &rerank::CONTRACT, || rerank::at(|_| Ok(&RANKER))),
        Address::work("/as/voyage/rerank", &rerank::CONTRACT, || rerank::at(|_| Ok(&RANKER))),
    ],
    explain,
};

pub(super) static RANKER: Ranker = Ranker::usual(write, explain);

#[derive(Serialize)]
struct Body<'a> {
    object: &'a str,
    data: Vec<Row<&'a str>>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Usage {
    total_tokens: usize,
}

fn write(ranked: &Ranked<'_>) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Body {
        object: "list",
        data: ranked.rows(|text| text),
        model: ranked.model,
        usage: Usage { total_tokens: ranked.tokens },
    })
}

fn explain(failure: &Failure) -> (StatusCode, Value) {
    (failure.status(), json!({"detail": failure.message()}))
}
