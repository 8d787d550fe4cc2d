//! A way around most of a BERT tokenizer for plain words, with the same ids.
//!
//! - [`Words::of`] knows the tokenizers for which that holds.
//! - [`Words::ids`] cuts a text at white space. What is plain ASCII goes word by word to the model,
//!   whose vocabulary has most words whole; everything else goes to the tokenizer.
//!
//! Why the ids are the same: such a tokenizer parts words at white space and on both sides of
//! punctuation, works on each alone, and of ASCII letters and digits changes nothing but the case.
//! What it looks for before that, added tokens such as `[MASK]`, has no white space, and no plain
//! part contains it.
//!
//! The choice behind it: no memory of words seen. The vocabulary is a table of the frequent ones
//! already; it can't be filled with rubbish, and nothing of a text is kept.

use tokenizers::models::wordpiece::WordPiece;
use tokenizers::tokenizer::Result;
use tokenizers::{Model, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

/// What there is to know of a tokenizer that works word by word.
#[derive(Debug)]
pub(super) struct Words {
    lowercase: bool,
    /// Tokens that are found before words are, in lower case.
    added: Vec<String>,
    /// The part in a text of each character of ASCII.
    kinds: [Kind; 128],
}

/// A character's part in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A letter or digit of ASCII.
    Letter,
    /// Punctuation of ASCII: a word of its own.
    Mark,
    /// A mark with which an added token begins.
    Opening,
    /// Between words.
    Space,
    /// The tokenizer's business.
    Other,
}

impl Words {
    /// `None` for a tokenizer that may see more than words in a text.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let Some(NormalizerWrapper::BertNormalizer(normalizer)) = tokenizer.get_normalizer() else {
            return None;
        };
        let Some(PreTokenizerWrapper::BertPreTokenizer(_)) = tokenizer.get_pre_tokenizer() else {
            return None;
        };
        // Without a token for the unknown, what follows the first words may be refused.
        let model = word_piece(tokenizer)?;
        model.token_to_id(&model.unk_token)?;

        let mut words = Self {
            lowercase: normalizer.lowercase,
            added: Vec::new(),
            kinds: std::array::from_fn(Kind::of),
        };
        for token in tokenizer.get_added_tokens_decoder().into_values() {
            // A normalised one may be in a text where it can't be seen, unless it is plain itself.
            let visible = if token.normalized {
                token.content.chars().all(|character| character.is_ascii_graphic())
            } else {
                !token.content.contains(char::is_whitespace)
            };
            let opening = words.kinds.get_mut(token.content.chars().next()? as usize)?;
            if !visible || !matches!(opening, Kind::Mark | Kind::Opening) {
                return None;
            }
            *opening = Kind::Opening;
            words.added.push(token.content.to_ascii_lowercase());
        }
        Some(words)
    }

    /// The ids of a text without special tokens around it; it may stop at more than `enough`. What
    /// isn't plain goes to `whole`, which is all of the tokenizer.
    pub(super) fn ids(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        enough: usize,
        whole: impl Fn(&str) -> Result<Vec<u32>>,
    ) -> Result<Vec<u32>> {
        let Some(model) = word_piece(tokenizer) else { return whole(text) };
        let (mut ids, mut lowered) = (Vec::new(), String::new());
        let (mut start, mut end) = (0, 0); // of what waits for the tokenizer
        for part in text.split_inclusive(|character| self.kind(character) == Kind::Space) {
            if self.plain(part) {
                if start < end {
                    ids.extend(whole(&text[start..end])?);
                }
                self.push_words(model, part, &mut lowered, &mut ids)?;
                start = end + part.len();
            }
            end += part.len();
            if ids.len() > enough {
                return Ok(ids);
            }
        }
        if start < end {
            ids.extend(whole(&text[start..])?);
        }
        Ok(ids)
    }

    /// Whether words are all that the tokenizer would see in a part of a text.
    fn plain(&self, part: &str) -> bool {
        let mut opened = false;
        for character in part.chars() {
            match self.kind(character) {
                Kind::Other => return false,
                Kind::Opening => opened = true,
                Kind::Letter | Kind::Mark | Kind::Space => {}
            }
        }
        !opened || {
            let lowered = part.to_ascii_lowercase();
            !self.added.iter().any(|token| lowered.contains(token))
        }
    }

    /// Appends the ids of a plain part; `lowered` is room for it, kept from one to the next.
    fn push_words<'a>(
        &self,
        model: &WordPiece,
        mut part: &'a str,
        lowered: &'a mut String,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        if self.lowercase {
            lowered.clear();
            lowered.push_str(part);
            lowered.make_ascii_lowercase();
            part = lowered;
        }
        while let Some(first) = part.chars().next() {
            let letters = part.chars().take_while(|&letter| self.kind(letter) == Kind::Letter);
            let (word, rest) = part.split_at(letters.count().max(1));
            part = rest;
            if self.kind(first) != Kind::Space {
                push_word(model, word, ids)?;
            }
        }
        Ok(())
    }

    fn kind(&self, character: char) -> Kind {
        self.kinds.get(character as usize).copied().unwrap_or(Kind::Other)
    }
}

