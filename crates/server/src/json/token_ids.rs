//! Token ids in place of text: whose they are, and what becomes of them.
//!
//! An id is only a number: another vocabulary's ids are valid here too, and the vector that comes of
//! them has nothing to do with the text. LangChain's `OpenAIEmbeddings` sends OpenAI's ids unless it
//! is told not to. So the operator can say what ids are ([`TokenInputs`]); and where they are said
//! to be the model's own, a list that is not framed as the model's own are is answered with a
//! warning, in a header each time and in the log once.

use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::HeaderValue;
use tiktoken::CoreBpe;
use vecmill_engine::{Info, Input, Request};

use super::object::{Contract, wrong};
use crate::failure::Failure;
use crate::token_inputs::{ADVICE, cl100k_base};
use crate::{Settings, TokenInputs};

/// The special token by which lists of the model's own ids can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    Begins(u32),
    Ends(u32),
    /// The model has none.
    Unmarked,
}

/// What lists of the model's own ids look like.
#[derive(Debug)]
pub(crate) struct OwnIds {
    edge: Edge,
    warned: AtomicBool,
}

impl OwnIds {
    /// As the model's tokenizer makes them.
    pub(crate) fn of(info: &Info) -> Self {
        let edge = match (info.tokens_before.as_slice(), info.tokens_after.as_slice()) {
            ([first, ..], _) => Edge::Begins(*first),
            ([], [.., last]) => Edge::Ends(*last),
            ([], []) => Edge::Unmarked,
        };
        Self { edge, warned: AtomicBool::new(false) }
    }

    fn are(&self, ids: &[u32]) -> bool {
        match self.edge {
            Edge::Begins(id) => ids.first() == Some(&id),
            Edge::Ends(id) => ids.last() == Some(&id),
            Edge::Unmarked => true,
        }
    }

    /// A warning for a reply's header if any of the inputs is ids that look like another model's.
    pub(crate) fn warning(&self, inputs: &[Input]) -> Option<HeaderValue> {
        let foreign = |input: &Input| matches!(input, Input::Tokens(ids) if !self.are(ids));
        let index = inputs.iter().position(foreign)?;
        let how = match self.edge {
            Edge::Begins(id) => format!("begin with its first special token, {id}"),
            Edge::Ends(id) => format!("end with its last special token, {id}"),
            Edge::Unmarked => return None,
        };
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "a request has token ids that are probably not the model's own, which {how}: \
                 vectors made of them mean nothing; {ADVICE} (logged once)"
            );
        }
        let text = format!("input {index} is probably not the model's own token ids, which {how}");
        HeaderValue::from_str(&text).ok()
    }
}

/// The request, with token ids in it as the operator says that they are meant. For the texts that
/// come of them, `hold` takes room.
pub(crate) fn as_meant(
    request: Request,
    contract: &Contract,
    settings: &Settings,
    hold: impl Fn(usize) -> Result<(), Failure>,
) -> Result<Request, Failure> {
    let is_ids = |input: &Input| matches!(input, Input::Tokens(_));
    let Some(first) = request.inputs.iter().position(is_ids) else { return Ok(request) };
    let field = contract.inputs;
    match settings.token_inputs {
        TokenInputs::Cl100kBase if contract.takes_openai_ids => {
            let vocabulary = cl100k_base().ok_or(Failure::Internal)?;
            let reader = Reader { vocabulary, field, limit: settings.payload_limit, hold };
            Ok(Request { inputs: reader.texts(request.inputs)?, ..request })
        }
        // Clients of TEI send the model's ids: its contract asks for their special tokens.
        TokenInputs::Model | TokenInputs::Cl100kBase => Ok(request),
        TokenInputs::Refuse => Err(wrong(
            &format!("{field}[{first}]"),
            "is token ids, which this server refuses (--token-inputs refuse): send text, as \
             LangChain's OpenAIEmbeddings does with check_embedding_ctx_length=False",
        )),
    }
}

/// Reads ids of OpenAI's vocabulary as text.
struct Reader<H> {
    vocabulary: &'static CoreBpe,
    field: &'static str,
    /// The most bytes of text for one request: some ids stand for 128.
    limit: usize,
    hold: H,
}

impl<H: Fn(usize) -> Result<(), Failure>> Reader<H> {
    /// Texts in place of ids.
    fn texts(&self, inputs: Vec<Input>) -> Result<Vec<Input>, Failure> {
        let mut left = self.limit;
        let text = |(index, input)| match input {
            Input::Text(text) => Ok(Input::Text(text)),
            Input::Tokens(ids) => self.text(index, &ids, &mut left).map(Input::Text),
        };
        inputs.into_iter().enumerate().map(text).collect()
    }

