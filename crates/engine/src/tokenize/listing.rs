//! The tokens of texts with their places, for people to look at.
//!
//! Nothing is cut, so a text has up to a token for each byte. They are made piece by piece, kept as
//! three numbers each, and dressed only when they are asked for, one after the other.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use tokenizers::PostProcessorWrapper;
use tokio::sync::OwnedSemaphorePermit;

use super::cuts::From;
use super::{Frame, Tokenizer, caught};
use crate::error::RequestError;
use crate::request::Prompt;

/// The most tokens of one [`TokenizeRequest`].
pub const TOKENS_LIMIT: usize = 1 << 20;

/// A request for the tokens of texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizeRequest {
    /// The model whose tokenizer is asked, by its name; the engine's first one if none is given.
    pub model: Option<String>,
    /// What to tokenise; nothing is cut.
    pub texts: Vec<String>,
    /// The prompt in front of each.
    pub prompt: Prompt,
    /// Whether the special tokens around a text are listed too.
    pub special_tokens: bool,
}

/// A token and where in the text it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token<'a> {
    /// Its id in the vocabulary.
    pub id: u32,
    /// The part of prompt and text that it stands for, in whole characters. Of special tokens, the
    /// vocabulary's spelling.
    pub text: Cow<'a, str>,
    /// Whether the tokenizer added it (`[CLS]`, `</s>`, …).
    pub special: bool,
    /// Where that part is: bytes of the prompt and the text behind it. `None` for special tokens.
    pub span: Option<Range<usize>>,
}

/// The tokens of each text of a request.
pub struct Tokenized {
    /// What goes in front of each text.
    prompt: String,
    texts: Vec<Text>,
    tokens: usize,
    frame: Arc<Spelled>,
    /// One of the places for what is tokenised and not yet read.
    _place: Option<OwnedSemaphorePermit>,
}

impl fmt::Debug for Tokenized {
    // Texts stay out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenized").field("texts", &self.texts.len()).finish_non_exhaustive()
    }
}

/// A text, and the tokens of the prompt and it.
struct Text {
    text: String,
    tokens: Vec<Place>,
}

/// A token, and the bytes of prompt and text that it stands for. Bodies of requests are far shorter
/// than what 32 bits can count.
#[derive(Clone, Copy)]
struct Place {
    id: u32,
    start: u32,
    stop: u32,
}

/// The special tokens around each text, as the vocabulary spells them; none if none were asked for.
#[derive(Debug, Default)]
pub(super) struct Spelled {
    before: Vec<(u32, String)>,
    after: Vec<(u32, String)>,
}

impl Spelled {
    pub(super) fn of(frame: &Frame, tokenizer: &tokenizers::Tokenizer) -> Self {
        let spelled = |&id: &u32| (id, tokenizer.id_to_token(id).unwrap_or_default());
        Self {
            before: frame.before.iter().map(spelled).collect(),
            after: frame.after.iter().map(spelled).collect(),
        }
    }
}

impl Tokenizer {
    /// The tokens of texts and where they are, without cutting any. `prompt` goes in front of each.
    ///
    /// # Errors
    /// If there are more than [`TOKENS_LIMIT`] tokens, or the tokenizer refuses a text.
    pub fn list(&self, request: TokenizeRequest, prompt: &str) -> Result<Tokenized, RequestError> {
        self.list_while(request, prompt, TOKENS_LIMIT, || true)
    }

    /// As [`list`](Self::list), but gives up between two pieces of a text when nobody wants it.
    pub(crate) fn list_while(
        &self,
        request: TokenizeRequest,
        prompt: &str,
        limit: usize,
        wanted: impl Fn() -> bool,
    ) -> Result<Tokenized, RequestError> {
        let frame = if request.special_tokens { Arc::clone(&self.spelled) } else { Arc::default() };
        let mut listed = Tokenized::new(prompt, frame);
        for (index, text) in request.texts.into_iter().enumerate() {
            let whole: Cow<'_, str> =
                if prompt.is_empty() { (&*text).into() } else { format!("{prompt}{text}").into() };
            let lowered = self.lowercase.then(|| Lowered::new(&whole));
            let seen = if self.lowercase { whole.to_lowercase().into() } else { whole };
            listed.begin();
            let mut offset = 0;
            for piece in self.pieces(&seen, From::Start) {
                if !wanted() {
                    return Err(RequestError::GivenUp);
                }
                let encoding =
                    caught(index, || self.bounded(piece, || self.inner.encode(piece, false)))?;
                for (&id, &(start, stop)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
                    let first = offset > 0 && start == 0 && stop > 1 && piece.starts_with(' ');
                    // A text's first token keeps a space where others give it away.
                    let span = offset + start + usize::from(first && self.trims)..offset + stop;
                    listed.add(id, lowered.as_ref().map_or(span.clone(), |it| it.span(span)));
                }
                if listed.total() > limit {
                    return Err(RequestError::TooMuchToTokenize { limit });
                }
                offset += piece.len();
            }
            drop(seen);
            listed.end(text);
        }
        Ok(listed)
    }
}

impl Tokenized {
    pub(super) fn new(prompt: &str, frame: Arc<Spelled>) -> Self {
        Self { prompt: prompt.to_owned(), texts: Vec::new(), tokens: 0, frame, _place: None }
    }

    /// Keeps a place until this is dropped.
    pub(crate) fn holding(self, place: OwnedSemaphorePermit) -> Self {
        Self { _place: Some(place), ..self }
    }

    /// How many texts there are.
    pub fn texts(&self) -> usize {
        self.texts.len()
    }

    /// How many tokens a text has, special tokens included; none where there is no such text.
    pub fn count(&self, text: usize) -> usize {
        let Spelled { before, after } = &*self.frame;
        self.texts.get(text).map_or(0, |text| before.len() + text.tokens.len() + after.len())
    }