impl Kind {
    fn of(code: usize) -> Self {
        match u8::try_from(code) {
            Ok(b' ' | b'\t' | b'\n' | b'\r') => Self::Space,
            Ok(byte) if byte.is_ascii_alphanumeric() => Self::Letter,
            Ok(byte) if byte.is_ascii_punctuation() => Self::Mark,
            _ => Self::Other,
        }
    }
}

/// The model takes the longest token that a word begins with, so one that is a token stays whole:
/// looking it up spares the model's copies.
fn push_word(model: &WordPiece, word: &str, ids: &mut Vec<u32>) -> Result<()> {
    let known = word.len() <= model.max_input_chars_per_word;
    match known.then(|| model.token_to_id(word)).flatten() {
        Some(id) => ids.push(id),
        None => ids.extend(model.tokenize(word)?.iter().map(|token| token.id)),
    }
    Ok(())
}

fn word_piece(tokenizer: &Tokenizer) -> Option<&WordPiece> {
    match tokenizer.get_model() {
        ModelWrapper::WordPiece(model) => Some(model),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// What a BERT tokenizer may see otherwise than it looks: marks that join or vanish, white space
    /// and control characters of all kinds, letters that become others, added tokens in pieces.
    const ODD: &[&str] = &[
        " ",
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "\u{b}",
        "\u{c}",
        "\u{85}",
        "\u{a0}",
        "\u{2003}",
        "\u{3000}",
        "\u{200b}",
        "\u{200d}",
        "\u{feff}",
        "\u{fffd}",
        "\0",
        "\u{7f}",
        "\u{301}",
        "\u{338}",
        "\u{327}\u{301}",
        "e\u{301}",
        "é",
        "É",
        "İ",
        "ß",
        "ẞ",
        "Σ",
        "ς",
        "K",
        "≮",
        "≠",
        "ﬁ",
        "中",
        "文",
        "が",
        "한",
        "\u{1112}\u{1161}",
        "ไทย",
        "😀",
        "👩\u{200d}🚀",
        "[MASK]",
        "[mask]",
        "[",
        "MASK",
        "]",
        "[CLS]",
        "[SEP",
        "[[",
        "<tag>",
        "tag",
        "<",
        ">",
        "{x}",
        "{",
        "}x",
        "##and",
        "and",
        "be",
        "con",
        "ection",
        "ment",
        "th",
        "ty",
        "The",
        "RIGHTS",
        "I",
        "3",
        "x",
        "zq",
        ".",
        ",",
        "'",
        "’",
        "—",
        "_",
        "`",
        "^",
        "~",
        "¿",
    ];

    fn text() -> impl Strategy<Value = String> {
        let odd = prop::sample::select(ODD).prop_map(str::to_owned);
        let piece = prop_oneof![8 => odd, 1 => any::<char>().prop_map(String::from)];
        prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    /// The tokenizer of the tiny BERT models, changed as `change` does.
    fn tokenizer(change: impl FnOnce(&mut Value)) -> Tokenizer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/bert-mean");
        let mut file = std::fs::read(folder.join("tokenizer.json")).unwrap();
        let mut json: Value = serde_json::from_slice(&file).unwrap();
        change(&mut json);
        file = serde_json::to_vec(&json).unwrap();
        Tokenizer::from_bytes(file).unwrap()
    }

    fn with_added(
        content: &str,
        [single_word, lstrip, rstrip, normalized]: [bool; 4],
    ) -> Tokenizer {
        tokenizer(|json| {
            let id = json["model"]["vocab"].as_object().unwrap().len();
            json["added_tokens"].as_array_mut().unwrap().push(json!({
                "id": id, "content": content, "single_word": single_word, "lstrip": lstrip,
                "rstrip": rstrip, "normalized": normalized, "special": false,
            }));
        })
    }

    fn whole(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
        Ok(tokenizer.encode_fast(text, false)?.get_ids().to_vec())
    }

    fn check(tokenizer: &Tokenizer, text: &str) -> std::result::Result<(), TestCaseError> {
        let words = Words::of(tokenizer).unwrap();
        let expected = whole(tokenizer, text).unwrap();
        let rest = |part: &str| whole(tokenizer, part);
        let ids = |enough| words.ids(tokenizer, text, enough, rest).unwrap();
        prop_assert_eq!(&ids(usize::MAX), &expected);
        let begun = ids(3);
        prop_assert!(begun.len() > 3 || begun == expected);
        prop_assert!(expected.starts_with(&begun));
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn ids_are_the_tokenizer_s(
            text in text(),
            lowercase: bool,
            clean_text: bool,
            handle_chinese_chars: bool,
            strip_accents: Option<bool>,
            longest in prop::sample::select(&[2_usize, 5, 100]),
        ) {
            let tokenizer = tokenizer(|json| {
                json["normalizer"] = json!({
                    "type": "BertNormalizer", "clean_text": clean_text, "lowercase": lowercase,
                    "handle_chinese_chars": handle_chinese_chars, "strip_accents": strip_accents,
                });
                json["model"]["max_input_chars_per_word"] = longest.into();
            });
            check(&tokenizer, &text)?;
        }

        #[test]
        fn added_tokens_are_found(
            text in text(),
            content in prop::sample::select(&["<tag>", "{X}", "[[", "~", ".and"]),
            single_word: bool,
            lstrip: bool,
            rstrip: bool,
            normalized: bool,
        ) {
            check(&with_added(content, [single_word, lstrip, rstrip, normalized]), &text)?;
        }
    }

    #[test]
    fn tokenizers_that_see_more_than_words_are_left_alone() {
        assert!(Words::of(&tokenizer(|_| {})).is_some());
        let (as_it_is, normalized) = ([false; 4], [false, false, false, true]);
        for (content, how, known) in [
            ("<tag>", as_it_is, true),
            ("<tag>", normalized, true),
            ("<é>", as_it_is, true),
            ("<é>", normalized, false),
            ("<a tag>", as_it_is, false),
            ("<a tag>", normalized, false),
            ("tag", as_it_is, false),
            ("中", as_it_is, false),
        ] {
            assert_eq!(Words::of(&with_added(content, how)).is_some(), known, "{content}");
        }
        let others: [fn(&mut Value); 4] = [
            |json| json["normalizer"] = json!({"type": "Lowercase"}),
            |json| json["normalizer"] = Value::Null,
            |json| json["pre_tokenizer"] = json!({"type": "Whitespace"}),
            |json| json["model"]["unk_token"] = json!("[NONE]"),
        ];
        for change in others {
            assert!(Words::of(&tokenizer(change)).is_none());
        }
    }
}
