//! Where a text may be cut and tokenised piece by piece, with the same tokens as in one go.
//!
//! Tokenising holds some hundred bytes for each byte of a text, and mostly the first few hundred
//! tokens are wanted. So long texts are taken in pieces, where the tokenizer allows it.
//!
//! - [`Cuts::of`] knows the tokenizers that work on words apart from each other.
//! - [`Cuts::pieces`] cuts a text forwards or backwards.
//!
//! Why the tokens are the same. The first kind of place is before a single space between two
//! characters that no normaliser here takes away, makes white space of, or joins to a space:
//! pre-tokenisers that part words at white space have a boundary there whatever lies farther off,
//! and a piece that begins with the space isn't given another in front. The second is where a BERT
//! tokenizer parts characters itself: beside punctuation and between Chinese characters. Added
//! tokens are found before that: none has white space in it, and none any character beside a place of
//! the second kind.

use tokenizers::normalizers::NormalizerWrapper as Normalizing;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::pre_tokenizers::PreTokenizerWrapper as Parting;
use tokenizers::{NormalizedString, Normalizer, Tokenizer};

/// What a piece has at least, so that starting one costs little beside tokenising it.
const PIECE: usize = 4 << 10;

/// Which places hold for a tokenizer.
#[derive(Debug)]
pub(super) struct Cuts {
    /// What a piece has at least.
    piece: usize,
    /// Whether it is one of BERT's, which parts more than white space does.
    marks: Option<Marks>,
}

/// What a BERT tokenizer parts by itself.
#[derive(Debug)]
struct Marks {
    chinese: bool,
    /// Characters of added tokens.
    added: Vec<char>,
}

/// A direction through a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Start,
    End,
}

impl Cuts {
    /// `None` for a tokenizer for which a text's tokens may depend on all of it.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        if !tokenizer.get_normalizer().is_none_or(keeps_words_apart) {
            return None;
        }
        if !parts_words(tokenizer.get_pre_tokenizer()?) {
            return None;
        }
        let mut contents = String::new();
        for token in tokenizer.get_added_tokens_decoder().into_values() {
            let seen = if token.normalized {
                normalized(tokenizer, &token.content)?
            } else {
                String::new()
            };
            if token.rstrip || (token.content.clone() + &seen).contains(char::is_whitespace) {
                return None;
            }
            contents += &token.content;
            contents += &seen;
        }
        let marks = match (tokenizer.get_normalizer(), tokenizer.get_pre_tokenizer()) {
            (Some(Normalizing::BertNormalizer(bert)), Some(Parting::BertPreTokenizer(_))) => {
                let mut added: Vec<char> = contents.chars().collect();
                added.sort_unstable();
                added.dedup();
                Some(Marks { chinese: bert.handle_chinese_chars, added })
            }
            _ => None,
        };
        // What is said of words must hold for the plainest, whatever a character map says.
        let plain = (b'0'..=b'z').map(char::from).filter(char::is_ascii_alphanumeric);
        let mut plain = plain.map(|letter| {
            let alone = normalized(tokenizer, &letter.to_string())?;
            let words = normalized(tokenizer, &format!("{letter} {letter}"))?;
            Some(!alone.is_empty() && words == format!("{alone} {alone}"))
        });
        plain.all(|kept| kept == Some(true)).then_some(Self { piece: PIECE, marks })
    }

    /// A text in pieces, from its start or from its end; those without a place in them are longer.
    pub(super) fn pieces<'a>(
        &'a self,
        tokenizer: &'a Tokenizer,
        text: &'a str,
        from: From,
    ) -> impl Iterator<Item = &'a str> {
        let mut rest = text;
        std::iter::from_fn(move || {
            let piece;
            (piece, rest) = match from {
                From::Start => {
                    let end = self.after(tokenizer, rest);
                    rest.split_at(end)
                }
                From::End => {
                    let (before, piece) = rest.split_at(self.before(tokenizer, rest));
                    (piece, before)
                }
            };
            (!piece.is_empty()).then_some(piece)
        })
    }

    /// The first place after a piece's length, or the end of the text.
    fn after(&self, tokenizer: &Tokenizer, text: &str) -> usize {
        if text.len() <= 2 * self.piece {
            return text.len();
        }
        let first = boundary(text, self.piece);
        let mut places = text[first..].char_indices().map(|(at, _)| first + at);
        places.find(|&place| self.holds(tokenizer, text, place)).unwrap_or(text.len())
    }

    /// The last place before a piece's length from the end, or the start of the text.
    fn before(&self, tokenizer: &Tokenizer, text: &str) -> usize {
        if text.len() <= 2 * self.piece {
            return 0;
        }
        let last = boundary(text, text.len() - self.piece);
        let mut places = text[..last].char_indices().map(|(at, _)| at);
        places.rfind(|&place| self.holds(tokenizer, text, place)).unwrap_or(0)
    }

    fn holds(&self, tokenizer: &Tokenizer, text: &str, place: usize) -> bool {
        let (before, after) = text.split_at(place);
        let mut following = after.chars();
        let (Some(last), Some(first)) = (before.chars().next_back(), following.next()) else {
            return false;
        };
        if first == ' ' {
            let next = following.next();
            return solid(tokenizer, last) && next.is_some_and(|next| solid(tokenizer, next));
        }
        let Some(marks) = &self.marks else { return false };
        let parted = marks.parts(last) || marks.parts(first);
        parted
            && [last, first].into_iter().all(|it| marks.parts(it) || marks.foreign(tokenizer, it))
    }
}

