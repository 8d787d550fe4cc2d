//! The dialects: contracts of several servers' APIs over the same work.
//!
//! A dialect is a file that translates, and a line of [`ALL`]. It has addresses, for each of them what
//! a body may have in it ([`Contract`]) and a handler that reads it and
//! hands it to the shared work ([`call`]), a form for replies, and words for failures.
//!
//! [`explain`] is the only place where a failure becomes a reply.

mod call;
mod cohere;
mod explain;
mod infinity;
mod jina;
mod ollama;
mod openai;
mod rerank;
mod score;
mod shared;
mod tei;
mod vllm;
mod voyage;

use std::sync::Arc;

use axum::routing::MethodRouter;
use axum::{Extension, Router};

use crate::app::App;
use crate::failure::Explain;
use crate::json::object::Contract;

pub(crate) use explain::explain;

/// An address of a dialect.
pub(crate) struct Address {
    pub(crate) path: &'static str,
    /// What its bodies may have in them. Where there is none, no body is read.
    pub(crate) contract: Option<&'static Contract>,
    handler: Handler,
}

impl Address {
    /// One to which work is sent.
    pub(crate) const fn work(
        path: &'static str,
        contract: &'static Contract,
        handler: Handler,
    ) -> Self {
        Self { path, contract: Some(contract), handler }
    }

    /// One that tells something.
    pub(crate) const fn about(path: &'static str, handler: Handler) -> Self {
        Self { path, contract: None, handler }
    }

    /// What answers there.
    pub(crate) fn handler(&self) -> MethodRouter<Arc<App>> {
        let handler = (self.handler)();
        match self.contract {
            Some(contract) => handler.layer(Extension(contract)),
            None => handler,
        }
    }
}

type Handler = fn() -> MethodRouter<Arc<App>>;

/// The contract of a server's API.
pub(crate) struct Dialect {
    pub(crate) addresses: &'static [Address],
    explain: Explain,
}

/// All of them. Addresses that belong to none speak as the first.
static ALL: [&Dialect; 9] = [
    &openai::DIALECT,
    &tei::DIALECT,
    &ollama::DIALECT,
    &shared::DIALECT,
    &cohere::DIALECT,
    &jina::DIALECT,
    &voyage::DIALECT,
    &vllm::DIALECT,
    &infinity::DIALECT,
];

/// Their addresses.
pub(crate) fn routes() -> Router<Arc<App>> {
    let addresses = ALL.iter().flat_map(|dialect| dialect.addresses);
    addresses.fold(Router::new(), |router, it| router.route(it.path, it.handler()))
}

/// A model's, for tests.
#[cfg(test)]
fn info() -> vecmill_engine::Info {
    vecmill_engine::Info {
        dimensions: 8,
        max_input_tokens: 16,
        prompts: [("query".to_owned(), "query: ".to_owned())].into(),
        ..vecmill_engine::Info::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::known::{FIELDS, Treatment, place_of};

    /// Each once, in the order of the document.
    fn contracts() -> impl Iterator<Item = &'static Contract> {
        let addresses = ALL.iter().flat_map(|dialect| dialect.addresses);
        let mut contracts: Vec<&Contract> = addresses.filter_map(|it| it.contract).collect();
        contracts.dedup_by(|one, other| std::ptr::eq(*one, *other));
        contracts.into_iter()
    }

    /// As the document says it.
    fn cell(treatment: Treatment) -> String {
        match treatment {
            Treatment::Works => "works".to_owned(),
            Treatment::NoEffect => "no effect".to_owned(),
            Treatment::Refused { except: [], .. } => "refused".to_owned(),
            Treatment::Refused { except, .. } => {
                let values: Vec<_> = except.iter().map(|value| format!("`{value}`")).collect();
                format!("only {}", values.join(", "))
            }
        }
    }

    #[test]
    fn the_document_shows_what_becomes_of_each_field() {
        let document = include_str!("../../../../docs/clients.md");
        let rows: Vec<Vec<&str>> = document
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"))
            .map(|row| row.split(" | ").collect())
            .filter(|row: &Vec<_>| row.len() == 3 + contracts().count())
            .collect();
        assert_eq!(rows.len(), FIELDS.len());
        for (row, known) in rows.iter().zip(&FIELDS) {
            let cells = contracts().map(|contract| cell(contract.treatment(known)));
            assert_eq!(row[0], format!("{}`", known.name));
            assert_eq!(row[3..], cells.collect::<Vec<_>>(), "{}", known.name);
        }
    }

    #[test]
    fn what_is_accepted_is_json() {
        for (contract, known) in
            contracts().flat_map(|it| FIELDS.iter().map(move |known| (it, known)))
        {
            if let Treatment::Refused { except, because } = contract.treatment(known) {
                assert!(!because.is_empty());
                for value in except {
                    serde_json::from_str::<serde_json::Value>(value).unwrap();
                }
            }
        }
    }

    #[test]
    fn a_contract_s_own_treatments_are_of_known_fields() {
        for contract in contracts() {
            let own = contract.own.iter().flat_map(|(names, _)| *names);
            for name in own.chain([&contract.inputs]) {
                assert!(place_of(name).is_some(), "{name}");
            }
        }
    }
}
