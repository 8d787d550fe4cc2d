//! Text to token ids, as the model's `tokenizer.json` says, and as the settings beside it change it.
//!
//! - [`Tokenizer::encode`] is what each text goes through.
//! - `open` makes a tokenizer of a model's files: `file` reads `tokenizer.json` with suspicion; what is
//!   said elsewhere is [`TokenizerSettings`](vecmill_model::TokenizerSettings).
//! - `cuts` finds where a long text may be cut, so that no more of it is tokenised than is wanted.
//! - Texts of BERT tokenizers go a shorter way (`words`).
//! - `pairs` has two texts side by side, [`Tokenizer::encode_pair`].
//! - `listing` keeps tokens with their places.
//!
//! Truncation and padding that the file may ask for are left out: how long an input may be is the
//! model's pipeline's to say, and nothing is ever padded.

mod cuts;
mod file;
mod listing;
mod open;
mod pairs;
mod words;

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use tokenizers::{NormalizedString, Normalizer};

use crate::error::RequestError;
use crate::request::Truncation;
use cuts::{Cuts, From};
use listing::Spelled;
pub use listing::{TOKENS_LIMIT, Token, TokenizeRequest, Tokenized};
use pairs::PairFrame;
pub(crate) use pairs::Side;
use words::Words;

/// What the `tokenizers` crate gives.
type Outcome<T> = Result<T, tokenizers::Error>;

/// Longer texts that can't be cut are tokenised one at a time: each byte takes some hundred.
const LONG: usize = 64 << 10;

/// A model's tokenizer and the limit for its inputs.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    lowercase: bool,
    max_tokens: usize,
    frame: Frame,
    /// Around two texts, where the tokenizer takes pairs.
    pairs: Option<PairFrame>,
    /// The short way, where there is one.
    words: Option<Words>,
    /// Where texts may be cut, if anywhere.
    cuts: Option<Cuts>,
    /// The most bytes that normalising makes of one.
    growth: usize,
    /// Whether the places of tokens leave out white space.
    trims: bool,
    spelled: Arc<Spelled>,
    /// Held while a long text is tokenised in one go.
    long: Mutex<()>,
}

/// An input's ids, at most as many as the model takes.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    /// From here on they are of a second text.
    pub(crate) second: usize,
    pub(crate) truncated: bool,
}

/// The special tokens around each text.
#[derive(Debug)]
struct Frame {
    before: Vec<u32>,
    after: Vec<u32>,
}

impl Tokens {
    /// Of one text.
    fn of_one(ids: Vec<u32>, truncated: bool) -> Self {
        Self { second: ids.len(), ids, truncated }
    }
}

impl Frame {
    fn len(&self) -> usize {
        self.before.len() + self.after.len()
    }
}

impl Tokenizer {
    /// The ids of a text, special tokens included, at most as many as the model takes.
    ///
    /// # Errors
    /// If the text is too long and must not be cut, or the tokenizer refuses it.
    pub fn ids(&self, text: &str, truncation: Truncation) -> Result<Vec<u32>, RequestError> {
        Ok(self.encode(0, text, truncation)?.ids)
    }

    /// Tokenises input `index` with special tokens and cuts what is too long. No more of a long text
    /// is tokenised than that takes, where the tokenizer allows it.
    pub(crate) fn encode(
        &self,
        index: usize,
        text: &str,
        truncation: Truncation,
    ) -> Result<Tokens, RequestError> {
        let special = self.frame.len();
        let room = self.max_tokens - special;
        let (body, tokens) = caught(index, || self.body(&self.cased(text), truncation, room))?;
        let limit = self.max_tokens;
        let truncated = tokens > room;
        if truncated && truncation == Truncation::Refuse {
            return Err(RequestError::TooManyTokens { index, tokens: tokens + special, limit });
        }
        Ok(Tokens::of_one(
            [self.frame.before.as_slice(), &body, &self.frame.after].concat(),
            truncated,
        ))
    }

