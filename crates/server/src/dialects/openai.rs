//! OpenAI's contract: `/v1/embeddings` and `/v1/models`.
//!
//! `model` may be any name, or missing: one model is served, and clients often have a name in them
//! that cannot be changed. Replies give the name of the model that was really used. Fields of other
//! servers' contracts work here too, or are refused by name ([`known`](crate::json::known)).
//! The limits of OpenAI's own models, 8192 tokens an input and 300,000 a request, are not ours:
//! the model decides on the first, and the limit on the body bounds the second.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Value, json};
use vecmill_engine::{Info, Reply, Request, RequestError};

use super::call::Call;
use super::{Address, Dialect};
use crate::Settings;
use crate::app::App;
use crate::failure::{Failure, short};
use crate::json::known::WORKS;
use crate::json::object::{Contract, Object};
use crate::json::options::{self, WaitingTerms};
use crate::loading::Model;
use crate::reply::{self, Encoding};

pub(super) static DIALECT: Dialect = Dialect {
    addresses: &[
        Address::work("/v1/embeddings", &CONTRACT, || post(embeddings)),
        Address::work("/embeddings", &CONTRACT, || post(embeddings)),
        Address::about("/v1/models", || get(models)),
    ],
    explain,
};

static CONTRACT: Contract = Contract {
    takes_openai_ids: true,
    own: &[(&["input", "model", "encoding_format"], WORKS)],
    ..Contract::VECTORS
};

/// `POST /v1/embeddings`
async fn embeddings(model: Model, terms: WaitingTerms, call: Call) -> Result<Response, Failure> {
    let (request, encoding) = read(&call.body, model.engine.info(), &call.app.settings)?;
    let name = call.app.model_name(&model).to_owned();
    let write = move |reply: &Reply| write(reply, &name, encoding);
    call.embed(&model, terms.apply(request), encoding, write).await
}

fn read(body: &str, info: &Info, settings: &Settings) -> Result<(Request, Encoding), Failure> {
    let object = Object::parse(body, &CONTRACT)?;
    object.field("model").optional::<String>("a string")?;
    let encoding = object.field("encoding_format").optional("'float' or 'base64'")?;
    let request = Request {
        inputs: object.field("input").inputs(settings.max_client_batch_size)?,
        ..options::request(&object, info, settings)?
    };
    Ok((request, encoding.unwrap_or_default()))
}

