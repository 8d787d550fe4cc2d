//! TEI's `/tokenize`: the tokens of texts and where they are.
//!
//! A text of a megabyte can have a million tokens, and each takes about seventy bytes of JSON. So
//! the reply is written in parts, as the client takes them, from tokens that the engine keeps in
//! twelve bytes each; and the place for them is held until the last is written.
//!
//! `text` is the part of prompt and text that a token stands for, and `start` and `stop` are where
//! that is, as in TEI; but in characters, as TEI's clients in Python index a text, where TEI counts
//! bytes. Special tokens have no place and are spelled as the vocabulary does.

use std::convert::Infallible;
use std::io::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use hyper::body::Frame;
use serde::Serialize;
use vecmill_engine::{Info, Input, RequestError, TokenizeRequest, Tokenized};

use super::super::call::Call;
use crate::Settings;
use crate::failure::Failure;
use crate::json::known::{FALSE, NO_EFFECT, WORKS, only, refused};
use crate::json::object::BOOLEAN;
use crate::json::object::{Contract, Object};
use crate::json::prompts::prompt;
use crate::loading::Model;
use crate::reply;

const NOT_CUT: &str = "is not supported: /tokenize cuts nothing";

/// It makes no vectors: what they are like and how they are written does not matter.
pub(super) static CONTRACT: Contract = Contract {
    inputs: "inputs",
    // A token for each byte, of twelve, in a list that doubles; written as the client reads.
    held_per_byte: 40,
    own: &[
        (&["inputs", "add_special_tokens"], WORKS),
        (
            &["prompt"],
            refused(
                "is vLLM's name for a text: here it is `inputs`, and a prompt has its name in `prompt_name`",
            ),
        ),
        (&["truncate"], only(&["false", "\"NONE\""], NOT_CUT)),
        (&["truncation"], only(FALSE, NOT_CUT)),
        (&["truncate_prompt_tokens", "max_tokens"], refused(NOT_CUT)),
        (&["with_pieces"], only(FALSE, "must be false: each token comes with its text")),
        (
            &[
                "truncation_direction",
                "truncation_side",
                "normalize",
                "normalized",
                "use_activation",
                "embd_normalize",
                "dimensions",
                "output_dimension",
                "late_chunking",
                "return_multivector",
                "encoding_format",
                "output_dtype",
                "embedding_types",
                "embedding_type",
                "encoding_type",
                "embed_dtype",
                "endianness",
                "priority",
                "options",
            ],
            NO_EFFECT,
        ),
    ],
    ..Contract::VECTORS
};

/// A part of a reply.
const PART: usize = 32 << 10;

/// `POST /tokenize`
pub(super) async fn tokenize(model: Model, call: Call) -> Result<Response, Failure> {
    let Call { app, room, body, .. } = call;
    let request = parse(&body, model.engine.info(), &app.settings)?;
    drop(body);
    let limit = app.settings.request_timeout;
    let tokens = tokio::time::timeout(limit, model.engine.tokenize(request))
        .await
        .map_err(|_| Failure::Timeout { limit })??;
    room.settle(tokens.bytes() + 2 * PART)?;
    let mut writer = Writer::new(tokens);
    let first = writer.part().map_err(|_| Failure::Internal)?;
    Ok(reply::json(match first {
        Some(first) if writer.ended => Body::from(first),
        first => Body::new(Parts { first: first.map(Bytes::from), writer }),
    }))
}

fn parse(body: &str, info: &Info, settings: &Settings) -> Result<TokenizeRequest, Failure> {
    let object = Object::parse(body, &CONTRACT)?;
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
    Ok(TokenizeRequest {
        texts: inputs.into_iter().enumerate().map(text).collect::<Result<_, _>>()?,
        special_tokens: special_tokens.unwrap_or(true),
        prompt: prompt(&object, info)?,
        ..TokenizeRequest::default()
    })
}

/// A token as TEI writes it.
#[derive(Serialize)]
struct Entry<'a> {
    id: u32,
    text: &'a str,
    special: bool,
    start: Option<usize>,
    stop: Option<usize>,
}

/// Writes tokens as JSON, going on where it stopped.
struct Writer {
    tokens: Tokenized,
    /// The next token: of which text, and which of it.
    text: usize,
    token: usize,
    place: Place,
    ended: bool,
}

impl Writer {
    fn new(tokens: Tokenized) -> Self {
        Self { tokens, text: 0, token: 0, place: Place::default(), ended: false }
    }

    /// The next part; `None` at the end.
    fn part(&mut self) -> serde_json::Result<Option<Vec<u8>>> {
        if self.ended {
            return Ok(None);
        }
        let mut out = Vec::with_capacity(PART);
        if (self.text, self.token) == (0, 0) {
            out.push(b'[');
        }
        while out.len() < PART && !self.ended {
            self.write_next(&mut out)?;
        }
        Ok(Some(out))
    }

    /// Writes one token, or the end of a text.
    fn write_next(&mut self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        if self.text == self.tokens.texts() {
            out.push(b']');
            self.ended = true;
            return Ok(());
        }
        if self.token == 0 {
            out.extend_from_slice(if self.text == 0 { b"[" } else { b",[" });
        }
        match self.tokens.token(self.text, self.token) {
            Some(token) => {
                if self.token > 0 {
                    out.push(b',');
                }
                let mut place = |byte| self.place.characters(&self.tokens, self.text, byte);
                let start = token.span.as_ref().map(|span| place(span.start));
                let stop = token.span.as_ref().map(|span| place(span.end));
                let (id, text, special) = (token.id, &*token.text, token.special);
                serde_json::to_writer(out.by_ref(), &Entry { id, text, special, start, stop })?;
                self.token += 1;
            }
            None => {
                out.push(b']');
                (self.text, self.token, self.place) = (self.text + 1, 0, Place::default());
            }
        }
        Ok(())
    }
}

/// A place in a text, in bytes and characters. Tokens come in order, nearly: going on from the last
/// place spares counting from the start.
#[derive(Debug, Default, Clone, Copy)]
struct Place {
    bytes: usize,
    characters: usize,
}

impl Place {
    /// Goes on, or back, to a byte of a text; gives the characters before it.
    fn characters(&mut self, tokens: &Tokenized, text: usize, byte: usize) -> usize {
        let count = |span| tokens.part(text, span).chars().count();
        self.characters = match byte < self.bytes {
            true => self.characters - count(byte..self.bytes),
            false => self.characters + count(self.bytes..byte),
        };
        self.bytes = byte;
        self.characters
    }
}

/// A reply that is written as it is read.
struct Parts {
    first: Option<Bytes>,
    writer: Writer,
}

impl HttpBody for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = match self.first.take() {
            Some(first) => Some(first),
            // Writing to a vector does not fail.
            None => self.writer.part().ok().flatten().map(Bytes::from),
        };
        Poll::Ready(part.map(|part| Ok(Frame::data(part))))
    }
}