    /// Bytes that this holds.
    pub fn bytes(&self) -> usize {
        let of = |text: &Text| {
            size_of::<Text>() + text.text.capacity() + text.tokens.capacity() * size_of::<Place>()
        };
        self.prompt.len() + self.texts.iter().map(of).sum::<usize>()
    }

    /// The `n`th token of a text; `None` beyond the last.
    pub fn token(&self, text: usize, n: usize) -> Option<Token<'_>> {
        let tokens = &self.texts.get(text)?.tokens;
        let Spelled { before, after } = &*self.frame;
        let special = |(id, text): &'_ (u32, String)| Token {
            id: *id,
            text: Cow::Owned(text.clone()),
            special: true,
            span: None,
        };
        if let Some(token) = before.get(n) {
            return Some(special(token));
        }
        let n = n - before.len();
        if let Some(&Place { id, start, stop }) = tokens.get(n) {
            let span = self.whole_characters(text, start as usize..stop as usize);
            let part = self.part(text, span.clone());
            return Some(Token { id, text: part, special: false, span: Some(span) });
        }
        after.get(n - tokens.len()).map(special)
    }

    /// A part of the prompt and a text, by its bytes; nothing where that is no part of them.
    pub fn part(&self, text: usize, bytes: Range<usize>) -> Cow<'_, str> {
        let (prompt, middle) = (&*self.prompt, self.prompt.len());
        let text = self.texts.get(text).map_or("", |text| &text.text);
        if bytes.start >= middle {
            return text.get(bytes.start - middle..bytes.end - middle).unwrap_or_default().into();
        }
        if bytes.end <= middle {
            return prompt.get(bytes).unwrap_or_default().into();
        }
        let (first, rest) = (prompt.get(bytes.start..), text.get(..bytes.end - middle));
        [first.unwrap_or_default(), rest.unwrap_or_default()].concat().into()
    }

    /// A span, widened to the characters that it touches: tokens may be single bytes of one.
    fn whole_characters(&self, text: usize, span: Range<usize>) -> Range<usize> {
        let middle = self.prompt.len();
        let text = self.texts.get(text).map_or("", |text| &text.text);
        let boundary = |byte: usize| match byte.checked_sub(middle) {
            Some(byte) => text.is_char_boundary(byte),
            None => self.prompt.is_char_boundary(byte),
        };
        let mut end = span.end.min(middle + text.len());
        let mut start = span.start.min(end);
        while !boundary(start) {
            start -= 1;
        }
        while !boundary(end) {
            end += 1;
        }
        start..end
    }

    /// Begins with the tokens of another text.
    pub(super) fn begin(&mut self) {
        self.texts.push(Text { text: String::new(), tokens: Vec::new() });
        self.tokens += self.frame.before.len() + self.frame.after.len();
    }

    /// Appends a token of the last text.
    pub(super) fn add(&mut self, id: u32, span: Range<usize>) {
        let number = |byte: usize| u32::try_from(byte).unwrap_or(u32::MAX);
        if let Some(text) = self.texts.last_mut() {
            let (start, stop) = (number(span.start), number(span.end));
            text.tokens.push(Place { id, start, stop });
            self.tokens += 1;
        }
    }

    /// Ends with the last text's tokens.
    pub(super) fn end(&mut self, text: String) {
        if let Some(last) = self.texts.last_mut() {
            last.tokens.shrink_to_fit();
            last.text = text;
        }
    }

    /// Tokens of all texts together.
    pub(super) fn total(&self) -> usize {
        self.tokens
    }
}

/// Whether a tokenizer takes white space at a token's ends for none of it. The first token of a text
/// is treated in another way, so those of later pieces are put right.
pub(super) fn trims(processor: &PostProcessorWrapper) -> bool {
    match processor {
        PostProcessorWrapper::Roberta(roberta) => roberta.trim_offsets,
        PostProcessorWrapper::ByteLevel(bytes) => bytes.trim_offsets,
        PostProcessorWrapper::Sequence(all) => all.as_ref().iter().any(trims),
        PostProcessorWrapper::Bert(_) | PostProcessorWrapper::Template(_) => false,
    }
}

/// Where the bytes of a text in lower case were before.
///
/// The letters are those of [`str::to_lowercase`], which makes them one by one, but for the Greek
/// sigma at a word's end: that one has as many bytes as the other.
pub(super) struct Lowered {
    /// Characters that have another number of bytes in lower case, in order.
    changed: Vec<Changed>,
}

/// The bytes of a character, before and after.
struct Changed {
    from: Range<usize>,
    to: Range<usize>,
}

impl Lowered {
    pub(super) fn new(original: &str) -> Self {
        let (mut changed, mut to) = (Vec::new(), 0);
        for (from, character) in original.char_indices() {
            let bytes = character.len_utf8();
            let lowered: usize = character.to_lowercase().map(char::len_utf8).sum();
            if bytes != lowered {
                changed.push(Changed { from: from..from + bytes, to: to..to + lowered });
            }
            to += lowered;
        }
        Self { changed }
    }

    /// Where a span was, widened to all of the characters that it touches.
    pub(super) fn span(&self, span: Range<usize>) -> Range<usize> {
        let place = |byte: usize, inside: fn(&Range<usize>) -> usize| {
            let before = self.changed.partition_point(|changed| changed.to.start < byte);
            match before.checked_sub(1).and_then(|last| self.changed.get(last)) {
                Some(Changed { from, to }) if byte < to.end => inside(from),
                Some(Changed { from, to }) => from.end + (byte - to.end),
                None => byte,
            }
        };
        let start = place(span.start, |from| from.start);
        start..place(span.end, |from| from.end).max(start)
    }
}
