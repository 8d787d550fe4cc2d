//! Addresses at which several servers rank, and how a request tells which of them it means: by its
//! fields, never by who sends it.
//!
//! | a body with | means |
//! |---|---|
//! | `texts` | TEI |
//! | `documents`, `raw_scores` | Infinity |
//! | `documents`, `top_k` or `truncation`, even `null` | Voyage, whose client always sends both |
//! | `documents` alone or with other fields | Cohere, Jina, vLLM or Voyage |
//!
//! The last are answered with what the clients of all four read: each field is the one of the server
//! that has it. A client that fails on that has an address of its own, `/as/` and the server's name.
//! What fails before a body is read is said in the words of all of them, too.

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::Value;

use super::cohere::meta;
use super::rerank::{self, Ranked, Ranker, Row, Text, Usage};
use super::{Address, Dialect, infinity, tei, voyage};
use crate::failure::Failure;
use crate::json::object::{Object, wrong};

pub(super) static DIALECT: Dialect = Dialect {
    addresses: &[
        Address::work("/rerank", &rerank::CONTRACT, || rerank::at(|sent| meant(sent, &V1))),
        Address::work("/v1/rerank", &rerank::CONTRACT, || rerank::at(|sent| meant(sent, &V1))),
        Address::work("/v2/rerank", &rerank::CONTRACT, || rerank::at(|sent| meant(sent, &V2))),
    ],
    explain,
};

static V1: Ranker =
    Ranker { none_is_all: true, ..Ranker::usual(|ranked| write(ranked, "1"), explain) };
static V2: Ranker =
    Ranker { none_is_all: true, ..Ranker::usual(|ranked| write(ranked, "2"), explain) };

/// Whose request it is, or `any`'s.
fn meant(sent: &Object<'_>, any: &'static Ranker) -> Result<&'static Ranker, Failure> {
    let has = |name| sent.field(name).sent().is_some();
    match (has("texts"), has("documents")) {
        (true, true) => Err(wrong("texts", "is TEI's name for `documents`: send one of the two")),
        (true, false) => Ok(&tei::rerank::RANKER),
        (false, _) if sent.mentions("raw_scores") => Ok(&infinity::RANKER),
        (false, _) if ["top_k", "truncation"].iter().any(|it| sent.mentions(it)) => {
            Ok(&voyage::RANKER)
        }
        (false, _) => Ok(any),
    }
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    object: &'a str,
    model: &'a str,
    results: Vec<Row<Text<'a>>>,
    /// As Voyage's clients read it, of which one that sends `top_n` is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Vec<Row<&'a str>>>,
    usage: Usage,
    meta: Value,
}

fn write(ranked: &Ranked<'_>, version: &str) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Body {
        id: ranked.id,
        object: "list",
        model: ranked.model,
        results: ranked.rows(|text| Text { text }),
        data: (!ranked.counted).then(|| ranked.rows(|text| text)),
        usage: ranked.usage(),
        meta: meta(ranked, version),
    })
}

/// TEI's two fields, Cohere's `message`, and the `detail` of Jina and Voyage.
fn explain(failure: &Failure) -> (StatusCode, Value) {
    let (_, mut body) = tei::explain(failure);
    body["message"] = body["error"].clone();
    body["detail"] = body["error"].clone();
    (failure.status(), body)
}
