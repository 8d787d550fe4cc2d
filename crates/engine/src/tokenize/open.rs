//! A tokenizer made of a model's files, checked, with what is learned of it beforehand.

use std::path::Path;
use std::sync::{Arc, Mutex};

use tokenizers::{Encoding, NormalizerWrapper, PreTokenizerWrapper};
use vecmill_model::{AddedToken, Model, Pipeline, TokenizerSettings, read_file};

use super::cuts::Cuts;
use super::file::{self, File, Flaw};
use super::listing::{self, Spelled};
use super::pairs::PairFrame;
use super::words::Words;
use super::{Frame, Tokenizer, caught};
use crate::error::StartError;

/// Words that every vocabulary of English has, and most others in parts.
const COMMON: [&str; 4] = ["the", "and", "people", "water"];

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

    /// How many tokens the vocabulary has by itself, and of those added to it the one of the highest
    /// id.
    pub(crate) fn vocabulary(&self) -> (usize, Option<(u32, String)>) {
        let added = self.inner.get_added_tokens_decoder().into_iter().max_by_key(|(id, _)| *id);
        let last = added.map(|(id, token)| (id, token.content));
        (self.inner.get_vocab_size(false), last)
    }

    /// Reads `tokenizer.json` in `folder`, and what is said beside it.
    pub(crate) fn open(
        folder: &Path,
        pipeline: &Pipeline,
        max_tokens: usize,
    ) -> Result<Self, StartError> {
        let path = folder.join("tokenizer.json");
        let bytes = read_file(&path, file::SIZE_LIMIT)?;
        let failed =
            |flaw: Flaw| StartError::Tokenizer { path: path.clone(), reason: flaw.to_string() };
        let mut file = File::parse(&bytes).map_err(failed)?;
        drop(bytes);
        let settings = TokenizerSettings::open(folder, &file.own_tokens())?;
        adapt(&mut file, &settings);
        let (growth, types) = (file.growth, settings.token_types);
        let more = settings.added_tokens.iter().map(added).collect();
        let inner = file.build(more).map_err(failed)?;
        Self::over(inner, (growth, types), pipeline.lowercase, max_tokens).map_err(failed).inspect(
            |tokenizer| {
                if let Ok(Some(doubt)) = caught(0, || Ok(tokenizer.doubt())) {
                    tracing::warn!("{}: {doubt}", path.display());
                }
            },
        )
    }

    /// Around a tokenizer whose normaliser makes at most `growth` bytes of one; `types` says whether the
    /// model is told which tokens are of a second text.
    pub(super) fn over(
        inner: tokenizers::Tokenizer,
        (growth, types): (usize, bool),
        lowercase: bool,
        max_tokens: usize,
    ) -> Result<Self, Flaw> {
        const KEY: &str = "post_processor";
        let frame = file::caught(KEY, || {
            let expected = "expected tokens before and after each text, found something else";
            Frame::of(&inner).ok_or_else(|| Flaw::new(KEY, expected))
        })?;
        if frame.len() >= max_tokens {
            let reason =
                format!("it adds {} tokens, but the model takes {max_tokens}", frame.len());
            return Err(Flaw::new(KEY, reason));
        }
        let pairs = file::caught(KEY, || Ok(PairFrame::of(&inner, types)))?;
        let cuts = file::caught("normalizer", || Ok(Cuts::of(&inner)))?;
        Ok(Self {
            lowercase,
            max_tokens,
            words: Words::of(&inner),
            cuts,
            pairs: pairs.filter(|pairs| pairs.len() < max_tokens),
            growth,
            trims: inner.get_post_processor().is_some_and(listing::trims),
            spelled: Arc::new(Spelled::of(&frame, &inner)),
            frame,
            long: Mutex::new(()),
            inner,
        })
    }

    /// Why settings and vocabulary may not belong together: common words that are all unknown. An
    /// engine logs it when it starts.
    pub fn doubt(&self) -> Option<String> {
        let unknown = self.unknown()?;
        let foreign = |word: &str| {
            let ids = self.whole(&self.cased(word)).unwrap_or_default();
            ids.iter().all(|&id| id == unknown)
        };
        let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
        let capitals = COMMON.map(capital);
        let because = match (COMMON.into_iter().all(foreign), capitals.iter().all(|it| foreign(it)))
        {
            (true, true) => "in neither case".to_owned(),
            (false, true) => format!("with a capital, as in {}", capitals.join(", ")),
            _ => return None,
        };
        Some(format!(
            "common words are unknown to the vocabulary {because}: do its settings for case belong \
             to it (do_lower_case in tokenizer_config.json, lowercase in tokenizer.json)?"
        ))
    }

    /// The id that stands for the unknown, where there is one.
    fn unknown(&self) -> Option<u32> {
        use tokenizers::ModelWrapper::{BPE, Unigram, WordLevel, WordPiece};
        match self.inner.get_model() {
            WordPiece(model) => self.inner.token_to_id(&model.unk_token),
            WordLevel(model) => self.inner.token_to_id(&model.unk_token),
            BPE(model) => self.inner.token_to_id(model.unk_token.as_ref()?),
            // It doesn't say; what can't be in it is unknown to it.
            Unigram(_) => self.whole("\u{10fffd}").ok()?.last().copied(),
        }
    }

    /// Ids of the special tokens before and after each text.
    pub(crate) fn special_tokens(&self) -> (&[u32], &[u32]) {
        (&self.frame.before, &self.frame.after)
    }
}

/// Changes what `tokenizer.json` says to what the settings beside it say.
fn adapt(file: &mut File, settings: &TokenizerSettings) {
    if let Some(NormalizerWrapper::BertNormalizer(bert)) = &mut file.normalizer {
        bert.lowercase = settings.lowercase.unwrap_or(bert.lowercase);
        bert.strip_accents = settings.strip_accents.unwrap_or(bert.strip_accents);
        let chinese = settings.chinese_characters.unwrap_or(bert.handle_chinese_chars);
        bert.handle_chinese_chars = chinese;
    }
    if let Some(PreTokenizerWrapper::ByteLevel(bytes)) = &mut file.pre_tokenizer {
        bytes.add_prefix_space = settings.add_prefix_space;
    }
}

fn added(token: &AddedToken) -> tokenizers::AddedToken {
    let AddedToken { content, single_word, lstrip, rstrip, normalized, special } = token;
    tokenizers::AddedToken::from(content.as_str(), *special)
        .single_word(*single_word)
        .lstrip(*lstrip)
        .rstrip(*rstrip)
        .normalized(*normalized)
}
