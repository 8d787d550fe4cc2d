//! Text to token ids, as the model's `tokenizer.json` says, and as the settings beside it change it.
//!
//! - `file` reads `tokenizer.json` with suspicion; what is said elsewhere is
//!   [`TokenizerSettings`](vecmill_model::TokenizerSettings).
//! - `cuts` finds where a long text may be cut, so that no more of it is tokenised than is wanted.
//! - Texts of BERT tokenizers go a shorter way (`words`).
//! - `listing` keeps tokens with their places.
//!
//! Truncation and padding that the file may ask for are left out: how long an input may be is the
//! model's pipeline's to say, and nothing is ever padded.

mod cuts;
mod file;
mod listing;
mod words;

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokenizers::{Encoding, NormalizedString, Normalizer, NormalizerWrapper, PreTokenizerWrapper};
use vecmill_model::{AddedToken, Model, Pipeline, TokenizerSettings, read_file};

use crate::error::{RequestError, StartError};
use crate::request::{TokenizeRequest, Truncation};
use cuts::{Cuts, From};
use file::{File, Flaw};
use listing::{Lowered, Spelled};
pub use listing::{TOKENS_LIMIT, Tokenized};
use words::Words;

/// What the `tokenizers` crate gives.
type Outcome<T> = Result<T, tokenizers::Error>;

/// Longer texts that can't be cut are tokenised one at a time: each byte takes some hundred.
const LONG: usize = 64 << 10;

/// Words that every vocabulary of English has, and most others in parts.
const COMMON: [&str; 4] = ["the", "and", "people", "water"];

/// A model's tokenizer and the limit for its inputs.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    lowercase: bool,
    max_tokens: usize,
    frame: Frame,
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

    fn len(&self) -> usize {
        self.before.len() + self.after.len()
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

    /// The tokens of texts and where they are, without cutting any. `prompt` goes in front of each.
    ///
    /// # Errors
    /// If there are more than [`TOKENS_LIMIT`] tokens, or the tokenizer refuses a text.
    pub fn list(&self, request: TokenizeRequest, prompt: &str) -> Result<Tokenized, RequestError> {
        self.list_while(request, prompt, TOKENS_LIMIT, || true)
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
        let growth = file.growth;
        let more = settings.added_tokens.iter().map(added).collect();
        let inner = file.build(more).map_err(failed)?;
        Self::over(inner, growth, pipeline.lowercase, max_tokens).map_err(failed).inspect(
            |tokenizer| {
                if let Ok(Some(doubt)) = caught(0, || Ok(tokenizer.doubt())) {
                    tracing::warn!("{}: {doubt}", path.display());
                }
            },
        )
    }

    /// Around a tokenizer whose normaliser makes at most `growth` bytes of one.
    fn over(
        inner: tokenizers::Tokenizer,
        growth: usize,
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
        let cuts = file::caught("normalizer", || Ok(Cuts::of(&inner)))?;
        Ok(Self {
            lowercase,
            max_tokens,
            words: Words::of(&inner),
            cuts,
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
        let ids = [self.frame.before.as_slice(), &body, &self.frame.after].concat();
        Ok(Tokens { ids, truncated })
    }

    /// Ids of the special tokens before and after each text.
    pub(crate) fn special_tokens(&self) -> (&[u32], &[u32]) {
        (&self.frame.before, &self.frame.after)
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
        Ok(Tokens { ids, truncated })
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

    fn cased<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.lowercase { text.to_lowercase().into() } else { text.into() }
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
