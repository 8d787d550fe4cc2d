//! Ollama's contract: `/api/embed`.
//!
//! Vectors are always of length one, also after they were cut to `dimensions`; more of these than
//! the model has are all that it has. A request without texts is how clients have a model loaded:
//! it is answered without vectors. `model` may be any name, and comes back as it was sent. The model
//! is always loaded: `keep_alive` changes nothing, and loading takes no time. Of `options`, only
//! `num_ctx` has to do with vectors, and the model's limit is not made smaller for one request.
//! A full queue is said with 503, as Ollama does. As there, a body is JSON whatever type it says it
//! has: its documents use `curl -d`, which says that it sends a form.

use std::borrow::Cow;
use std::collections::BTreeMap;

use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use vecmill_engine::{Info, Input, Reply, Request, RequestError};

use super::call::Call;
use super::{Address, Dialect};
use crate::Settings;
use crate::failure::Failure;
use crate::json::known::{WORKS, only, refused};
use crate::json::object::{Contract, Field, Object, wrong};
use crate::json::options::{self, WaitingTerms};
use crate::json::truncation::limit;
use crate::loading::Model;
use crate::reply::{self, Encoding};

pub(super) static DIALECT: Dialect =
    Dialect { addresses: &[Address::work("/api/embed", &CONTRACT, || post(embed))], explain };

const SCALED: &str = "must ask for vectors of length one: Ollama's are";

static CONTRACT: Contract = Contract {
    caps_dimensions: true,
    any_media_type: true,
    own: &[
        (&["input", "model", "options"], WORKS),
        (&["prompt"], refused("is a text on Ollama's /api/embeddings: here it is `input`")),
        (&["normalize", "normalized", "use_activation"], only(&["true"], SCALED)),
        (&["embd_normalize"], only(&["2"], SCALED)),
    ],
    ..Contract::VECTORS
};

/// `POST /api/embed`
async fn embed(model: Model, terms: WaitingTerms, call: Call) -> Result<Response, Failure> {
    let (request, name) = read(&call.body, model.engine.info(), &call.app.settings)?;
    let name = name.unwrap_or_else(|| call.app.model_name(&model).to_owned());
    if request.inputs.is_empty() {
        return Ok(reply::json(json!({"model": name, "embeddings": []}).to_string()));
    }
    let write = move |reply: &Reply| write(reply, &name);
    call.embed(&model, terms.apply(request), Encoding::Float, write).await
}

fn read(
    body: &str,
    info: &Info,
    settings: &Settings,
) -> Result<(Request, Option<String>), Failure> {
    let object = Object::parse(body, &CONTRACT)?;
    let name = object.field("model").optional("a string")?;
    let input = object.field("input");
    let inputs = match input.sent() {
        None | Some("\"\"") => Vec::new(),
        Some(_) => input.inputs(settings.max_client_batch_size)?,
    };
    if let Some(index) = inputs.iter().position(|input| matches!(input, Input::Tokens(_))) {
        let problem = "must be a string: Ollama's contract has no token ids";
        return Err(wrong(&format!("input[{index}]"), problem));
    }
    let model_options: Option<BTreeMap<Cow<'_, str>, &RawValue>> =
        object.field("options").optional("an object")?;
    let context = model_options.as_ref().and_then(|options| options.get("num_ctx"));
    limit(Field::new("options.num_ctx", context.map(|raw| raw.get())), info)?;
    let asked = options::request(&object, info, settings)?;
    Ok((Request { inputs, normalize: Some(true), ..asked }, name))
}

fn write(reply: &Reply, model: &str) -> serde_json::Result<Vec<u8>> {
    let mut out = reply::buffer(reply, Encoding::Float);
    out.extend_from_slice(br#"{"model":"#);
    serde_json::to_writer(&mut out, model)?;
    out.extend_from_slice(br#","embeddings":"#);
    reply::push_arrays(&mut out, reply)?;
    let (took, tokens) = (reply.timings.total.as_nanos(), reply.tokens());
    let rest =
        format!(r#","total_duration":{took},"load_duration":0,"prompt_eval_count":{tokens}}}"#);
    out.extend_from_slice(rest.as_bytes());
    Ok(out)
}

/// An object with nothing but the message.
fn explain(failure: &Failure) -> (StatusCode, Value) {
    let status = match failure.status() {
        StatusCode::TOO_MANY_REQUESTS => StatusCode::SERVICE_UNAVAILABLE,
        status => status,
    };
    let message = match failure {
        // Clients look for these words.
        Failure::Request(RequestError::TooManyTokens { .. }) => {
            format!("the input length exceeds the context length: {}", failure.message())
        }
        _ => failure.message(),
    };
    (status, json!({ "error": message }))
}
