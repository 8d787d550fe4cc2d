//! The `model` of a `tokenizer.json`: its vocabulary, and how words become tokens of it.
//!
//! Tables are looked through where they lie in the file and then read by the model's own type, so
//! that there is one copy of them. (By way of the crate's `from_bytes` there are four for a time.)

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::value::MapDeserializer;
use serde::de::{DeserializeOwned, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use tokenizers::models::bpe::BPE;
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::{Model, ModelWrapper};

use super::{Flaw, HIGHEST_ID, TOKEN_BYTES};

const VOCABULARY_LIMIT: usize = 1 << 21;
const MERGES_LIMIT: usize = 1 << 22;
/// A unigram model keeps its pieces as a tree with a table at each byte, some hundred bytes large,
/// and leaves it in a recursion as deep as its longest piece.
const PIECE_BYTES: usize = 512;
const PIECES_BYTES: usize = 6 << 20;
/// WordPiece looks a word's beginnings up one by one, which takes time by its length squared.
const WORD_CHARACTERS: usize = 1000;
/// Words that a model remembers. They are short, but a caller may fill this with rubbish.
const REMEMBERED_WORDS: usize = 4096;

type Fields<'a> = BTreeMap<&'a str, &'a RawValue>;

pub(super) fn parse(raw: &RawValue) -> Result<ModelWrapper, Flaw> {
    let fields: Fields<'_> = read("model", raw)?;
    let kind = match fields.get("type") {
        Some(kind) => read("model.type", kind)?,
        // Older files name none; only BPE has merges, only Unigram has a list.
        None if fields.contains_key("merges") => "BPE",
        None if fields.contains_key("continuing_subword_prefix") => "WordPiece",
        None if fields.contains_key("unk_token") => "WordLevel",
        None => "Unigram",
    };
    let Some(vocabulary) = fields.get("vocab") else {
        return Err(Flaw::new("model.vocab", "it is missing"));
    };
    let mut model: ModelWrapper = match kind {
        "BPE" => bpe(&fields, vocabulary)?.into(),
        "WordPiece" => word_piece(&fields, vocabulary)?.into(),
        "WordLevel" => {
            let model: WordLevel = table(&fields, vocabulary)?;
            known(&model, &model.unk_token)?;
            model.into()
        }
        "Unigram" => unigram(&fields, vocabulary)?.into(),
        other => {
            let expected = "expected BPE, WordPiece, WordLevel or Unigram";
            return Err(Flaw::new("model.type", format!("{expected}, found '{other}'")));
        }
    };
    model.resize_cache(REMEMBERED_WORDS);
    Ok(model)
}

fn word_piece(fields: &Fields<'_>, vocabulary: &RawValue) -> Result<WordPiece, Flaw> {
    let model: WordPiece = table(fields, vocabulary)?;
    let longest = model.max_input_chars_per_word;
    if longest > WORD_CHARACTERS {
        let reason = format!("expected at most {WORD_CHARACTERS}, found {longest}");
        return Err(Flaw::new("model.max_input_chars_per_word", reason));
    }
    known(&model, &model.unk_token)?;
    Ok(model)
}

fn bpe(fields: &Fields<'_>, vocabulary: &RawValue) -> Result<BPE, Flaw> {
    let prefix: Option<String> = match fields.get("continuing_subword_prefix") {
        Some(prefix) => read("model.continuing_subword_prefix", prefix)?,
        None => None,
    };
    let tokens = survey(vocabulary)?;
    if let Some(merges) = fields.get("merges") {
        let check = Merges { prefix: prefix.unwrap_or_default(), longest: tokens.longest };
        let mut json = serde_json::Deserializer::from_str(merges.get());
        json.deserialize_seq(check).map_err(|error| Flaw::new("model.merges", error))?;
    }
    let model: BPE = table(fields, vocabulary)?;
    if model.dropout.is_some_and(|share| share != 0.0) {
        let reason = "expected null: otherwise a text has other tokens each time";
        return Err(Flaw::new("model.dropout", reason));
    }
    if let Some(unknown) = model.unk_token.as_ref().filter(|unknown| !unknown.is_empty()) {
        known(&model, unknown)?;
    }
    Ok(model)
}

fn unigram(fields: &Fields<'_>, vocabulary: &RawValue) -> Result<Unigram, Flaw> {
    let mut json = serde_json::Deserializer::from_str(vocabulary.get());
    json.deserialize_seq(Pieces).map_err(|error| Flaw::new("model.vocab", error))?;
    build(fields)
}

/// A model whose vocabulary is an object from tokens to ids.
fn table<M: DeserializeOwned + Model>(
    fields: &Fields<'_>,
    vocabulary: &RawValue,
) -> Result<M, Flaw> {
    let entries = survey(vocabulary)?.entries;
    let model: M = build(fields)?;
    let tokens = model.get_vocab_size();
    if tokens != entries {
        let reason = format!("{entries} entries for {tokens} different tokens");
        return Err(Flaw::new("model.vocab", reason));
    }
    Ok(model)
}

fn build<M: DeserializeOwned>(fields: &Fields<'_>) -> Result<M, Flaw> {
    const KNOWN: [&str; 11] = [
        "vocab",
        "merges",
        "unk_token",
        "unk_id",
        "dropout",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "fuse_unk",
        "byte_fallback",
        "ignore_merges",
        "max_input_chars_per_word",
    ];
    // The models' types skip no value of a key that they don't know.
    let known = fields.iter().filter(|(key, _)| KNOWN.contains(key));
    let fields = MapDeserializer::new(known.map(|(key, value)| (*key, *value)));
    M::deserialize(fields).map_err(|error: serde_json::Error| Flaw::new("model", error))
}

fn known(model: &impl Model, unknown: &str) -> Result<(), Flaw> {
    match model.token_to_id(unknown) {
        Some(_) => Ok(()),
        None => {
            let unknown = super::shortened(unknown);
            let reason = format!("the vocabulary has no '{unknown}', which stands for the unknown");
            Err(Flaw::new("model.unk_token", reason))
        }
    }
}

fn read<'a, T: Deserialize<'a>>(key: &str, raw: &'a RawValue) -> Result<T, Flaw> {
    serde_json::from_str(raw.get()).map_err(|error| Flaw::new(key, error))
}

/// What a vocabulary has, without keeping it.
struct Survey {
    entries: usize,
    /// Bytes of the longest token.
    longest: usize,
}

fn survey(vocabulary: &RawValue) -> Result<Survey, Flaw> {
    let mut json = serde_json::Deserializer::from_str(vocabulary.get());
    json.deserialize_map(Vocabulary).map_err(|error| Flaw::new("model.vocab", error))
}

struct Vocabulary;

impl<'de> Visitor<'de> for Vocabulary {
    type Value = Survey;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object from tokens to ids")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Survey, A::Error> {
        let mut seen = vec![0_u64; HIGHEST_ID as usize / 64 + 1];
        let mut survey = Survey { entries: 0, longest: 0 };
        while let Some((token, id)) = map.next_entry::<String, u32>()? {
            survey.entries += 1;
            survey.longest = survey.longest.max(token.len());
            if survey.entries > VOCABULARY_LIMIT {
                return Err(A::Error::custom(format!("more than {VOCABULARY_LIMIT} tokens")));
            }
            if token.len() > TOKEN_BYTES {
                return Err(A::Error::custom(format!(
                    "token {id} has more than {TOKEN_BYTES} bytes"
                )));
            }
            let Some(word) = seen.get_mut(id as usize / 64) else {
                return Err(A::Error::custom(format!("id {id} is above {HIGHEST_ID}")));
            };
            if *word & (1 << (id % 64)) != 0 {
                return Err(A::Error::custom(format!("id {id} is there twice")));
            }
            *word |= 1 << (id % 64);
        }
        Ok(survey)
    }
}

