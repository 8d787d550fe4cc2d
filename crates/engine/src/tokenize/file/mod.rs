//! `tokenizer.json`, taken as hostile like every other file of a model.
//!
//! Sizes come first: of the file, of each part, of each table and each entry in it. Then each part is
//! made by its own type, of the kinds that are known here; what would make the `tokenizers` crate
//! panic, overflow the stack or take memory without end is refused before. What panics all the same
//! is caught. An error names the key.
//!
//! - `model`: vocabularies and merges, checked as they stream by, never held twice.
//! - `parts`: normalisers, pre-tokenisers and post-processors.
//! - `charsmap`: the automaton in a `Precompiled` normaliser, walked once.
//!
//! Truncation, padding and the decoder are not read: how long an input may be is the pipeline's to
//! say, nothing is ever padded, and ids are never turned back into text.

mod charsmap;
mod model;
mod parts;

use std::any::Any;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;
use serde_json::value::RawValue;
use tokenizers::{
    AddedToken, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Tokenizer,
};
use vecmill_model as model_files;

/// The most bytes of a `tokenizer.json`: three times the largest that an embedding model has.
pub(super) const SIZE_LIMIT: u64 = 100 << 20;

/// The most bytes of each part beside the model and the added tokens. The largest honest ones hold a
/// character map of less than one megabyte.
const PART_LIMIT: usize = 4 << 20;
const ADDED_TOKENS_LIMIT: usize = 1 << 17;
const ADDED_TOKENS_BYTES: usize = 32 << 20;

/// The most bytes of one token.
const TOKEN_BYTES: usize = 1024;
/// The highest token id: no embedding table has so many rows.
const HIGHEST_ID: u32 = (1 << 24) - 1;

/// What is wrong with a file, and at which key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{key}': {}", shortened(reason))]
pub(super) struct Flaw {
    key: String,
    reason: String,
}

impl Flaw {
    pub(super) fn new(key: impl Into<String>, reason: impl Display) -> Self {
        Self { key: key.into(), reason: reason.to_string() }
    }
}

/// The parts of a `tokenizer.json`, each checked.
#[derive(Debug)]
pub(super) struct File {
    pub(super) model: ModelWrapper,
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
    added_tokens: Vec<AddedTokenWithId>,
    /// The most bytes that the normaliser makes of one byte.
    pub(super) growth: usize,
}

#[derive(Deserialize)]
struct Fields<'a> {
    version: Option<String>,
    #[serde(borrow)]
    added_tokens: Option<&'a RawValue>,
    normalizer: Option<&'a RawValue>,
    pre_tokenizer: Option<&'a RawValue>,
    post_processor: Option<&'a RawValue>,
    model: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct AddedTokenWithId {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

impl File {
    /// From a file's bytes.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Flaw> {
        let whole = |error: &dyn Display| Flaw::new("the whole file", error);
        let text = std::str::from_utf8(bytes).map_err(|error| whole(&error))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let fields: Fields<'_> = serde_json::from_str(text).map_err(|error| whole(&error))?;
        if fields.version.as_deref().is_some_and(|version| version != "1.0") {
            return Err(Flaw::new("version", "expected 1.0"));
        }
        let Some(model) = fields.model else { return Err(Flaw::new("model", "it is missing")) };
        let model = caught("model", || model::parse(model))?;
        let normalizer = part("normalizer", fields.normalizer, parts::normalizer)?;
        let (normalizer, growth) = normalizer.unzip();
        Ok(Self {
            model,
            normalizer,
            pre_tokenizer: part("pre_tokenizer", fields.pre_tokenizer, parts::pre_tokenizer)?,
            post_processor: part("post_processor", fields.post_processor, parts::post_processor)?,
            added_tokens: caught("added_tokens", || added_tokens(fields.added_tokens))?,
            growth: growth.unwrap_or(1),
        })
    }

    /// The file's added tokens, by their ids.
    pub(super) fn own_tokens(&self) -> BTreeMap<u32, model_files::AddedToken> {
        let token = |AddedTokenWithId { id, token }: &AddedTokenWithId| {
            let AddedToken { content, single_word, lstrip, rstrip, normalized, special } =
                token.clone();
            let token = model_files::AddedToken {
                content,
                single_word,
                lstrip,
                rstrip,
                normalized,
                special,
            };
            (*id, token)
        };
        self.added_tokens.iter().map(token).collect()
    }

    /// The tokenizer, with `more` added tokens behind the file's own.
    pub(super) fn build(self, more: Vec<AddedToken>) -> Result<Tokenizer, Flaw> {
        let mut tokenizer = Tokenizer::new(self.model);
        caught("normalizer", || {
            let normalizer = tokenizer.with_normalizer(self.normalizer);
            normalizer.map(drop).map_err(|error| Flaw::new("normalizer", error))
        })?;
        tokenizer.with_pre_tokenizer(self.pre_tokenizer);
        tokenizer.with_post_processor(self.post_processor);
        let own: Vec<_> = self.added_tokens.iter().map(|added| added.token.clone()).collect();
        caught("added_tokens", || {
            let flaw = |error| Flaw::new("added_tokens", error);
            tokenizer.add_tokens(own).map_err(flaw)?;
            for AddedTokenWithId { id, token } in &self.added_tokens {
                let given = tokenizer.token_to_id(&token.content);
                if given.is_some_and(|given| given != *id) {
                    let given = given.unwrap_or_default();
                    let token = shortened(&token.content);
                    let reason = format!("'{token}' has id {id}, but by its place it has {given}");
                    return Err(Flaw::new("added_tokens", reason));
                }
            }
            tokenizer.add_tokens(more).map(drop).map_err(flaw)
        })?;
        Ok(tokenizer)
    }
}

