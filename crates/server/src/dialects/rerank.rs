//! The work that dialects share which rank: a [`Ranker`] is how one of them differs. Addresses at
//! which several of them are asked are in [`shared`](super::shared).
//!
//! What one of them takes, all take ([`ranking`](crate::json::ranking)). They differ in what is so
//! unless a request says otherwise, in their replies and in their words for failures. One model
//! scores each document beside the query, so a document's score doesn't depend on the others.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Extension;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{MethodRouter, post};
use serde::Serialize;
use serde_json::{Value, json};
use vecmill_engine::{ScoreActivation, ScoreInput, ScoreReply, Task};

use super::call::Call;
use super::openai;
use crate::app::App;
use crate::failure::{Explain, Failure};
use crate::json::known::{WORKS, refused};
use crate::json::object::{Contract, Object};
use crate::json::options::WaitingTerms;
use crate::json::ranking::{Ranking, ranking};
use crate::loading::Model;

/// How a server ranks.
pub(super) struct Ranker {
    pub(super) contract: &'static Contract,
    /// Whether replies have the documents' texts unless a request says otherwise.
    pub(super) returns_documents: bool,
    /// Whether a count of 0 wants all documents.
    pub(super) none_is_all: bool,
    /// Whether of documents with the same score the later one comes first.
    pub(super) later_first: bool,
    /// What is applied to scores unless a request wants them raw; `None` is what the model's files say.
    pub(super) activation: Option<ScoreActivation>,
    /// The body of a reply.
    pub(super) write: fn(&Ranked<'_>) -> serde_json::Result<Vec<u8>>,
    pub(super) explain: Explain,
}

/// What most contracts for ranking take.
pub(super) static CONTRACT: Contract = Contract {
    inputs: "documents",
    own: &[
        (&["documents", "model"], WORKS),
        (&["texts"], refused("is TEI's name for `documents`: send one of the two")),
    ],
    ..Contract::SCORES
};

impl Ranker {
    /// What most do.
    pub(super) const fn usual(
        write: fn(&Ranked<'_>) -> serde_json::Result<Vec<u8>>,
        explain: Explain,
    ) -> Self {
        Self {
            contract: &CONTRACT,
            returns_documents: false,
            none_is_all: false,
            later_first: false,
            activation: Some(ScoreActivation::Sigmoid),
            write,
            explain,
        }
    }
}

/// Whose request it is, by what was sent.
pub(super) type Meant = fn(&Object<'_>) -> Result<&'static Ranker, Failure>;

/// What answers at an address for ranking.
pub(super) fn at(meant: Meant) -> MethodRouter<Arc<App>> {
    post(rerank).layer(Extension(meant))
}

pub(super) async fn rerank(
    model: Model,
    terms: WaitingTerms,
    Extension(meant): Extension<Meant>,
    call: Call,
) -> Result<Response, Failure> {
    let (info, settings) = (model.engine.info(), &call.app.settings);
    let sent = Object::split(&call.body, call.contract)?;
    let ranker = meant(&sent)?;
    let asked = sent.under(ranker.contract);
    let asked = asked.and_then(|object| ranking(&object, ranker.none_is_all, info, settings));
    let answer = async { ranker.answer(&model, terms, asked?, call).await };
    Ok(answer.await.unwrap_or_else(|failure| failure.worded(ranker.explain)))
}

impl Ranker {
    async fn answer(
        &'static self,
        model: &Model,
        terms: WaitingTerms,
        asked: Ranking,
        call: Call,
    ) -> Result<Response, Failure> {
        if let Task::Score { labels, .. } = &model.engine.info().task
            && labels.len() != 1
        {
            return Err(Failure::ManyLabels { labels: labels.len() });
        }
        let Ranking { query, documents, top, returns_documents, scoring } = asked;
        let query: Arc<str> = query.into();
        let pair = |document: &String| ScoreInput::Pair(Arc::clone(&query), document.clone());
        let pairs = documents.iter().map(pair).collect();
        let name = call.app.model_name(model).to_owned();
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let id = call.id.clone();
        let returns = returns_documents.unwrap_or(self.returns_documents);
        let write = move |reply: &ScoreReply| {
            let scores: Vec<f32> =
                reply.scores.iter().filter_map(|it| it.scores.first()).copied().collect();
            let place = |index: usize| Place {
                index,
                score: scores[index],
                text: returns.then_some(documents[index].as_str()),
            };
            let best = order(&scores, top, self.later_first).into_iter().map(place).collect();
            (self.write)(&Ranked {
                id: &id,
                created,
                model: &name,
                best,
                documents: documents.len(),
                tokens: reply.tokens(),
                counted: top.is_some(),
            })
        };
        call.score(model, pairs, &scoring, self.activation, terms, write).await
    }
}

/// Documents in their order, as a reply tells it.
pub(super) struct Ranked<'a> {
    pub(super) id: &'a str,
    /// In seconds since 1970.
    pub(super) created: u64,
    pub(super) model: &'a str,
    /// The best, of those that were asked for.
    pub(super) best: Vec<Place<'a>>,
    /// How many were ranked.
    pub(super) documents: usize,
    /// Tokens of all pairs together.
    pub(super) tokens: usize,
    /// Whether the request said how many it wants.
    pub(super) counted: bool,
}

/// A document's place.
pub(super) struct Place<'a> {
    pub(super) index: usize,
    pub(super) score: f32,
    /// If replies are to have it.
    pub(super) text: Option<&'a str>,
}

/// A place as most contracts write it.
#[derive(Serialize)]
pub(super) struct Row<D> {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<D>,
}

/// A document as an object.
#[derive(Serialize)]
pub(super) struct Text<'a> {
    pub(super) text: &'a str,
}

/// What was used, as several contracts write it.
#[derive(Serialize)]
pub(super) struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl<'a> Ranked<'a> {
    /// The places, with documents in the form that `document` gives them.
    pub(super) fn rows<D>(&self, document: impl Fn(&'a str) -> D) -> Vec<Row<D>> {
        let row = |place: &Place<'a>| Row {
            index: place.index,
            relevance_score: place.score,
            document: place.text.map(&document),
        };
        self.best.iter().map(row).collect()
    }

    pub(super) fn usage(&self) -> Usage {
        Usage { prompt_tokens: self.tokens, total_tokens: self.tokens }
    }
}

/// The order of documents with these scores, the best first, `top` of them.
fn order(scores: &[f32], top: Option<usize>, later_first: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    if later_first {
        order.reverse();
    }
    order.sort_by(|&one, &other| scores[other].total_cmp(&scores[one]));
    order.truncate(top.unwrap_or(usize::MAX));
    order
}

/// A failure as vLLM and Infinity write it: as OpenAI, but the code is the status, as a number.
pub(super) fn numbered(failure: &Failure, kind: Option<&str>) -> (StatusCode, Value) {
    let status = failure.status();
    let (message, param) = (failure.message(), openai::param(failure, CONTRACT.inputs));
    let error = json!({
        "message": message, "type": kind, "param": param, "code": status.as_u16()
    });
    (status, json!({ "error": error }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_of_equals_the_earlier_or_the_later() {
        let scores = [0.5, 0.9, 0.5, -1.0, 0.9];
        assert_eq!(order(&scores, None, false), [1, 4, 0, 2, 3]);
        assert_eq!(order(&scores, None, true), [4, 1, 2, 0, 3]);
        assert_eq!(order(&scores, Some(3), false), [1, 4, 0]);
        assert_eq!(order(&scores, Some(9), false).len(), 5);
    }
}
