//! TEI's contract: `/embed`, which is `/` too, and `/info`; `/tokenize` is in
//! [`tokenize`].

mod predict;
pub(super) mod rerank;
mod tokenize;

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Map, Value, json};
use vecmill_engine::{Fault, Info, Reply, Request, RequestError, Task};

use super::call::Call;
use super::rerank::{Meant, at};
use super::{Address, Dialect};
use crate::Settings;
use crate::app::App;
use crate::failure::Failure;
use crate::json::known::{NO_EFFECT, WORKS};
use crate::json::object::{Contract, Object};
use crate::json::options::{self, WaitingTerms};
use crate::loading::Model;
use crate::reply::{self, Encoding};

pub(super) static DIALECT: Dialect = Dialect {
    addresses: &[
        Address::work("/embed", &CONTRACT, || post(embed)),
        // Hugging Face's own clients send to the address that they are given.
        Address::work("/", &CONTRACT, || post(what_the_model_does)),
        Address::work("/tokenize", &tokenize::CONTRACT, || post(tokenize::tokenize)),
        Address::work("/predict", &predict::CONTRACT, || post(predict::predict)),
        Address::work("/as/tei/rerank", &rerank::CONTRACT, || at(|_| Ok(&rerank::RANKER))),
        Address::about("/info", || get(info)),
    ],
    explain,
};

static CONTRACT: Contract = Contract {
    inputs: "inputs",
    own: &[(&["inputs"], WORKS), (&["options"], NO_EFFECT)],
    ..Contract::VECTORS
};

/// `POST /embed`
async fn embed(model: Model, terms: WaitingTerms, call: Call) -> Result<Response, Failure> {
    let request = read(&call.body, model.engine.info(), &call.app.settings)?;
    call.embed(&model, terms.apply(request), Encoding::Float, write).await
}

/// `POST /`
async fn what_the_model_does(
    model: Model,
    terms: WaitingTerms,
    call: Call,
) -> Result<Response, Failure> {
    match &model.engine.info().task {
        Task::Score { labels, .. } if labels.len() == 1 => {
            let meant: Meant = |_| Ok(&rerank::RANKER);
            super::rerank::rerank(model, terms, Extension(meant), call).await
        }
        Task::Score { .. } => predict::predict(model, terms, call).await,
        _ => embed(model, terms, call).await,
    }
}

fn read(body: &str, info: &Info, settings: &Settings) -> Result<Request, Failure> {
    let object = Object::parse(body, &CONTRACT)?;
    let inputs = object.field("inputs").inputs(settings.max_client_batch_size)?;
    let asked = options::request(&object, info, settings)?;
    Ok(Request { inputs, normalize: asked.normalize.or(Some(true)), ..asked })
}

/// An array of arrays.
fn write(reply: &Reply) -> serde_json::Result<Vec<u8>> {
    let mut out = reply::buffer(reply, Encoding::Float);
    reply::push_arrays(&mut out, reply)?;
    Ok(out)
}

/// A message and one of few types.
pub(super) fn explain(failure: &Failure) -> (StatusCode, Value) {
    use RequestError as E;
    let status = failure.status();
    let (status, error_type) = match failure {
        Failure::Field { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "Validation"),
        Failure::ManyLabels { .. } => (StatusCode::FAILED_DEPENDENCY, "Backend"),
        Failure::TooManyInputs { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "Validation"),
        Failure::Request(error) => match error {
            E::NoInputs | E::EmptyInput { .. } => (status, "Empty"),
            E::TooManyTokens { .. } | E::TooMuchToTokenize { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "Validation")
            }
            E::UnknownToken { .. } | E::NoEmbedding { .. } | E::Tokenizer { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, "Tokenizer")
            }
            E::WrongTask { .. } => (StatusCode::FAILED_DEPENDENCY, "Backend"),
            E::NoMemory { .. } => (status, "Overloaded"),
            other if other.fault() == Fault::Caller => {
                (StatusCode::UNPROCESSABLE_ENTITY, "Validation")
            }
            _ if status == StatusCode::INTERNAL_SERVER_ERROR => {
                (StatusCode::FAILED_DEPENDENCY, "Backend")
            }
            _ => (status, by_status(status)),
        },
        _ => (status, by_status(status)),
    };
    let message = match failure {
        // How clients of TEI learn which prompts there are: no route tells.
        Failure::Request(E::UnknownPrompt { known, .. }) => {
            format!("{}. Available prompts: {known:?}", failure.message())
        }
        _ => failure.message(),
    };
    (status, json!({"error": message, "error_type": error_type}))
}