/// A part that may be absent or null.
fn part<T>(
    key: &str,
    raw: Option<&RawValue>,
    parse: fn(&RawValue, &str) -> Result<T, Flaw>,
) -> Result<Option<T>, Flaw> {
    let Some(raw) = raw.filter(|raw| raw.get() != "null") else { return Ok(None) };
    let bytes = raw.get().len();
    if bytes > PART_LIMIT {
        return Err(Flaw::new(
            key,
            format!("it has {bytes} bytes, but at most {PART_LIMIT} are read"),
        ));
    }
    caught(key, || parse(raw, key)).map(Some)
}

fn added_tokens(raw: Option<&RawValue>) -> Result<Vec<AddedTokenWithId>, Flaw> {
    let flaw = |reason: String| Flaw::new("added_tokens", reason);
    let Some(raw) = raw.filter(|raw| raw.get() != "null") else { return Ok(Vec::new()) };
    let bytes = raw.get().len();
    if bytes > ADDED_TOKENS_BYTES {
        return Err(flaw(format!(
            "they have {bytes} bytes, but at most {ADDED_TOKENS_BYTES} are read"
        )));
    }
    let tokens: Vec<AddedTokenWithId> =
        serde_json::from_str(raw.get()).map_err(|error| flaw(error.to_string()))?;
    if tokens.len() > ADDED_TOKENS_LIMIT {
        return Err(flaw(format!(
            "{} tokens, but at most {ADDED_TOKENS_LIMIT} are read",
            tokens.len()
        )));
    }
    let mut ids = HashSet::new();
    for AddedTokenWithId { id, token } in &tokens {
        if *id > HIGHEST_ID {
            return Err(flaw(format!("id {id} is above {HIGHEST_ID}")));
        }
        if !ids.insert(id) {
            return Err(flaw(format!("id {id} is there twice")));
        }
        if token.content.is_empty() || token.content.len() > TOKEN_BYTES {
            return Err(flaw(format!(
                "the token with id {id} should have 1 to {TOKEN_BYTES} bytes"
            )));
        }
    }
    Ok(tokens)
}

/// Runs what may panic on a file that is not what it should be.
pub(super) fn caught<T>(key: &str, run: impl FnOnce() -> Result<T, Flaw>) -> Result<T, Flaw> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        Err(Flaw::new(key, format!("the tokenizers crate panicked at it: {}", said(&*panic))))
    })
}

/// The words of a panic.
pub(super) fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without words")
}

/// The first characters of a text, as errors quote it: parsers repeat whatever they have found.
pub(super) fn shortened(text: &str) -> String {
    const SHOWN: usize = 200;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
