//! The dialects: contracts of several servers' APIs over the same work.
//!
//! A dialect is a file that translates, and a line of [`ALL`]. It has addresses, for each of them what
//! a body may have in it ([`Contract`]) and a handler that reads it and
//! hands it to the shared work ([`call`]), a form for replies, and words for failures.
//!
//! [`explain`] is the only place where a failure becomes a reply: whatever the cause, from a wrong
//! key to a panic, it is JSON in the words of the dialect that the address belongs to.

mod call;
mod ollama;
mod openai;
mod tei;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::MethodRouter;
use axum::{Extension, Router};
use serde_json::Value;

use crate::app::App;
use crate::failure::Failure;
use crate::json::object::Contract;
use crate::reply;

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
    /// How it says that a request failed: status and body.
    pub(crate) explain: fn(&Failure) -> (StatusCode, Value),
}

/// All of them. Addresses that belong to none speak as the first.
static ALL: [&Dialect; 3] = [&openai::DIALECT, &tei::DIALECT, &ollama::DIALECT];

/// Their addresses.
pub(crate) fn routes() -> Router<Arc<App>> {
    let addresses = ALL.iter().flat_map(|dialect| dialect.addresses);
    addresses.fold(Router::new(), |router, it| router.route(it.path, it.handler()))
}

/// Whose words an address speaks.
fn of(path: &str) -> &'static Dialect {
    let has = |dialect: &&&Dialect| dialect.addresses.iter().any(|it| it.path == path);
    ALL.iter().find(has).unwrap_or(&ALL[0])
}

/// The layer that gives a failure its status, headers and body.
pub(crate) async fn explain(request: Request, next: Next) -> Response {
    let dialect = of(request.uri().path());
    let mut response = next.run(request).await;
    let Some(failure) = response.extensions().get::<Failure>().cloned() else { return response };
    let (status, body) = (dialect.explain)(&failure);
    *response.status_mut() = status;
    *response.body_mut() = Body::from(body.to_string());
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, reply::JSON);
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(wait) = failure.retry_after() {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    response
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
    use crate::json::known::Treatment;
    use crate::json::known::{FIELDS, place_of};
    use serde_json::json;
    use std::time::Duration;
    use vecmill_engine::{Health, RequestError};

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
            assert_eq!(row[0], format!("{}`", known.0));
            assert_eq!(row[3..], cells.collect::<Vec<_>>(), "{}", known.0);
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
                    serde_json::from_str::<Value>(value).unwrap();
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

    /// What is said at an address.
    fn said(path: &str, failure: &Failure) -> (u16, Value) {
        let (status, body) = (of(path).explain)(failure);
        (status.as_u16(), body)
    }

    #[test]
    fn openai_errors_always_have_all_four_keys() {
        let failures = [
            Failure::Malformed("expected value at line 1 column 1".into()),
            Failure::NoKey,
            Failure::Internal,
            RequestError::NoInputs.into(),
        ];
        for failure in failures {
            let (_, body) = said("/nowhere", &failure);
            let error = body["error"].as_object().unwrap();
            assert_eq!(error.len(), 4);
            for key in ["message", "type", "param", "code"] {
                assert!(error.contains_key(key), "{failure:?} lacks {key}");
            }
        }
    }

    #[test]
    fn the_fault_decides_the_status() {
        let busy = RequestError::Busy { waiting: 9, retry_after: Duration::from_millis(1500) };
        let device = RequestError::Device { device: "cpu".into(), reason: "it melted".into() };
        let memory = RequestError::NoMemory {
            device: "cpu".into(),
            reason: "all is leased".into(),
            retry_after: Duration::from_secs(2),
        };
        let large = RequestError::InputTooLarge { index: 0, needed: 9, available: 8 };
        let long = RequestError::TooManyTokens { index: 2, tokens: 900, limit: 512 };
        let token = RequestError::UnknownToken { index: 0, token: 9, last: 8 };
        let prompt = RequestError::UnknownPrompt { name: "q".into(), known: Vec::new() };
        let standing = vec![("cpu".to_owned(), Health::Drained)];
        let field = Failure::Field { param: "a".into(), problem: "is b".into() };
        let table = [
            (RequestError::NoDevice { standing }.into(), (503, "server_error"), (503, "Unhealthy")),
            (RequestError::NotFinite { index: 3 }.into(), (500, "server_error"), (424, "Backend")),
            (RequestError::NoInputs.into(), (400, "invalid_request_error"), (400, "Empty")),
            (
                RequestError::EmptyInput { index: 0 }.into(),
                (400, "invalid_request_error"),
                (400, "Empty"),
            ),
            (long.into(), (400, "invalid_request_error"), (413, "Validation")),
            (token.into(), (400, "invalid_request_error"), (422, "Tokenizer")),
            (prompt.into(), (400, "invalid_request_error"), (422, "Validation")),
            (busy.into(), (429, "requests"), (429, "Overloaded")),
            (RequestError::Expired.into(), (429, "requests"), (429, "Overloaded")),
            (memory.into(), (503, "server_error"), (503, "Overloaded")),
            (large.into(), (500, "server_error"), (424, "Backend")),
            (RequestError::Stopped.into(), (503, "server_error"), (503, "Unhealthy")),
            (device.into(), (500, "server_error"), (424, "Backend")),
            (RequestError::Lost.into(), (500, "server_error"), (424, "Backend")),
            (Failure::Internal, (500, "server_error"), (500, "Backend")),
            (Failure::Loading, (503, "server_error"), (503, "Unhealthy")),
            (
                Failure::Timeout { limit: Duration::from_secs(1) },
                (504, "server_error"),
                (504, "Backend"),
            ),
            (Failure::NoKey, (401, "invalid_request_error"), (401, "Unauthorized")),
            (
                Failure::Origin { origin: "null".into() },
                (403, "invalid_request_error"),
                (403, "Unauthorized"),
            ),
            (
                Failure::NoRoute { path: "/".into() },
                (404, "invalid_request_error"),
                (404, "Validation"),
            ),
            (field, (400, "invalid_request_error"), (422, "Validation")),
            (
                Failure::TooManyInputs { param: "input", limit: 1 },
                (400, "invalid_request_error"),
                (413, "Validation"),
            ),
            (Failure::TooLarge { limit: 1 }, (413, "invalid_request_error"), (413, "Validation")),
            (Failure::MemoryTaken, (429, "requests"), (429, "Overloaded")),
        ];
        for (failure, openai, tei) in table {
            let failure: Failure = failure;
            let (status, body) = said("/v1/embeddings", &failure);
            assert_eq!(
                (status, &body["error"]["type"]),
                (openai.0, &json!(openai.1)),
                "{failure:?}"
            );
            let (status, body) = said("/embed", &failure);
            assert_eq!((status, &body["error_type"]), (tei.0, &json!(tei.1)), "{failure:?}");
        }
    }

    #[test]
    fn the_blamed_field_is_named() {
        let param = |failure: Failure| said("/v1/embeddings", &failure).1["error"]["param"].clone();
        assert_eq!(param(RequestError::EmptyInput { index: 3 }.into()), "input[3]");
        assert_eq!(param(RequestError::NotFinite { index: 2 }.into()), "input[2]");
        assert_eq!(param(RequestError::Dimensions { asked: 0, available: 8 }.into()), "dimensions");
        assert_eq!(param(Failure::Loading), Value::Null);
    }
}
