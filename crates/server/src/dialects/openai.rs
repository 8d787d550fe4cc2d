//! OpenAI's contract: `/v1/embeddings` and `/v1/models`.
//!
//! `model` may be any name, or missing: one model is served, and clients often have a name in them
//! that cannot be changed. Replies give the name of the model that was really used. Fields of other
//! servers' contracts work here too, or are refused by name ([`known`](super::known)).
//! The limits of OpenAI's own models, 8192 tokens an input and 300,000 a request, are not ours:
//! the model decides on the first, and the limit on the body bounds the second.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use vecmill_engine::{Info, Request};

use crate::Settings;
use crate::app::App;
use crate::failure::Failure;
use crate::json::body::JsonText;
use crate::json::known::Route;
use crate::json::object::Object;
use crate::json::terms::WaitingTerms;
use crate::json::{options, token_ids};
use crate::layers::room::Room;
use crate::reply::{self, Encoding};
use crate::slot::Model;

/// `POST /v1/embeddings`
pub(crate) async fn embeddings(
    State(app): State<Arc<App>>,
    model: Model,
    terms: WaitingTerms,
    room: Room,
    JsonText(body): JsonText,
) -> Result<Response, Failure> {
    let (request, encoding) = parse(&body, model.engine.info(), &app.settings)?;
    drop(body);
    let hold = |bytes| room.hold_more(bytes);
    let request = token_ids::as_meant(request, "input", Route::OpenAi, &app.settings, hold)?;
    room.hold_more(reply::room(&request, model.engine.info(), encoding))?;
    let (reply, headers) = super::embed(&app, &model, &room, terms.apply(request)).await?;
    let name = app.model_name(&model).to_owned();
    let body =
        super::write(reply, room, move |reply| reply::openai(reply, &name, encoding)).await?;
    Ok((headers, body).into_response())
}

fn parse(body: &str, info: &Info, settings: &Settings) -> Result<(Request, Encoding), Failure> {
    let object = Object::parse(body, Route::OpenAi)?;
    object.field("model").optional::<String>("a string")?;
    let encoding = object.field("encoding_format").optional("'float' or 'base64'")?;
    let request = Request {
        inputs: object.field("input").inputs(settings.max_client_batch_size)?,
        ..options::request(&object, info, settings)?
    };
    Ok((request, encoding.unwrap_or_default()))
}

/// `GET /v1/models`: the one that is served.
pub(crate) async fn models(State(app): State<Arc<App>>, model: Model) -> Response {
    let id = app.model_name(&model);
    let entry = serde_json::json!({
        "id": id, "object": "model", "created": model.created, "owned_by": "vecmill"
    });
    super::json(serde_json::json!({"object": "list", "data": [entry]}).to_string())
}

#[cfg(test)]
mod tests {
    use super::super::info;
    use super::*;
    use vecmill_engine::Truncation;

    fn read(body: &str, settings: &Settings) -> Result<(Request, Encoding), Failure> {
        parse(body, &info(), settings)
    }

    fn complaint(body: &str) -> String {
        read(body, &Settings::default()).unwrap_err().to_string()
    }

    #[test]
    fn a_request_has_sensible_defaults() {
        for model in [r#""model":"m","#, r#""model":"","#, r#""model":null,"#, ""] {
            let body = format!(r#"{{{model}"input":"a","user":7,"x":[{{}}]}}"#);
            let (request, encoding) = read(&body, &Settings::default()).unwrap();
            assert_eq!(request, Request::new(["a"]));
            assert_eq!(encoding, Encoding::Float);
        }

        let body = r#"{"model":"m","input":["a"],"encoding_format":"base64","dimensions":6}"#;
        let settings = Settings { auto_truncate: false, ..Settings::default() };
        let (request, encoding) = read(body, &settings).unwrap();
        assert_eq!(request.dimensions, Some(6));
        assert_eq!(request.truncation, Truncation::Refuse);
        assert_eq!(encoding, Encoding::Base64);

        let nulls = r#"{"input":"a","model":"m","encoding_format":null,"dimensions":null}"#;
        assert!(read(nulls, &Settings::default()).is_ok());
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(complaint(r#"{"model":"m"}"#), "`input` is missing");
        assert_eq!(complaint(r#"{"model":"m","input":null}"#), "`input` is missing");
        assert_eq!(complaint(r#"{"input":"a","model":3}"#), "`model` must be a string");
        let with = |field: &str| complaint(&format!(r#"{{"input":"a","model":"m",{field}}}"#));
        let dimensions = "`dimensions` must be a whole number of at least 1";
        assert_eq!(with(r#""dimensions":-1"#), dimensions);
        assert_eq!(with(r#""dimensions":"8""#), dimensions);
        assert_eq!(with(r#""dimensions":7.5"#), dimensions);
        let format = "`encoding_format` must be 'float' or 'base64'";
        assert_eq!(with(r#""encoding_format":"hex""#), format);
        assert_eq!(
            with(r#""user":1,"input":"b""#),
            "`input` is there more than once: send it once"
        );
    }

    #[test]
    fn what_is_not_an_object_is_malformed() {
        for body in ["", "[]", r#"["a","m"]"#, "3", "null", r#"{"input":"a""#, r#"{} x"#] {
            assert!(complaint(body).starts_with("the body is not valid JSON: "), "{body}");
        }
    }
}