    /// The ids of a text, at most as many as there is room for, and how many there are altogether:
    /// or, where the rest is cut off, more than there is room for.
    fn body(&self, text: &str, truncation: Truncation, room: usize) -> Outcome<(Vec<u32>, usize)> {
        let (mut kept, mut missing, mut tokens) = (Vec::new(), room, 0);
        let from = if truncation == Truncation::Start { From::End } else { From::Start };
        for piece in self.pieces(text, from) {
            let enough = if truncation == Truncation::End { missing } else { usize::MAX };
            let mut ids = self.piece(piece, enough)?;
            tokens += ids.len();
            match from {
                From::Start => ids.truncate(missing),
                From::End => drop(ids.drain(..ids.len().saturating_sub(missing))),
            }
            missing -= ids.len();
            kept.push(ids);
            if tokens > room && truncation != Truncation::Refuse {
                break;
            }
        }
        if from == From::End {
            kept.reverse();
        }
        Ok((kept.concat(), tokens))
    }

    fn pieces<'a>(&'a self, text: &'a str, from: From) -> impl Iterator<Item = &'a str> {
        let pieces = self.cuts.as_ref().map(|cuts| cuts.pieces(&self.inner, text, from));
        let whole = pieces.is_none().then_some(text);
        pieces.into_iter().flatten().chain(whole)
    }

    /// The ids of a piece of a text; it may stop at more than `enough`.
    fn piece(&self, piece: &str, enough: usize) -> Outcome<Vec<u32>> {
        match &self.words {
            Some(words) => words.ids(&self.inner, piece, enough, |part| self.whole(part)),
            None => self.whole(piece),
        }
    }

    /// The ids of a text, without special tokens, by all of the tokenizer.
    fn whole(&self, text: &str) -> Outcome<Vec<u32>> {
        self.bounded(text, || Ok(self.inner.encode_fast(text, false)?.get_ids().to_vec()))
    }

    /// Runs what tokenises a text in one go: long ones one at a time, and none that would grow
    /// beyond bounds when it is normalised.
    fn bounded<T>(&self, text: &str, run: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        let _one =
            (text.len() > LONG).then(|| self.long.lock().unwrap_or_else(PoisonError::into_inner));
        let allowed = 4 * text.len() + (256 << 10);
        if self.growth.saturating_mul(text.len()) > allowed
            && let Some(normalizer) = self.inner.get_normalizer()
        {
            // In small parts, to see how much it is before it is there.
            let (mut made, mut rest) = (0, text);
            while let Some(first) = rest.chars().next() {
                let at = (first.len_utf8()..=1024.min(rest.len()))
                    .rfind(|&at| rest.is_char_boundary(at));
                let (part, behind) = rest.split_at(at.unwrap_or(first.len_utf8()));
                let mut part = NormalizedString::from(part);
                normalizer.normalize(&mut part)?;
                made += part.get().len();
                rest = behind;
                if made > allowed {
                    let (bytes, key) = (text.len(), "'normalizer' in tokenizer.json");
                    let reason = format!("{key} makes more than {allowed} bytes of {bytes}");
                    return Err(reason.into());
                }
            }
        }
        run()
    }

    /// Takes the ids of input `index` as they are, and cuts them if they are too many.
    pub(crate) fn limit(
        &self,
        index: usize,
        mut ids: Vec<u32>,
        truncation: Truncation,
    ) -> Result<Tokens, RequestError> {
        let (tokens, limit) = (ids.len(), self.max_tokens);
        let truncated = tokens > limit;
        if truncated {
            match truncation {
                Truncation::End => ids.truncate(limit),
                Truncation::Start => drop(ids.drain(..tokens - limit)),
                Truncation::Refuse => {
                    return Err(RequestError::TooManyTokens { index, tokens, limit });
                }
            }
        }
        Ok(Tokens::of_one(ids, truncated))
    }

    fn cased<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.lowercase { text.to_lowercase().into() } else { text.into() }
    }
}

