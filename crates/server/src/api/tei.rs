//! TEI's contract: `/embed`, which is `/` too, `/tokenize` and `/info`.

use std::ops::Range;
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::oneshot;
use vecmill_engine::{Info, Input, Prompt, Request, RequestError, Token};

use super::body::JsonText;
use super::known::Route;
use super::object::Object;
use super::options::BOOLEAN;
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
    room.hold_more(reply::room(&request, model.embedder.info(), Encoding::Float))?;
    let (reply, headers) = super::embed(&app, &model, terms.apply(request)).await?;
    let body = super::write(reply, room, reply::arrays).await?;
    Ok((headers, body).into_response())
}

fn parse_embed(body: &str, info: &Info, settings: &Settings) -> Result<Request, Failure> {
    let object = Object::parse(body, Route::Embed)?;
    let inputs = object.field("inputs").inputs(settings.max_client_batch_size)?;
    let asked = options::request(&object, info, settings)?;
    Ok(Request {
        inputs: token_ids::read(inputs, "inputs", Route::Embed, settings)?,
        normalize: asked.normalize.or(Some(true)),
        ..asked
    })
}

/// Texts to be tokenised.
struct Texts {
    texts: Vec<String>,
    special_tokens: bool,
    prompt: Prompt,
}

/// A token as TEI writes it; the place is in characters.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct TokenEntry {
    id: u32,
    text: String,
    special: bool,
    start: Option<usize>,
    stop: Option<usize>,
}

/// `POST /tokenize`
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    model: Model,
    JsonText(body): JsonText,
) -> Result<Response, Failure> {
    let texts = parse_tokenize(&body, model.embedder.info(), &app.settings)?;
    drop(body);
    let (done, tokens) = oneshot::channel();
    // The tokenizer is not async. The job ends early when nobody waits for it any more.
    tokio::task::spawn_blocking(move || {
        let tokens = tokenize_all(&texts, &model, || done.is_closed());
        let _ = done.send(tokens);
    });
    let tokens = tokens.await.map_err(|_| Failure::Internal)??;
    let body = serde_json::to_vec(&tokens).map_err(|_| Failure::Internal)?;
    Ok(super::json(body))
}

fn parse_tokenize(body: &str, info: &Info, settings: &Settings) -> Result<Texts, Failure> {
    let object = Object::parse(body, Route::Tokenize)?;
    let special_tokens = object.field("add_special_tokens").optional(BOOLEAN)?;
    let inputs = object.field("inputs").inputs(settings.max_client_batch_size)?;
    if inputs.is_empty() {
        return Err(RequestError::NoInputs.into());
    }
    let text = |(index, input)| match input {
        Input::Text(text) => Ok(text),
        Input::Tokens(_) => Err(Failure::Field {
            param: format!("inputs[{index}]"),
            problem: "must be a string: token ids are tokenised already".to_owned(),
        }),
    };
    Ok(Texts {
        texts: inputs.into_iter().enumerate().map(text).collect::<Result<_, _>>()?,
        special_tokens: special_tokens.unwrap_or(true),
        prompt: options::prompt(&object, info)?,
    })
}

fn tokenize_all(
    request: &Texts,
    model: &Model,
    given_up: impl Fn() -> bool,
) -> Result<Vec<Vec<TokenEntry>>, RequestError> {
    let texts = request.texts.iter().take_while(|_| !given_up());
    texts
        .map(|text| {
            let tokens = model.embedder.tokenize(text, &request.prompt, request.special_tokens)?;
            Ok(entries(text, tokens))
        })
        .collect()
}

