//! Text to token ids, as the model's `tokenizer.json` says.
//!
//! Truncation and padding that the file may ask for are switched off: how long an input may be is
//! the model's pipeline's to say, and nothing is ever padded.

use std::path::Path;

use tokenizers::{Encoding, PostProcessor, TruncationDirection};
use vecmill_encoder::model::Pipeline;

use crate::error::{RequestError, StartError};
use crate::request::{Token, Truncation};

/// A model's tokenizer and the limit for its inputs.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    lowercase: bool,
    max_tokens: usize,
    special_tokens: usize,
}

/// An input's ids, at most as many as the model takes.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    pub(crate) truncated: bool,
}

impl Tokenizer {
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
        let special_tokens =
            inner.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if special_tokens >= max_tokens {
            let reason =
                format!("it adds {special_tokens} tokens, but the model takes {max_tokens}");
            return Err(failed(reason));
        }
        Ok(Self { inner, lowercase: pipeline.lowercase, max_tokens, special_tokens })
    }

    /// Tokenises input `index` with special tokens and cuts what is too long.
    pub(crate) fn encode(
        &self,
        index: usize,
        text: &str,
        truncation: Truncation,
    ) -> Result<Tokens, RequestError> {
        let encoding = self.inner.encode_fast(&*self.cased(text), false);
        let mut encoding = encoding.map_err(|error| refused(index, &*error))?;
        let tokens = encoding.len() + self.special_tokens;
        let truncated = tokens > self.max_tokens;
        if truncated {
            let direction = match truncation {
                Truncation::End => TruncationDirection::Right,
                Truncation::Start => TruncationDirection::Left,
                Truncation::Refuse => {
                    let limit = self.max_tokens;
                    return Err(RequestError::TooManyTokens { index, tokens, limit });
                }
            };
            encoding.truncate(self.max_tokens - self.special_tokens, 0, direction);
        }
        let encoding = self.inner.post_process(encoding, None, true);
        let encoding = encoding.map_err(|error| refused(index, &*error))?;
        Ok(Tokens { ids: encoding.get_ids().to_vec(), truncated })
    }

    /// Takes the ids of input `index` as they are, and cuts them if they are too many.
    pub(crate) fn limit(
        &self,
        index: usize,
        mut ids: Vec<u32>,
        truncation: Truncation,
    ) -> Result<Tokens, RequestError> {
        let (tokens, limit) = (ids.len(), self.max_tokens);
        if tokens > limit {
            match truncation {
                Truncation::End => ids.truncate(limit),
                Truncation::Start => drop(ids.drain(..tokens - limit)),
                Truncation::Refuse => {
                    return Err(RequestError::TooManyTokens { index, tokens, limit });
                }
            }
        }
        Ok(Tokens { truncated: tokens > limit, ids })
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
