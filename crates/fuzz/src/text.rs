//! The ids of a text beside those of the `tokenizers` crate.

use std::sync::OnceLock;

use tokenizers::{TruncationDirection, TruncationParams};
use vecmill_engine::{Tokenizer, Truncation};

use crate::folder::models;

/// One tokenizer of each kind that models have.
const MODELS: [&str; 4] = ["bert-mean", "roberta-mean", "xlm-roberta-cls", "distilbert-mean"];

struct Pair {
    ours: Tokenizer,
    whole: tokenizers::Tokenizer,
    /// Cut from the end and from the start, at the model's limit.
    cut: [tokenizers::Tokenizer; 2],
    lowercase: bool,
}

impl Pair {
    fn of(name: &str) -> Self {
        let folder = models().join(name);
        let model = vecmill_model::Model::open(&folder).unwrap();
        let mut whole = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
        whole.with_padding(None).with_truncation(None).unwrap();
        let cut = [TruncationDirection::Right, TruncationDirection::Left].map(|direction| {
            let mut cut = whole.clone();
            let max_length = model.max_input_tokens();
            let params = TruncationParams { max_length, direction, ..TruncationParams::default() };
            cut.with_truncation(Some(params)).unwrap();
            cut
        });
        let ours = Tokenizer::of_model(&folder).unwrap();
        Self { ours, whole, cut, lowercase: model.pipeline.lowercase }
    }

    fn check(&self, name: &str, text: &str) {
        let lowered = self.lowercase.then(|| text.to_lowercase());
        let cased = lowered.as_deref().unwrap_or(text);
        let reference = |tokenizer: &tokenizers::Tokenizer| {
            tokenizer.encode(cased, true).ok().map(|encoding| encoding.get_ids().to_vec())
        };
        let [end, start] = &self.cut;
        for (truncation, tokenizer) in [(Truncation::End, end), (Truncation::Start, start)] {
            let ours = self.ours.ids(text, truncation).ok();
            assert_eq!(ours, reference(tokenizer), "{name}, {truncation:?}: {text:?}");
        }
        if let Ok(ours) = self.ours.ids(text, Truncation::Refuse) {
            assert_eq!(Some(ours), reference(&self.whole), "{name}: {text:?}");
        }
    }
}

/// A text: the first byte chooses the tokenizer, the second how often the rest is repeated.
pub fn same_ids(data: &[u8]) {
    static PAIRS: OnceLock<Vec<Pair>> = OnceLock::new();
    let [first, second, text @ ..] = data else { return };
    let pairs = PAIRS.get_or_init(|| MODELS.iter().map(|name| Pair::of(name)).collect());
    let chosen = usize::from(*first) % MODELS.len();
    // Mostly once; sometimes so often that the text is cut.
    let times = if *second < 192 { 1 } else { 1 << (second % 8) };
    let text = String::from_utf8_lossy(text).repeat(times);
    if let (Some(pair), Some(name)) = (pairs.get(chosen), MODELS.get(chosen)) {
        pair.check(name, &text);
    }
}
