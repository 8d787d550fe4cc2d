//! Text to token ids, as the model's `tokenizer.json` says.
//!
//! Truncation and padding that the file may ask for are switched off: how long an input may be is
//! the model's pipeline's to say, and nothing is ever padded. Texts of BERT tokenizers go a shorter
//! way (`words`).

mod words;

use std::path::Path;

use tokenizers::Encoding;
use vecmill_encoder::Model;
use vecmill_encoder::model::Pipeline;

use crate::error::{RequestError, StartError};
use crate::request::{Token, Truncation};
use words::Words;

/// A model's tokenizer and the limit for its inputs.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    lowercase: bool,
    max_tokens: usize,
    frame: Frame,
    /// The short way, where there is one.
    words: Option<Words>,
}

/// An input's ids, at most as many as the model takes.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    pub(crate) truncated: bool,
}

/// The special tokens around each text.
#[derive(Debug)]
struct Frame {
    before: Vec<u32>,
    after: Vec<u32>,
}

impl Frame {
    /// As the tokenizer puts them around any text; `None` if it does something else with one.
    fn of(tokenizer: &tokenizers::Tokenizer) -> Option<Self> {
        const TEXT: [u32; 2] = [u32::MAX - 1, u32::MAX]; // ids that no vocabulary has
        let token = |id| (id, String::new(), (0, 0), None, 0);
        let text: Encoding = TEXT.into_iter().map(token).collect();
        let framed = tokenizer.post_process(text, None, true).ok()?;
        let ids = framed.get_ids();
        let start = ids.windows(TEXT.len()).position(|ids| ids == TEXT)?;
        let (before, after) = (&ids[..start], &ids[start + TEXT.len()..]);
        let again = before.iter().chain(after).any(|id| TEXT.contains(id));
        (!again).then(|| Self { before: before.to_vec(), after: after.to_vec() })
    }
}

impl Tokenizer {
    /// The tokenizer of the model in `folder`, alone: for counting tokens, or for ids that
    /// [`Input::Tokens`](crate::Input::Tokens) takes.
    ///
    /// # Errors
    /// If the folder has no model that vecmill can run.
    pub fn of_model(folder: &Path) -> Result<Self, StartError> {
        let model = Model::open(folder)?;
        Self::open(&model.folder, &model.pipeline, model.max_input_tokens())
    }

    /// The ids of a text, special tokens included, at most as many as the model takes.
    ///
    /// # Errors
    /// If the text is too long and must not be cut, or the tokenizer refuses it.
    pub fn ids(&self, text: &str, truncation: Truncation) -> Result<Vec<u32>, RequestError> {
        Ok(self.encode(0, text, truncation)?.ids)
    }

    /// How many tokens the vocabulary has by itself, and of those added to it the one of the highest
    /// id.
    pub(crate) fn vocabulary(&self) -> (usize, Option<(u32, String)>) {
        let added = self.inner.get_added_tokens_decoder().into_iter().max_by_key(|(id, _)| *id);
        let last = added.map(|(id, token)| (id, token.content));
        (self.inner.get_vocab_size(false), last)
    }

    /// Reads `tokenizer.json` in `folder`.
    pub(crate) fn open(
        folder: &Path,
        pipeline: &Pipeline,
        max_tokens: usize,
    ) -> Result<Self, StartError> {
        let path = folder.join("tokenizer.json");
        let failed = |reason: String| StartError::Tokenizer { path: path.clone(), reason };
        let mut inner =
            tokenizers::Tokenizer::from_file(&path).map_err(|error| failed(error.to_string()))?;
        inner.with_truncation(None).map_err(|error| failed(error.to_string()))?;
        inner.with_padding(None);
        let frame = Frame::of(&inner).ok_or_else(|| {
            failed("expected tokens before and after each text, found something else".into())
        })?;
        let special_tokens = frame.before.len() + frame.after.len();
        if special_tokens >= max_tokens {
            let reason =
                format!("it adds {special_tokens} tokens, but the model takes {max_tokens}");
            return Err(failed(reason));
        }
        let words = Words::of(&inner);
        Ok(Self { inner, lowercase: pipeline.lowercase, max_tokens, frame, words })
    }

