//! vLLM's contract for ranking. Replies have the documents' texts unless a request says otherwise, and
//! a `top_n` of 0 is all of them. Scores are what the model's own files make of them.

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::Value;

use super::rerank::{self, Ranked, Ranker, Row, Usage};
use super::{Address, Dialect};
use crate::failure::Failure;

pub(super) static DIALECT: Dialect = Dialect {
    addresses: &[
        Address::work("/as/vllm/rerank", &rerank::CONTRACT, || rerank::at(|_| Ok(&RANKER))),
        Address::work("/as/vllm/v1/rerank", &rerank::CONTRACT, || rerank::at(|_| Ok(&RANKER))),
        Address::work("/as/vllm/v2/rerank", &rerank::CONTRACT, || rerank::at(|_| Ok(&RANKER))),
    ],
    explain,
};

static RANKER: Ranker = Ranker {
    returns_documents: true,
    none_is_all: true,
    activation: None,
    ..Ranker::usual(write, explain)
};

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    model: &'a str,
    usage: Usage,
    results: Vec<Row<Document<'a>>>,
}

#[derive(Serialize)]
struct Document<'a> {
    text: &'a str,
    /// What a document has beside its text: always `null`.
    multi_modal: Option<()>,
}

fn write(ranked: &Ranked<'_>) -> serde_json::Result<Vec<u8>> {
    let results = ranked.rows(|text| Document { text, multi_modal: None });
    serde_json::to_vec(&Body { id: ranked.id, model: ranked.model, usage: ranked.usage(), results })
}

/// OpenAI's object, with the names of vLLM's own kinds.
fn explain(failure: &Failure) -> (StatusCode, Value) {
    let kind = match failure.status().as_u16() {
        404 => "NotFoundError",
        500.. => "InternalServerError",
        _ => "BadRequestError",
    };
    rerank::numbered(failure, Some(kind))
}