    /// The text that ids stand for. An id may be a part of a character; where clients cut between
    /// such parts, what is left of the character becomes U+FFFD.
    fn text(&self, index: usize, ids: &[u32], left: &mut usize) -> Result<String, Failure> {
        let wrong = |problem: &str| wrong(&format!("{}[{index}]", self.field), problem);
        let mut length = 0;
        for &id in ids {
            let bytes = self.vocabulary.decode(&[id]).len();
            if bytes == 0 {
                let problem = format!("has token id {id}, which is none of OpenAI's cl100k_base");
                return Err(wrong(&problem));
            }
            length += bytes;
        }
        let limit = self.limit;
        *left = left.checked_sub(length).ok_or_else(|| {
            wrong(&format!(
                "is beyond the {limit} bytes of text that ids may stand for: send several requests"
            ))
        })?;
        (self.hold)(length)?;
        match String::from_utf8(self.vocabulary.decode(ids)) {
            Ok(text) => Ok(text),
            Err(error) => {
                (self.hold)(length * char::REPLACEMENT_CHARACTER.len_utf8())?;
                Ok(String::from_utf8_lossy(error.as_bytes()).into_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(ids: &[u32]) -> Result<String, String> {
        let inputs = vec![Input::Tokens(ids.to_vec())];
        let vocabulary = cl100k_base().unwrap();
        let reader = Reader { vocabulary, field: "input", limit: 1000, hold: |_| Ok(()) };
        let texts = reader.texts(inputs);
        match texts.map_err(|failure| failure.to_string())?.remove(0) {
            Input::Text(text) => Ok(text),
            Input::Tokens(_) => panic!("still ids"),
        }
    }

    #[test]
    fn openai_s_ids_are_read() {
        // As OpenAI's own tiktoken 0.14 makes them.
        let golden: [(&[u32], &str); 6] = [
            (&[9906, 1917], "Hello world"),
            (&[57668, 53901, 3922, 3574, 244, 98220], "你好，世界"),
            (&[85936, 1264, 978, 91416, 95980, 588], "Résumé 😀 naïve"),
            (&[64, 4062, 14198, 39935, 627, 197, 936, 59958], "a quick brown fox.\n\tcafé"),
            (&[100257], "<|endoftext|>"),
            (&[], ""),
        ];
        for (ids, text) in golden {
            assert_eq!(decoded(ids).as_deref(), Ok(text));
        }
    }

    #[test]
    fn parts_of_characters_become_replacement_characters() {
        assert_eq!(decoded(&[57668, 53901, 3922, 3574]).unwrap(), "你好，\u{fffd}"); // of 世, its head
        assert_eq!(decoded(&[244, 98220]).unwrap(), "\u{fffd}界");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for id in [100_256, 100_261, 100_275, 100_277, u32::MAX] {
            let complaint = decoded(&[9906, id]).unwrap_err();
            assert!(complaint.contains(&format!("`input[0]` has token id {id}, ")), "{complaint}");
        }
        let complaint = decoded(&[1917; 200]).unwrap_err();
        assert!(complaint.contains("beyond the 1000 bytes"), "{complaint}");
    }

    #[test]
    fn room_is_taken_before_the_text_is_made() {
        let held = std::cell::Cell::new(0);
        let hold = |bytes| {
            held.set(held.get() + bytes);
            if held.get() > 20 { Err(Failure::Internal) } else { Ok(()) }
        };
        let vocabulary = cl100k_base().unwrap();
        let reader = Reader { vocabulary, field: "input", limit: 1000, hold };
        let hello = Input::Tokens(vec![9906, 1917]); // 11 bytes
        assert!(reader.texts(vec![hello.clone()]).is_ok());
        assert_eq!(held.get(), 11);
        assert_eq!(reader.texts(vec![hello]), Err(Failure::Internal));
    }

    #[test]
    fn own_ids_are_told_by_their_special_tokens() {
        let own = |edge| OwnIds { edge, warned: AtomicBool::new(false) };
        let lists = [Input::from("a"), Input::Tokens(vec![101, 7]), Input::Tokens(vec![7, 102])];
        let warning =
            |edge| own(edge).warning(&lists).map(|text| text.to_str().unwrap().to_owned());
        assert!(warning(Edge::Begins(101)).unwrap().starts_with("input 2 is probably not"));
        assert!(warning(Edge::Ends(102)).unwrap().starts_with("input 1 is probably not"));
        assert_eq!(warning(Edge::Unmarked), None);
        assert_eq!(own(Edge::Begins(101)).warning(&lists[..2]), None);
    }
}
