//! OpenAI's contract: `/v1/embeddings` and `/v1/models`.
//!
//! `model` must be there, but any name is accepted: one model is served, and clients often have a
//! name in them that cannot be changed. Replies give the name of the model that was really used.
//! The limits of OpenAI's own models, 8192 tokens an input and 300,000 a request, are not ours:
//! the model decides on the first, and the limit on the body bounds the second.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;
use vecmill_engine::Request;

use super::body::JsonText;
use super::fields::{self, Field};
use super::reply::{self, Encoding};
use super::terms::WaitingTerms;
use crate::Settings;
use crate::app::App;
use crate::failure::Failure;
use crate::slot::Model;

/// The body; `user` and whatever else is sent plays no part.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    model: Option<&'a RawValue>,
    encoding_format: Option<&'a RawValue>,
    dimensions: Option<&'a RawValue>,
}

/// `POST /v1/embeddings`
pub(crate) async fn embeddings(
    State(app): State<Arc<App>>,
    model: Model,
    terms: WaitingTerms,
    JsonText(body): JsonText,
) -> Result<Response, Failure> {
    let (request, encoding) = parse(&body, &app.settings)?;
    drop(body);
    let (reply, headers) = super::embed(&app, &model, terms.apply(request)).await?;
    let name = app.model_name(&model).to_owned();
    let body = super::write(reply, move |reply| reply::openai(reply, &name, encoding)).await?;
    Ok((headers, body).into_response())
}

fn parse(body: &str, settings: &Settings) -> Result<(Request, Encoding), Failure> {
    let fields: Fields<'_> = fields::split(body)?;
    let model: String = Field::new("model", fields.model).required("a string")?;
    if model.is_empty() {
        let problem = "must not be empty".to_owned();
        return Err(Failure::Field { param: "model".to_owned(), problem });
    }
    let encoding = Field::new("encoding_format", fields.encoding_format);
    let encoding = encoding.optional("'float' or 'base64'")?.unwrap_or_default();
    let dimensions = Field::new("dimensions", fields.dimensions);
    let request = Request {
        inputs: Field::new("input", fields.input).inputs(settings.max_client_batch_size)?,
        dimensions: dimensions.optional("an integer of at least 1")?,
        truncation: super::truncation(settings),
        ..Request::default()
    };
    Ok((request, encoding))
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
    use super::*;
    use vecmill_engine::Truncation;

    fn complaint(body: &str) -> String {
        parse(body, &Settings::default()).unwrap_err().to_string()
    }

    #[test]
    fn a_request_has_sensible_defaults() {
        let (request, encoding) =
            parse(r#"{"input":"a","model":"m","user":7,"x":[{}]}"#, &Settings::default()).unwrap();
        assert_eq!(request, Request::new(["a"]));
        assert_eq!(encoding, Encoding::Float);

        let body = r#"{"model":"m","input":["a"],"encoding_format":"base64","dimensions":64}"#;
        let settings = Settings { auto_truncate: false, ..Settings::default() };
        let (request, encoding) = parse(body, &settings).unwrap();
        assert_eq!(request.dimensions, Some(64));
        assert_eq!(request.truncation, Truncation::Refuse);
        assert_eq!(encoding, Encoding::Base64);

        let nulls = r#"{"input":"a","model":"m","encoding_format":null,"dimensions":null}"#;
        assert!(parse(nulls, &Settings::default()).is_ok());
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(complaint(r#"{"input":"a"}"#), "`model` is missing");
        assert_eq!(complaint(r#"{"model":"m"}"#), "`input` is missing");
        assert_eq!(complaint(r#"{"model":"m","input":null}"#), "`input` is missing");
        assert_eq!(complaint(r#"{"input":"a","model":""}"#), "`model` must not be empty");
        assert_eq!(complaint(r#"{"input":"a","model":3}"#), "`model` must be a string");
        let with = |field: &str| complaint(&format!(r#"{{"input":"a","model":"m",{field}}}"#));
        assert_eq!(with(r#""dimensions":-1"#), "`dimensions` must be an integer of at least 1");
        assert_eq!(with(r#""dimensions":"8""#), "`dimensions` must be an integer of at least 1");
        let format = "`encoding_format` must be 'float' or 'base64'";
        assert_eq!(with(r#""encoding_format":"hex""#), format);
    }

    #[test]
    fn what_is_not_an_object_is_malformed() {
        for body in ["", "[]", r#"["a","m"]"#, "3", "null", r#"{"input":"a""#, r#"{} x"#] {
            assert!(complaint(body).starts_with("the body is not valid JSON: "), "{body}");
        }
    }
}
