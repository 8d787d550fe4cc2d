//! TEI's contract: `/embed`, which is `/` too, and `/info`; `/tokenize` is in
//! [`tokenize`](super::tokenize).

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use vecmill_engine::{Info, Request};

use super::body::JsonText;
use super::known::Route;
use super::object::Object;
use super::reply::{self, Encoding};
use super::terms::WaitingTerms;
use super::{options, token_ids};
use crate::Settings;
use crate::app::App;
use crate::failure::Failure;
use crate::room::Room;
use crate::slot::Model;

/// `POST /embed`, and `POST /`: Hugging Face's own clients send to the address they are given.
pub(crate) async fn embed(
    State(app): State<Arc<App>>,
    model: Model,
    terms: WaitingTerms,
    room: Room,
    JsonText(body): JsonText,
) -> Result<Response, Failure> {
    let request = parse_embed(&body, model.embedder.info(), &app.settings)?;
    drop(body);
    let hold = |bytes| room.hold_more(bytes);
    let request = token_ids::as_meant(request, "inputs", Route::Embed, &app.settings, hold)?;
    room.hold_more(reply::room(&request, model.embedder.info(), Encoding::Float))?;
    let (reply, headers) = super::embed(&app, &model, &room, terms.apply(request)).await?;
    let body = super::write(reply, room, reply::arrays).await?;
    Ok((headers, body).into_response())
}

fn parse_embed(body: &str, info: &Info, settings: &Settings) -> Result<Request, Failure> {
    let object = Object::parse(body, Route::Embed)?;
    let inputs = object.field("inputs").inputs(settings.max_client_batch_size)?;
    let asked = options::request(&object, info, settings)?;
    Ok(Request { inputs, normalize: asked.normalize.or(Some(true)), ..asked })
}

/// TEI's word for a pooling: its clients refuse others.
fn pooling(name: &str) -> &str {
    if name == "lasttoken" { "last_token" } else { name }
}

/// `GET /info`: TEI's fields, then ours.
pub(crate) async fn info(State(app): State<Arc<App>>, model: Model) -> Response {
    let info = model.embedder.info();
    let device = |device: &vecmill_engine::DeviceSummary| {
        let vecmill_engine::DeviceSummary { name, description, dtype } = device;
        serde_json::json!({"name": name, "description": description, "dtype": dtype})
    };
    let body = serde_json::json!({
        "model_id": info.model_id,
        "model_sha": info.revision,
        "model_dtype": info.dtype,
        "model_type": {"embedding": {"pooling": pooling(&info.pooling)}},
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
    super::json(body.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::info;
    use super::*;
    use vecmill_engine::{Prompt, Truncation};

    fn read(body: &str, settings: &Settings) -> Result<Request, Failure> {
        parse_embed(body, &info(), settings)
    }

    fn parse(body: &str) -> Request {
        read(body, &Settings::default()).unwrap()
    }

    #[test]
    fn embed_has_tei_s_defaults() {
        let request = parse(r#"{"inputs":"a"}"#);
        assert_eq!(request, Request { normalize: Some(true), ..Request::new(["a"]) });
        let settings = Settings { auto_truncate: false, ..Settings::default() };
        let request = read(r#"{"inputs":"a"}"#, &settings).unwrap();
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
        let wrong = read(r#"{"inputs":"a","truncation_direction":"up"}"#, &Settings::default());
        assert_eq!(
            wrong.unwrap_err().to_string(),
            "`truncation_direction` must be 'left' or 'right'"
        );
    }
}