/// A list of numbered embeddings, the model's name and what was used.
fn write(reply: &Reply, model: &str, encoding: Encoding) -> serde_json::Result<Vec<u8>> {
    let mut out = reply::buffer(reply, encoding);
    let mut scratch = Vec::new();
    out.extend_from_slice(br#"{"object":"list","data":["#);
    for (index, embedding) in reply.embeddings.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(br#"{"object":"embedding","index":"#);
        serde_json::to_writer(&mut out, &index)?;
        out.extend_from_slice(br#","embedding":"#);
        match encoding {
            Encoding::Float => serde_json::to_writer(&mut out, &embedding.vector)?,
            Encoding::Base64 => reply::push_base64(&mut out, &embedding.vector, &mut scratch),
        }
        out.push(b'}');
    }
    out.extend_from_slice(br#"],"model":"#);
    serde_json::to_writer(&mut out, model)?;
    let tokens = reply.tokens();
    out.extend_from_slice(br#","usage":"#);
    serde_json::to_writer(&mut out, &json!({"prompt_tokens": tokens, "total_tokens": tokens}))?;
    out.push(b'}');
    Ok(out)
}

/// `GET /v1/models`: the one that is served.
async fn models(State(app): State<Arc<App>>, model: Model) -> Response {
    let id = app.model_name(&model);
    let entry = json!({
        "id": id, "object": "model", "created": model.created, "owned_by": "vecmill"
    });
    reply::json(json!({"object": "list", "data": [entry]}).to_string())
}

/// An object with four keys, all always there.
fn explain(failure: &Failure) -> (StatusCode, Value) {
    let status = failure.status();
    let kind = match status.as_u16() {
        429 => "requests",
        500.. => "server_error",
        _ => "invalid_request_error",
    };
    let (message, param) = (failure.message(), param(failure, CONTRACT.inputs));
    let error = json!({"message": message, "type": kind, "param": param, "code": failure.code()});
    (status, json!({ "error": error }))
}

/// The field that is to blame, where `inputs` is the one with the inputs.
pub(super) fn param(failure: &Failure, inputs: &str) -> Option<String> {
    let param = match failure {
        Failure::Field { param, .. } => Some(param.clone()),
        Failure::TooManyInputs { param, .. } => Some((*param).to_owned()),
        Failure::UnknownDevice { .. } => Some("device".to_owned()),
        Failure::Request(error) => match (error.input(), error) {
            (Some(index), _) => Some(format!("{inputs}[{index}]")),
            (None, RequestError::NoInputs) => Some(inputs.to_owned()),
            (None, RequestError::WrongTask { .. }) => Some("model".to_owned()),
            (None, RequestError::Dimensions { .. }) => Some("dimensions".to_owned()),
            (None, RequestError::UnknownPrompt { .. }) => Some("prompt_name".to_owned()),
            _ => None,
        },
        _ => None,
    };
    param.map(short)
}

#[cfg(test)]
mod tests {
    use super::super::info;
    use super::*;
    use crate::reply::tests::reply;
    use vecmill_engine::Truncation;

    fn parse(body: &str, settings: &Settings) -> Result<(Request, Encoding), Failure> {
        read(body, &info(), settings)
    }

    fn complaint(body: &str) -> String {
        parse(body, &Settings::default()).unwrap_err().to_string()
    }

    #[test]
    fn a_request_has_sensible_defaults() {
        for model in [r#""model":"m","#, r#""model":"","#, r#""model":null,"#, ""] {
            let body = format!(r#"{{{model}"input":"a","user":7,"x":[{{}}]}}"#);
            let (request, encoding) = parse(&body, &Settings::default()).unwrap();
            assert_eq!(request, Request::new(["a"]));
            assert_eq!(encoding, Encoding::Float);
        }

        let body = r#"{"model":"m","input":["a"],"encoding_format":"base64","dimensions":6}"#;
        let settings = Settings { auto_truncate: false, ..Settings::default() };
        let (request, encoding) = parse(body, &settings).unwrap();
        assert_eq!(request.dimensions, Some(6));
        assert_eq!(request.truncation, Truncation::Refuse);
        assert_eq!(encoding, Encoding::Base64);

        let nulls = r#"{"input":"a","model":"m","encoding_format":null,"dimensions":null}"#;
        assert!(parse(nulls, &Settings::default()).is_ok());
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

    #[test]
    fn openai_replies_have_the_contract_s_form() {
        let written = write(&reply(&[&[0.5, -1.0], &[2.0, 0.0]]), "a \"b\"", Encoding::Float);
        let expected = json!({
            "object": "list",
            "data": [
                {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]},
                {"object": "embedding", "index": 1, "embedding": [2.0, 0.0]},
            ],
            "model": "a \"b\"",
            "usage": {"prompt_tokens": 6, "total_tokens": 6},
        });
        assert_eq!(serde_json::from_slice::<Value>(&written.unwrap()).unwrap(), expected);
    }

    #[test]
    fn the_buffer_is_large_enough() {
        let vector: Vec<f32> = (0..1000).map(|n| -(n as f32) / 12_345.0).collect();
        let reply = reply(&[&vector, &vector]);
        for encoding in [Encoding::Float, Encoding::Base64] {
            let written =
                write(&reply, "sentence-transformers/all-MiniLM-L6-v2", encoding).unwrap();
            let buffer = reply::buffer(&reply, encoding).capacity();
            assert!(written.len() <= buffer, "{encoding:?}");
        }
    }
}
