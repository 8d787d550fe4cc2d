//! Two texts side by side, as one input.
//!
//! - [`PairFrame`] is what the tokenizer puts around and between them.
//! - [`Side`] is a text that several pairs begin with, such as a query: it is tokenised once, by whoever
//!   needs it first.
//!
//! What is too long is cut as in transformers, longest first: tokens go one by one from the longer text,
//! so that a short query stays whole beside a long document. One thing is not looked at, which is longer of
//! two texts that each fill all the room: of an odd room, the second has the odd token.

use std::sync::{Arc, OnceLock};

use tokenizers::Encoding;

use super::{Tokenizer, Tokens, caught};
use crate::error::RequestError;
use crate::request::Truncation;

/// The special tokens around and between two texts.
#[derive(Debug)]
pub(super) struct PairFrame {
    before: Vec<u32>,
    between: Vec<u32>,
    after: Vec<u32>,
    /// How many of those between are of the first text's type; `None` if all tokens are.
    first: Option<usize>,
}

/// A text that pairs begin with, and its tokens, once they are known.
#[derive(Debug)]
pub(crate) struct Side {
    text: Arc<str>,
    body: OnceLock<Result<Body, RequestError>>,
}

/// Ids of a text without special tokens, at most as many as there is room for, and how many there are:
/// or, where the rest is cut off, more than there is room for.
type Body = (Vec<u32>, usize);

impl Side {
    pub(crate) fn new(text: Arc<str>) -> Self {
        Self { text, body: OnceLock::new() }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

impl PairFrame {
    /// As the tokenizer puts them around any two texts; `None` if it does something else with some, or
    /// gives other types than 0 to what comes first and 1 to the rest. `types` says whether the model
    /// is told of types.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer, types: bool) -> Option<Self> {
        const FIRST: [u32; 2] = [u32::MAX - 3, u32::MAX - 2]; // ids that no vocabulary has
        const SECOND: [u32; 2] = [u32::MAX - 1, u32::MAX];
        let encoding = |ids: [u32; 2], kind| -> Encoding {
            ids.into_iter().map(|id| (id, String::new(), (0, 0), None, kind)).collect()
        };
        let second = Some(encoding(SECOND, 1));
        let framed = tokenizer.post_process(encoding(FIRST, 0), second, true).ok()?;
        let (ids, kinds) = (framed.get_ids(), framed.get_type_ids());
        let place = |text: [u32; 2]| ids.windows(text.len()).position(|ids| ids == text);
        let (first, second) = (place(FIRST)?, place(SECOND)?);
        let between = ids.get(first + FIRST.len()..second)?;
        let (before, after) = (&ids[..first], &ids[second + SECOND.len()..]);
        let mut special = before.iter().chain(between).chain(after);
        if special.any(|id| FIRST.contains(id) || SECOND.contains(id)) {
            return None;
        }
        let ones = kinds.iter().position(|&kind| kind > 0).filter(|_| types);
        let first_kind = match ones {
            Some(at) if kinds[at..].iter().any(|&kind| kind != 1) => return None,
            Some(at) if at > second => return None,
            Some(at) => Some(at.checked_sub(first + FIRST.len())?),
            None => None,
        };
        let [before, between, after] = [before, between, after].map(<[u32]>::to_vec);
        Some(Self { before, between, after, first: first_kind })
    }

    pub(super) fn len(&self) -> usize {
        self.before.len() + self.between.len() + self.after.len()
    }
}

impl Tokenizer {
    /// Tokenises the pair that is input `index`, with special tokens, and cuts what is too long.
    pub(crate) fn encode_pair(
        &self,
        index: usize,
        (side, second): (&Side, &str),
        truncation: Truncation,
    ) -> Result<Tokens, RequestError> {
        let frame = self.pairs.as_ref().ok_or(RequestError::NoPairs { index })?;
        let room = self.max_tokens - frame.len();
        let body = |text: &str| caught(index, || self.body(&self.cased(text), truncation, room));
        let first = side.body.get_or_init(|| body(&side.text));
        let first = first.as_ref().map_err(|error| at(index, error))?;
        let second = body(second)?;
        let tokens = first.1 + second.1;
        let truncated = tokens > room;
        if truncated && truncation == Truncation::Refuse {
            let tokens = tokens + frame.len();
            return Err(RequestError::TooManyTokens { index, tokens, limit: self.max_tokens });
        }
        let [first_kept, second_kept] = longest_first([first.0.len(), second.0.len()], room);
        let kept = |ids: &'_ [u32], count: usize| match truncation {
            Truncation::Start => ids[ids.len() - count..].to_vec(),
            _ => ids[..count].to_vec(),
        };
        let (first, second) = (kept(&first.0, first_kept), kept(&second.0, second_kept));
        let ids = [&frame.before, &first, &frame.between, &second, &frame.after].map(Vec::as_slice);
        let ids = ids.concat();
        let of_first = |between| frame.before.len() + first.len() + between;
        let second = frame.first.map_or(ids.len(), of_first);
        Ok(Tokens { ids, second, truncated })
    }
}