/// Runs what tokenises input `index`. A tokenizer's expressions and tables are not ours: if one
/// panics, that input fails alone.
fn caught<T>(index: usize, run: impl FnOnce() -> Outcome<T>) -> Result<T, RequestError> {
    let refused = |reason: &str| RequestError::Tokenizer { index, reason: file::shortened(reason) };
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|error| refused(&error.to_string())),
        Err(panic) => Err(refused(&format!("the tokenizer panicked: {}", file::said(&*panic)))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn folder(model: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(model)
    }

    const TEXTS: [&str; 4] =
        ["Everyone has the right to life.", "", " née \u{301}Ünd [MASK]<s> 中文", "a\tb\u{0}c "];

    #[test]
    fn ids_are_those_of_the_file_s_tokenizer() {
        for model in ["bert-mean", "distilbert-mean", "roberta-mean", "xlm-roberta-cls"] {
            let ours = Tokenizer::of_model(&folder(model)).unwrap();
            let path = folder(model).join("tokenizer.json");
            let theirs = tokenizers::Tokenizer::from_file(path).unwrap();
            for text in TEXTS {
                let expected = theirs.encode_fast(text, true).unwrap();
                assert_eq!(ours.ids(text, Truncation::Refuse).unwrap(), expected.get_ids());
            }
        }
    }

    #[test]
    fn a_panic_is_that_input_s_alone() {
        let error = caught(3, || -> Outcome<()> { panic!("{}", "x".repeat(9999)) }).unwrap_err();
        let RequestError::Tokenizer { index: 3, reason } = error else { unreachable!("{error}") };
        assert!(
            reason.starts_with("the tokenizer panicked: xxx") && reason.len() < 300,
            "{reason}"
        );
    }

    #[test]
    fn lists_of_tokens_end_at_their_limit() {
        let tokenizer = Tokenizer::of_model(&folder("bert-mean")).unwrap();
        let list = |texts: usize, limit| {
            let texts = vec!["and be, con".to_owned(); texts];
            let request = TokenizeRequest { texts, special_tokens: true, ..Default::default() };
            tokenizer.list_while(request, "", limit, || true).map(|listed| listed.total())
        };
        let one = list(1, 99).unwrap();
        assert_eq!(list(3, 3 * one), Ok(3 * one));
        let limit = 3 * one - 1;
        assert_eq!(list(3, limit), Err(RequestError::TooMuchToTokenize { limit }));
        let request = TokenizeRequest { texts: vec!["and".into()], ..Default::default() };
        let given_up = tokenizer.list_while(request, "", 99, || false).unwrap_err();
        assert_eq!(given_up, RequestError::GivenUp);
    }

    #[test]
    fn long_texts_are_cut_within_their_special_tokens() {
        let tokenizer = Tokenizer::of_model(&folder("bert-mean")).unwrap();
        let limit = tokenizer.max_tokens;
        let text: Vec<_> = (0..limit).map(|n| ["and", "be", "con"][n % 3]).collect();
        let text = text.join(" ");
        let whole = tokenizer.whole(&text).unwrap();
        let framed = |middle: &[u32]| {
            let Frame { before, after } = &tokenizer.frame;
            [before.as_slice(), middle, after].concat()
        };
        let (special, all) = (framed(&[]).len(), whole.len());
        for (truncation, kept) in [
            (Truncation::End, &whole[..limit - special]),
            (Truncation::Start, &whole[all - (limit - special)..]),
        ] {
            let tokens = tokenizer.encode(0, &text, truncation).unwrap();
            assert_eq!((tokens.ids, tokens.truncated), (framed(kept), true), "{truncation:?}");
        }
        let refused = tokenizer.encode(7, &text, Truncation::Refuse).unwrap_err();
        let tokens = all + special;
        assert_eq!(refused, RequestError::TooManyTokens { index: 7, tokens, limit });
        let fits = text.rsplitn(special + 1, ' ').last().unwrap();
        assert!(!tokenizer.encode(0, fits, Truncation::End).unwrap().truncated);
    }
}
