//! TEI's `/rerank`: an array of documents' places. `top_n` isn't TEI's, and some of its clients send
//! it.

use serde::Serialize;

use super::super::rerank::{Ranked, Ranker};
use super::explain;
use crate::json::known::{WORKS, refused};
use crate::json::object::Contract;

pub(in super::super) static RANKER: Ranker =
    Ranker { contract: &CONTRACT, later_first: true, ..Ranker::usual(write, explain) };

pub(super) static CONTRACT: Contract = Contract {
    inputs: "texts",
    own: &[
        (&["texts", "model"], WORKS),
        (&["documents"], refused("is other servers' name for `texts`: send one of the two")),
    ],
    ..Contract::SCORES
};

#[derive(Serialize)]
struct Place<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    score: f32,
}

fn write(ranked: &Ranked<'_>) -> serde_json::Result<Vec<u8>> {
    let places = ranked.best.iter();
    let places =
        places.map(|place| Place { index: place.index, text: place.text, score: place.score });
    serde_json::to_vec(&places.collect::<Vec<_>>())
}