/// How many tokens are kept of two texts with so many, where there is room for `room`: as many of each as
/// if they went one by one from the longer one. The longer one keeps an odd token, the second if both are
/// as long.
fn longest_first([first, second]: [usize; 2], room: usize) -> [usize; 2] {
    if first + second <= room {
        return [first, second];
    }
    let shorter = first.min(second).min(room / 2);
    let longer = room - shorter;
    if first > second { [longer, shorter] } else { [shorter, longer] }
}

/// What was wrong with a text, of another pair that has it: it may have been another one that was the
/// first to have it tokenised.
fn at(index: usize, error: &RequestError) -> RequestError {
    match error {
        RequestError::Tokenizer { reason, .. } => {
            RequestError::Tokenizer { index, reason: reason.clone() }
        }
        error => error.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn folder(model: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(model)
    }

    fn side(text: &str) -> Side {
        Side::new(text.into())
    }

    #[test]
    fn pairs_are_cut_as_by_the_tokenizers_crate_and_have_its_types() {
        let texts = ["Everyone has the right to life, liberty and security.", "", "a", "né 中文 x"];
        let (half, long) = (texts[0].repeat(2), texts[0].repeat(9));
        let texts: Vec<&str> = texts.into_iter().chain([&*half, &*long]).collect();
        for model in ["bert-rerank", "roberta-rerank", "xlm-roberta-rerank", "distilbert-classify"]
        {
            let ours = Tokenizer::of_model(&folder(model)).unwrap();
            for (limit, direction, truncation) in [
                (ours.max_tokens, tokenizers::TruncationDirection::Right, Truncation::End),
                (ours.max_tokens, tokenizers::TruncationDirection::Left, Truncation::Start),
            ] {
                let mut theirs =
                    tokenizers::Tokenizer::from_file(folder(model).join("tokenizer.json")).unwrap();
                let params = tokenizers::TruncationParams {
                    direction,
                    max_length: limit,
                    strategy: tokenizers::TruncationStrategy::LongestFirst,
                    stride: 0,
                };
                theirs.with_truncation(Some(params)).unwrap();
                for first in &texts {
                    let side = side(first);
                    for second in &texts {
                        let found = ours.encode_pair(0, (&side, second), truncation).unwrap();
                        let expected = theirs.encode_fast((*first, *second), true).unwrap();
                        assert_eq!(found.ids, expected.get_ids(), "{model} {first} {second}");
                        let kinds = expected.get_type_ids();
                        let second = kinds.iter().position(|&kind| kind == 1);
                        let second = second.filter(|_| !model.starts_with("distilbert"));
                        assert_eq!(found.second, second.unwrap_or(kinds.len()), "{model}");
                        assert_eq!(found.truncated, !expected.get_overflowing().is_empty());
                    }
                }
            }
        }
    }

    #[test]
    fn lengths_are_those_of_taking_from_the_longer_one_by_one() {
        for room in 0..12 {
            for first in 0..14 {
                for second in 0..14 {
                    let (mut one, mut other) = (first, second);
                    while one + other > room {
                        if one > other { one -= 1 } else { other -= 1 }
                    }
                    let [a, b] = longest_first([first, second], room);
                    assert_eq!(a + b, one + other, "{first} {second} {room}");
                    assert!(a.abs_diff(one) <= 1, "{first} {second} {room}: {a} {one}");
                }
            }
        }
    }

    #[test]
    fn a_pair_that_must_not_be_cut_is_refused_with_all_its_tokens() {
        let tokenizer = Tokenizer::of_model(&folder("bert-rerank")).unwrap();
        let long = "and ".repeat(80);
        let refused = tokenizer.encode_pair(4, (&side("and"), &long), Truncation::Refuse);
        let limit = tokenizer.max_tokens;
        let tokens = 1 + 80 + 3;
        assert_eq!(refused.unwrap_err(), RequestError::TooManyTokens { index: 4, tokens, limit });
    }
}