fn by_status(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 | 403 => "Unauthorized",
        429 => "Overloaded",
        503 => "Unhealthy",
        500.. => "Backend",
        _ => "Validation",
    }
}

/// TEI's word for a pooling: its clients refuse others.
fn pooling(name: &str) -> &str {
    if name == "lasttoken" { "last_token" } else { name }
}

/// What the model is for, in TEI's words: a classifier with one label is a reranker.
fn model_type(info: &Info) -> Value {
    let Task::Score { labels, .. } = &info.task else {
        return json!({"embedding": {"pooling": pooling(&info.pooling)}});
    };
    let numbered = || labels.iter().enumerate();
    let names: Map<_, _> = numbered().map(|(id, label)| (id.to_string(), json!(label))).collect();
    let ids: Map<_, _> = numbered().map(|(id, label)| (label.clone(), json!(id))).collect();
    let kind = if labels.len() == 1 { "reranker" } else { "classifier" };
    json!({kind: {"id2label": names, "label2id": ids}})
}

/// `GET /info`: TEI's fields, then ours.
async fn info(State(app): State<Arc<App>>, model: Model) -> Response {
    let info = model.engine.info();
    let device = |device: &vecmill_engine::DeviceSummary| {
        let vecmill_engine::DeviceSummary { name, description, dtype } = device;
        json!({"name": **name, "description": description, "dtype": dtype})
    };
    let body = json!({
        "model_id": info.model_id,
        "model_sha": info.revision,
        "model_dtype": info.dtype,
        "model_type": model_type(info),
        "max_concurrent_requests": app.settings.max_concurrent_requests,
        "max_input_length": info.max_input_tokens,
        "max_batch_tokens": info.max_batch_tokens,
        "max_batch_requests": null,
        "max_client_batch_size": app.settings.max_client_batch_size,
        "auto_truncate": app.settings.auto_truncate,
        "tokenization_workers": info.tokenization_workers,
        "version": env!("CARGO_PKG_VERSION"),
        "sha": null,
        "docker_label": null,
        "served_model_name": app.model_name(&model),
        "architecture": info.architecture,
        "dimensions": info.dimensions,
        "normalized": info.normalized,
        "queue_capacity": info.queue_capacity,
        "payload_limit": app.settings.payload_limit,
        "max_request_memory": app.settings.max_request_memory,
        "token_inputs": app.settings.token_inputs.to_string(),
        "prompts": info.prompts,
        "devices": info.devices.iter().map(device).collect::<Vec<_>>(),
    });
    reply::json(body.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::info;
    use super::*;
    use vecmill_engine::{Prompt, Truncation};

    fn asked(body: &str, settings: &Settings) -> Result<Request, Failure> {
        read(body, &info(), settings)
    }

    fn parse(body: &str) -> Request {
        asked(body, &Settings::default()).unwrap()
    }

    #[test]
    fn embed_has_tei_s_defaults() {
        let request = parse(r#"{"inputs":"a"}"#);
        assert_eq!(request, Request { normalize: Some(true), ..Request::new(["a"]) });
        let settings = Settings { auto_truncate: false, ..Settings::default() };
        let request = asked(r#"{"inputs":"a"}"#, &settings).unwrap();
        assert_eq!(request.truncation, Truncation::Refuse);
    }

    #[test]
    fn embed_s_options_are_understood() {
        let request = parse(
            r#"{"inputs":["a"],"normalize":false,"truncate":true,"truncation_direction":"Left",
                "prompt_name":"query","dimensions":8}"#,
        );
        assert_eq!(request.normalize, Some(false));
        assert_eq!(request.truncation, Truncation::Start);
        assert_eq!(request.prompt, Prompt::Named("query".into()));
        assert_eq!(request.dimensions, Some(8));
        let request = parse(r#"{"inputs":["a"],"truncate":false,"truncation_direction":"left"}"#);
        assert_eq!(request.truncation, Truncation::Refuse);
        let wrong = asked(r#"{"inputs":"a","truncation_direction":"up"}"#, &Settings::default());
        assert_eq!(
            wrong.unwrap_err().to_string(),
            "`truncation_direction` must be 'left' or 'right'"
        );
    }
}
