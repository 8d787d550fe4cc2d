//! TEI's `/predict`: the scores of a text's labels, or of a pair's, the best first.
//!
//! `["a", "b"]` is one pair. Several inputs are an array of arrays, of one text or two each, and
//! their reply is an array of arrays.

use std::fmt;

use axum::response::Response;
use serde::de::{Deserializer, Error, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use vecmill_engine::{ScoreActivation, ScoreInput, ScoreReply, Task};

use super::super::call::Call;
use crate::failure::Failure;
use crate::json::known::{NO_EFFECT, WORKS, refused};
use crate::json::object::{Contract, Field, Object};
use crate::json::options::WaitingTerms;
use crate::json::ranking::scoring;
use crate::loading::Model;

const FORMS: &str = "a string, a pair of strings, or an array of arrays of one or two strings";
const ITEM: &str = "an array of one or two strings";

pub(super) static CONTRACT: Contract = Contract {
    inputs: "inputs",
    own: &[
        (&["inputs"], WORKS),
        (
            &[
                "query",
                "rank_fields",
                "top_n",
                "top_k",
                "return_documents",
                "return_text",
                "max_tokens_per_query",
                "max_tokens_per_doc",
                "max_chunks_per_doc",
            ],
            refused("belongs to ranking: send it to /rerank"),
        ),
        (&["options"], NO_EFFECT),
    ],
    ..Contract::SCORES
};

/// `POST /predict`
pub(super) async fn predict(
    model: Model,
    terms: WaitingTerms,
    call: Call,
) -> Result<Response, Failure> {
    let object = Object::parse(&call.body, &CONTRACT)?;
    let (inputs, several) =
        inputs(object.field("inputs"), call.app.settings.max_client_batch_size)?;
    let scoring = scoring(&object, model.engine.info(), &call.app.settings)?;
    let activation = activation(&model.engine.info().task);
    call.score(&model, inputs, &scoring, activation, terms, move |reply| write(reply, several))
        .await
}

/// One input, or several.
fn inputs(field: Field<'_>, limit: usize) -> Result<(Vec<ScoreInput>, bool), Failure> {
    let inner = field.sent().and_then(|raw| raw.strip_prefix('['));
    if inner.is_some_and(|inner| inner.trim_ascii_start().starts_with('[')) {
        let items = field.list(ITEM, limit)?;
        return Ok((items.into_iter().map(|Sequence(input)| input).collect(), true));
    }
    let Sequence(input) = field.required(FORMS)?;
    Ok((vec![input], false))
}

/// A text or a pair.
struct Sequence(ScoreInput);

impl<'de> Deserialize<'de> for Sequence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SequenceVisitor)
    }
}

struct SequenceVisitor;

impl<'de> Visitor<'de> for SequenceVisitor {
    type Value = Sequence;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ITEM)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Sequence, E> {
        Ok(Sequence(ScoreInput::Text(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Sequence, A::Error> {
        let first: String = seq.next_element()?.ok_or_else(|| Error::invalid_length(0, &self))?;
        let Some(second) = seq.next_element()? else {
            return Ok(Sequence(ScoreInput::Text(first)));
        };
        match seq.next_element::<IgnoredAny>()? {
            None => Ok(Sequence(ScoreInput::Pair(first.into(), second))),
            Some(_) => Err(Error::invalid_length(3, &self)),
        }
    }
}

/// As the model's files say; where they say nothing, scores are between 0 and 1 all the same, as TEI
/// promises.
fn activation(task: &Task) -> Option<ScoreActivation> {
    match task {
        Task::Score { labels, activation: ScoreActivation::Identity } => Some(match labels.len() {
            1 => ScoreActivation::Sigmoid,
            _ => ScoreActivation::Softmax,
        }),
        _ => None,
    }
}

fn write(reply: &ScoreReply, several: bool) -> serde_json::Result<Vec<u8>> {
    let all: Vec<_> =
        reply.scores.iter().map(|it| predictions(&it.scores, &reply.labels)).collect();
    match all.first() {
        Some(one) if !several => serde_json::to_vec(one),
        _ => serde_json::to_vec(&all),
    }
}

/// The labels with their scores, the best first.
fn predictions<'a>(scores: &[f32], labels: &'a [String]) -> Vec<Prediction<'a>> {
    let labels = labels.iter().zip(scores);
    let mut predictions: Vec<_> =
        labels.map(|(label, &score)| Prediction { score, label }).collect();
    predictions.sort_by(|one, other| other.score.total_cmp(&one.score));
    predictions
}

#[derive(Serialize)]
struct Prediction<'a> {
    score: f32,
    label: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<(Vec<ScoreInput>, bool), String> {
        inputs(Field::new("inputs", Some(json)), 2).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_pair_is_one_input_and_arrays_of_arrays_are_several() {
        let text = |text: &str| ScoreInput::Text(text.to_owned());
        let pair = |one: &str, two: &str| ScoreInput::Pair(one.into(), two.to_owned());
        for (json, inputs, several) in [
            (r#""a""#, vec![text("a")], false),
            (r#"["a"]"#, vec![text("a")], false),
            (r#"[ "a", "b" ]"#, vec![pair("a", "b")], false),
            (r#"[["a"]]"#, vec![text("a")], true),
            (r#"[ ["a"], ["b", "c"]]"#, vec![text("a"), pair("b", "c")], true),
        ] {
            assert_eq!(read(json), Ok((inputs, several)), "{json}");
        }
    }

    #[test]
    fn what_is_neither_is_named() {
        for json in ["5", "{}", "[]", r#"["a","b","c"]"#, r#"["a",["b"]]"#] {
            assert_eq!(read(json), Err(format!("`inputs` must be {FORMS}")), "{json}");
        }
        for (json, index) in [(r#"[["a"],[]]"#, 1), (r#"[["a","b","c"]]"#, 0), ("[[1]]", 0)] {
            assert_eq!(read(json), Err(format!("`inputs[{index}]` must be {ITEM}")), "{json}");
        }
        let many = read(r#"[["a"],["b"],["c"]]"#).unwrap_err();
        assert!(many.starts_with("`inputs` has more than 2 entries"), "{many}");
    }
}
