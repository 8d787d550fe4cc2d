//! The work that dialects share which have texts scored.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use tokio::time::timeout;
use vecmill_engine::{Keep, ScoreActivation, ScoreInput, ScoreReply, ScoreRequest};

use super::call::Call;
use crate::failure::Failure;
use crate::json::options::WaitingTerms;
use crate::json::ranking::Scoring;
use crate::loading::Model;
use crate::reply::{self, Work};
use crate::room::PER_INPUT;

/// Bytes that each token of an input takes until it has run: its id, its type, its place.
const PER_TOKEN: usize = 12;

impl Call {
    /// Has `inputs` scored, with `activation` unless they are to be raw, and answers with what `write`
    /// makes of the scores.
    ///
    /// As with vectors, the engine has the request's memory counted for as long as it holds anything
    /// of it. The first text of pairs may be one text, and its tokens are in each of them.
    pub(super) async fn score(
        self,
        model: &Model,
        inputs: Vec<ScoreInput>,
        scoring: &Scoring,
        activation: Option<ScoreActivation>,
        terms: WaitingTerms,
        write: impl FnOnce(&ScoreReply) -> serde_json::Result<Vec<u8>> + Send + 'static,
    ) -> Result<Response, Failure> {
        let Self { app, room, body, .. } = self;
        drop(body);
        let info = model.engine.info();
        let each = |input| info.max_input_tokens.min(bytes(input)).saturating_mul(PER_TOKEN);
        let tokens = inputs.iter().map(each).fold(0, usize::saturating_add);
        room.hold_more(tokens.saturating_add(inputs.len().saturating_mul(PER_INPUT)))?;
        let characters = characters(&inputs);
        let request = ScoreRequest {
            inputs,
            truncation: scoring.truncation,
            activation: if scoring.raw { Some(ScoreActivation::Identity) } else { activation },
            priority: terms.priority(scoring.priority),
            timeout: terms.timeout,
            keep: Keep::new(room.memory()),
            ..ScoreRequest::default()
        };
        let limit = app.settings.request_timeout;
        let reply = timeout(limit, model.engine.score(request))
            .await
            .map_err(|_| Failure::Timeout { limit })??;
        let work = Work {
            characters,
            tokens: reply.tokens(),
            truncated: reply.scores.iter().filter(|it| it.truncated).count(),
            timings: reply.timings,
        };
        let headers = reply::headers(&work, info);
        let numbers = reply.scores.iter().map(|it| it.scores.len()).sum();
        let body = reply::write(numbers, room, move || write(&reply)).await?;
        Ok((headers, body).into_response())
    }
}

fn bytes(input: &ScoreInput) -> usize {
    match input {
        ScoreInput::Text(text) => text.len(),
        ScoreInput::Pair(one, other) => one.len() + other.len(),
        _ => usize::MAX,
    }
}

/// As TEI counts. A text that pairs share is in each of them, and looked at once.
fn characters(inputs: &[ScoreInput]) -> usize {
    let (mut shared, mut all) = (None::<(&Arc<str>, usize)>, 0_usize);
    for input in inputs {
        all = all.saturating_add(match input {
            ScoreInput::Text(text) => text.chars().count(),
            ScoreInput::Pair(one, other) => {
                let known = shared.filter(|(text, _)| Arc::ptr_eq(text, one));
                let (_, first) =
                    *shared.insert(known.unwrap_or_else(|| (one, one.chars().count())));
                first.saturating_add(other.chars().count())
            }
            _ => 0,
        });
    }
    all
}