/// TEI gives a token the words of the input that it stands for, and the vocabulary's spelling only
/// where it stands for none.
fn entries(text: &str, tokens: Vec<Token>) -> Vec<TokenEntry> {
    let mut count = CharacterCount { text, bytes: 0, characters: 0 };
    let mut entry = |token: Token| {
        let span = token.span.as_ref().map(|span| whole_characters(text, span));
        let start = span.as_ref().map(|span| count.before(span.start));
        let stop = span.as_ref().map(|span| count.before(span.end));
        let spelled = span.map_or(token.text, |span| text[span].to_owned());
        TokenEntry { id: token.id, text: spelled, special: token.special, start, stop }
    };
    tokens.into_iter().map(&mut entry).collect()
}

/// The span, widened to the characters that it touches: tokens may be single bytes of one.
fn whole_characters(text: &str, span: &Range<usize>) -> Range<usize> {
    let mut end = span.end.min(text.len());
    let mut start = span.start.min(end);
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    while !text.is_char_boundary(end) {
        end += 1;
    }
    start..end
}

/// Counts characters up to a byte, going on from the last place: tokens come in order.
struct CharacterCount<'a> {
    text: &'a str,
    bytes: usize,
    characters: usize,
}

impl CharacterCount<'_> {
    fn before(&mut self, byte: usize) -> usize {
        if byte < self.bytes {
            (self.bytes, self.characters) = (0, 0);
        }
        self.characters += self.text[self.bytes..byte].chars().count();
        self.bytes = byte;
        self.characters
    }
}

/// TEI's word for a pooling: its clients refuse others.
fn pooling(name: &str) -> &str {
    if name == "lasttoken" { "last_token" } else { name }
}

/// `GET /info`: TEI's fields, then ours.
pub(crate) async fn info(State(app): State<Arc<App>>, model: Model) -> Response {
    let info = model.embedder.info();
    let device = |device: &vecmill_engine::Device| {
        let vecmill_engine::Device { name, description, dtype } = device;
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
    use vecmill_engine::Truncation;

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

    #[test]
    fn only_text_can_be_tokenised() {
        let parse = |body: &str| {
            parse_tokenize(body, &info(), &Settings::default()).map(|texts| texts.texts)
        };
        assert_eq!(parse(r#"{"inputs":["a","b"]}"#).unwrap(), ["a", "b"]);
        assert_eq!(parse(r#"{"inputs":[]}"#), Err(RequestError::NoInputs.into()));
        let failure = parse(r#"{"inputs":["a",[1]]}"#).unwrap_err();
        assert!(failure.to_string().starts_with("`inputs[1]` must be a string"));
    }

    fn token(span: Option<Range<usize>>) -> Token {
        Token { id: 1, text: "as spelled".into(), special: span.is_none(), span }
    }

    fn places(text: &str, spans: &[Range<usize>]) -> Vec<(String, usize, usize)> {
        let tokens = spans.iter().map(|span| token(Some(span.clone()))).collect();
        let place = |entry: TokenEntry| (entry.text, entry.start.unwrap(), entry.stop.unwrap());
        entries(text, tokens).into_iter().map(place).collect()
    }

    #[test]
    fn places_are_counted_in_characters() {
        let text = "né 😀x";
        let expected = [("né".into(), 0, 2), ("😀".into(), 3, 4), ("x".into(), 4, 5)];
        assert_eq!(places(text, &[0..3, 4..8, 8..9]), expected);
    }

    #[test]
    fn bytes_of_a_character_stand_for_all_of_it() {
        let all = ("😀".to_owned(), 0, 1);
        assert_eq!(places("😀", &[0..1, 1..2, 3..4]), [all.clone(), all.clone(), all]);
    }

    #[test]
    fn spans_out_of_order_or_range_do_no_harm() {
        let expected = [("c".into(), 2, 3), ("a".into(), 0, 1), ("".into(), 3, 3)];
        assert_eq!(places("abc", &[2..9, 0..1, 7..9]), expected);
    }

    #[test]
    fn tokens_that_stand_for_nothing_keep_their_spelling() {
        let entry = entries("abc", vec![token(None)]).remove(0);
        assert_eq!((entry.text.as_str(), entry.start, entry.stop), ("as spelled", None, None));
    }
}
