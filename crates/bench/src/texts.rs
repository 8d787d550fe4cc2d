//! Texts of a known number of tokens: real words in random order.
//!
//! Each word is one token of the model's WordPiece vocabulary. Words come by Zipf's law over the
//! vocabulary's order, which in BERT's is that of how often they are used.

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use vecmill_lab::lengths::Lengths;
use vecmill_lab::results::{self, whole};
use vecmill_model::disk;

use crate::Outcome;

/// The most of a tokenizer's file that is read.
const LIMIT: u64 = 256 << 20;

/// The tokens that begin and end a text.
const SPECIAL_TOKENS: usize = 2;

/// Mandelbrot's shift: without it the first word would be far too frequent.
const SHIFT: f64 = 2.7;

/// Arguments of `vecmill-bench texts`.
#[derive(Debug, Args)]
pub(crate) struct TextsArguments {
    #[command(flatten)]
    texts: TextKind,
    /// Texts to write, one JSON object per line
    #[arg(long, default_value_t = 4096)]
    count: usize,
}

/// Which texts.
#[derive(Debug, Clone, Args)]
pub(crate) struct TextKind {
    /// Folder of the model, for the vocabulary in its tokenizer.json
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Tokens of each text, or mixed: lognormal with a median of 40
    #[arg(long, default_value = "mixed")]
    pub(crate) lengths: Lengths,
    /// The most tokens of a text
    #[arg(long, default_value_t = 512)]
    pub(crate) longest: usize,
    /// The same seed makes the same texts
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

impl TextKind {
    /// `count` texts of this kind.
    pub(crate) fn write(&self, count: usize) -> Result<Vec<String>, Box<dyn Error>> {
        let words = Words::of(&self.model)?;
        let mut random = fastrand::Rng::with_seed(self.seed);
        let text = |_| {
            let tokens = self.lengths.draw(self.longest, &mut random);
            words.text(tokens - SPECIAL_TOKENS, &mut random)
        };
        Ok((0..count).map(text).collect())
    }
}

/// Writes texts to standard output.
pub(crate) fn run(arguments: &TextsArguments) -> Outcome {
    for text in arguments.texts.write(arguments.count)? {
        results::line(&json!({ "text": text }).to_string())?;
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
struct TokenizerFile {
    model: TokenizerModel,
}

#[derive(Debug, Deserialize)]
struct TokenizerModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Value,
}

/// The words that a vocabulary has whole, in its order.
#[derive(Debug)]
struct Words(Vec<String>);

impl Words {
    fn of(model: &Path) -> Result<Self, Box<dyn Error>> {
        let path = model.join("tokenizer.json");
        let text = disk::read_regular(&path, LIMIT);
        let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
        let file: TokenizerFile = serde_json::from_slice(&text)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let words = match (file.model.kind.as_deref(), &file.model.vocab) {
            (Some("WordPiece"), Value::Object(vocabulary)) => whole_words(vocabulary),
            _ => Vec::new(),
        };
        if words.is_empty() {
            let path = path.display();
            return Err(format!("{path}: expected a WordPiece vocabulary with words in it").into());
        }
        Ok(Self(words))
    }

    fn text(&self, words: usize, random: &mut fastrand::Rng) -> String {
        let words: Vec<_> = (0..words).map(|_| self.word(random)).collect();
        words.join(" ")
    }

    /// The inverse of the distribution function of 1 / (rank + shift).
    fn word(&self, random: &mut fastrand::Rng) -> &str {
        let ratio = (self.0.len() as f64 + SHIFT) / SHIFT;
        let rank = whole(SHIFT * (ratio.powf(random.f64()) - 1.0)) as usize;
        &self.0[rank.min(self.0.len() - 1)]
    }
}

fn whole_words(vocabulary: &Map<String, Value>) -> Vec<String> {
    let is_word = |word: &str| word.len() > 1 && word.bytes().all(|b| b.is_ascii_lowercase());
    let mut words: Vec<_> = vocabulary.iter().filter(|(word, _)| is_word(word)).collect();
    words.sort_by_key(|(_, id)| id.as_u64());
    words.into_iter().map(|(word, _)| word.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_words_are_frequent_and_all_are_possible() {
        let words = Words((0..1000).map(|rank| rank.to_string()).collect());
        let mut random = fastrand::Rng::with_seed(1);
        let mut counts = vec![0; 1000];
        for _ in 0..200_000 {
            let rank: usize = words.word(&mut random).parse().unwrap();
            counts[rank] += 1;
        }
        // 1 / (0.5 + 2.7), normalised by the sum over all ranks, is 0.053.
        assert!((9_500..12_000).contains(&counts[0]), "{}", counts[0]);
        assert!(counts[..10].is_sorted_by(|a, b| a > b), "{:?}", &counts[..10]);
        assert!(counts.iter().filter(|&&count| count == 0).count() < 10);
    }

    #[test]
    fn words_are_in_the_vocabulary_s_order_and_whole() {
        let vocabulary = json!({"##ing": 5, "of": 9, "[CLS]": 1, "a": 2, "the": 8, "café": 3});
        assert_eq!(whole_words(vocabulary.as_object().unwrap()), ["the", "of"]);
    }
}