impl Marks {
    /// Whether a character is a word of its own, and in no added token.
    fn parts(&self, character: char) -> bool {
        let mark = character.is_ascii_punctuation() || matches!(character, '、' | '。' | '，');
        let chinese = self.chinese && matches!(character, '\u{4e00}'..='\u{9fff}');
        (mark || chinese) && self.added.binary_search(&character).is_err()
    }

    /// Whether a character is part of a word, and in no added token as it is or normalised.
    fn foreign(&self, tokenizer: &Tokenizer, character: char) -> bool {
        let known = |character: char| self.added.binary_search(&character).is_ok();
        let clean = |text: String| !text.chars().any(known);
        solid(tokenizer, character)
            && !known(character)
            && normalized(tokenizer, &character.to_string()).is_some_and(clean)
    }
}

/// Whether a character stays in its word and is one.
fn solid(tokenizer: &Tokenizer, character: char) -> bool {
    if character.is_ascii() {
        return character.is_ascii_alphanumeric();
    }
    let part = |part: char| part.is_alphanumeric();
    let stays = |text: String| !text.is_empty() && text.chars().all(part);
    part(character) && normalized(tokenizer, &character.to_string()).is_some_and(stays)
}

fn normalized(tokenizer: &Tokenizer, text: &str) -> Option<String> {
    let mut text = NormalizedString::from(text);
    if let Some(normalizer) = tokenizer.get_normalizer() {
        normalizer.normalize(&mut text).ok()?;
    }
    Some(text.get().to_owned())
}

/// Whether a normaliser does the same to words with one space between them as to each alone.
fn keeps_words_apart(normalizer: &Normalizing) -> bool {
    match normalizer {
        Normalizing::BertNormalizer(_)
        | Normalizing::StripAccents(_)
        | Normalizing::NFC(_)
        | Normalizing::NFD(_)
        | Normalizing::NFKC(_)
        | Normalizing::NFKD(_)
        | Normalizing::Lowercase(_)
        | Normalizing::Nmt(_)
        | Normalizing::Precompiled(_) => true,
        Normalizing::StripNormalizer(strip) => !strip.strip_left,
        Normalizing::Replace(replace) => replaces_no_space(replace),
        Normalizing::Sequence(all) => all.as_ref().iter().all(keeps_words_apart),
        Normalizing::Prepend(_) | Normalizing::ByteLevel(_) => false,
    }
}

/// A `Replace` whose pattern is of marks alone, or of several spaces.
fn replaces_no_space(replace: &tokenizers::normalizers::Replace) -> bool {
    // The pattern is private; it is there in what is serialised.
    let Ok(json) = serde_json::to_value(replace) else { return false };
    match serde_json::from_value(json["pattern"].clone()) {
        Ok(ReplacePattern::String(text)) => text.chars().all(|mark| mark.is_ascii_punctuation()),
        Ok(ReplacePattern::Regex(pattern)) => pattern == " {2,}",
        Err(_) => false,
    }
}

/// Whether a pre-tokeniser has a boundary before a space between words, and none of its others
/// depends on what lies farther off.
fn parts_words(pre_tokenizer: &Parting) -> bool {
    match pre_tokenizer {
        Parting::BertPreTokenizer(_) | Parting::Whitespace(_) | Parting::WhitespaceSplit(_) => true,
        Parting::ByteLevel(bytes) => bytes.use_regex,
        Parting::Metaspace(spaces) => spaces.get_split(),
        // Once words are apart, these work within one.
        Parting::Sequence(all) => {
            let mut all = all.as_ref().iter();
            all.next().is_some_and(parts_words)
                && all.all(|next| parts_words(next) || within_a_word(next))
        }
        _ => false,
    }
}

fn within_a_word(pre_tokenizer: &Parting) -> bool {
    matches!(pre_tokenizer, Parting::Digits(_) | Parting::Punctuation(_) | Parting::ByteLevel(_))
}

/// The last boundary of a character at or before a byte.
fn boundary(text: &str, byte: usize) -> usize {
    let byte = byte.min(text.len());
    (0..=byte).rfind(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