    /// Tokenises input `index` with special tokens and cuts what is too long.
    pub(crate) fn encode(
        &self,
        index: usize,
        text: &str,
        truncation: Truncation,
    ) -> Result<Tokens, RequestError> {
        let text = self.cased(text);
        let special = self.frame.before.len() + self.frame.after.len();
        let enough = match truncation {
            Truncation::End => self.max_tokens - special,
            Truncation::Start | Truncation::Refuse => usize::MAX, // all of it counts
        };
        let body = match &self.words {
            Some(words) => words.ids(&self.inner, &text, enough),
            None => words::whole(&self.inner, &text),
        };
        let mut body = body.map_err(|error| refused(index, &*error))?;
        let truncated = self.cut(index, &mut body, special, truncation)?;
        let ids = [self.frame.before.as_slice(), &body, &self.frame.after].concat();
        Ok(Tokens { ids, truncated })
    }

    /// Ids of the special tokens before and after each text.
    pub(crate) fn special_tokens(&self) -> (&[u32], &[u32]) {
        (&self.frame.before, &self.frame.after)
    }

    /// Takes the ids of input `index` as they are, and cuts them if they are too many.
    pub(crate) fn limit(
        &self,
        index: usize,
        mut ids: Vec<u32>,
        truncation: Truncation,
    ) -> Result<Tokens, RequestError> {
        let truncated = self.cut(index, &mut ids, 0, truncation)?;
        Ok(Tokens { ids, truncated })
    }

    /// Cuts the ids of input `index` if, with `special` others, they are too many.
    fn cut(
        &self,
        index: usize,
        ids: &mut Vec<u32>,
        special: usize,
        truncation: Truncation,
    ) -> Result<bool, RequestError> {
        let (tokens, limit) = (ids.len() + special, self.max_tokens);
        if tokens > limit {
            match truncation {
                Truncation::End => ids.truncate(limit - special),
                Truncation::Start => drop(ids.drain(..tokens - limit)),
                Truncation::Refuse => {
                    return Err(RequestError::TooManyTokens { index, tokens, limit });
                }
            }
        }
        Ok(tokens > limit)
    }

    /// Tokenises without cutting, for people to look at.
    pub(crate) fn explain(&self, text: &str, special: bool) -> Result<Vec<Token>, RequestError> {
        let encoding = self.inner.encode(&*self.cased(text), special);
        let encoding: Encoding = encoding.map_err(|error| refused(0, &*error))?;
        let masks = encoding.get_special_tokens_mask();
        let places = encoding.get_ids().iter().zip(encoding.get_tokens());
        let places = places.zip(encoding.get_offsets()).zip(masks);
        let token = |(((&id, text), &(start, end)), &mask): (((&u32, &String), _), _)| {
            let special = mask != 0;
            Token { id, text: text.clone(), special, span: (!special).then_some(start..end) }
        };
        Ok(places.map(token).collect())
    }

    fn cased<'a>(&self, text: &'a str) -> std::borrow::Cow<'a, str> {
        if self.lowercase { text.to_lowercase().into() } else { text.into() }
    }
}

fn refused(index: usize, error: &(dyn std::error::Error + Send + Sync)) -> RequestError {
    RequestError::Tokenizer { index, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

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
    fn long_texts_are_cut_within_their_special_tokens() {
        let tokenizer = Tokenizer::of_model(&folder("bert-mean")).unwrap();
        let limit = tokenizer.max_tokens;
        let text: Vec<_> = (0..limit).map(|n| ["and", "be", "con"][n % 3]).collect();
        let text = text.join(" ");
        let whole = words::whole(&tokenizer.inner, &text).unwrap();
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