/// Unigram's vocabulary: pieces with their scores.
struct Pieces;

impl<'de> Visitor<'de> for Pieces {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of pieces with scores")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let (mut pieces, mut bytes) = (0_usize, 0_usize);
        while let Some((piece, _)) = list.next_element::<(String, f64)>()? {
            pieces += 1;
            bytes += piece.len();
            if pieces > VOCABULARY_LIMIT {
                return Err(A::Error::custom(format!("more than {VOCABULARY_LIMIT} pieces")));
            }
            if piece.len() > PIECE_BYTES {
                let place = pieces - 1;
                return Err(A::Error::custom(format!(
                    "piece {place} has more than {PIECE_BYTES} bytes"
                )));
            }
            if bytes > PIECES_BYTES {
                return Err(A::Error::custom(format!(
                    "its pieces have more than {PIECES_BYTES} bytes"
                )));
            }
        }
        Ok(())
    }
}

/// Merges of tokens into longer ones, each `"a b"` or `["a", "b"]`.
struct Merges {
    /// What continuing tokens begin with.
    prefix: String,
    /// Bytes of the longest token.
    longest: usize,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

impl<'de> Visitor<'de> for Merges {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of merges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut merges = 0;
        while let Some(merge) = list.next_element()? {
            let (first, second) = match &merge {
                Merge::Pair(first, second) => (first.as_str(), second.as_str()),
                Merge::Line(line) if line.starts_with("#version") => continue,
                Merge::Line(line) => line.split_once(' ').unwrap_or((line, "")),
            };
            // The crate takes the prefix off by its length, and has room for the longest token.
            let rest = second.get(self.prefix.len()..);
            if rest.is_none_or(|rest| first.len() + rest.len() > self.longest) {
                let reason = format!("merge {merges} makes no token of the vocabulary");
                return Err(A::Error::custom(reason));
            }
            merges += 1;
            if merges > MERGES_LIMIT {
                return Err(A::Error::custom(format!("more than {MERGES_LIMIT} merges")));
            }
        }
        Ok(())
    }
}
