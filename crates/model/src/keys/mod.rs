//! Every key that a model's files may have, and what is done about it.
//!
//! The reference is sentence-transformers 6 with transformers 5; where older releases read more,
//! that is here too. A key that bears on vectors is either used as the reference uses it, or every
//! value that would change a vector is refused by name. The rest is known to be of no concern, each
//! for a reason that is said. A key that is in no row gets a [`Warning`]: it may ask for something
//! that is not done.
//!
//! The choice behind it: a table, so that a test can go through it row by row, and so that what is
//! refused is refused in one place.

mod rows;

use std::borrow::Cow;

pub(super) use rows::row;

use super::json::{Json, JsonFile, shortened};
use super::{Family, ModelError, Warning};

/// The files whose keys are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `config.json` of a transformer of this family.
    Config(&'static Family),
    /// One module in `modules.json`.
    Module,
    /// `sentence_bert_config.json` and its older names.
    Transformer,
    /// `config.json` of a pooling module.
    Pooling,
    /// `config.json` of a dense module.
    Dense,
    /// `config.json` of a normalising module.
    Normalize,
    /// `config_sentence_transformers.json`.
    SentenceTransformers,
    /// `model.safetensors.index.json`.
    Index,
    /// `tokenizer_config.json`.
    Tokenizer,
    /// `special_tokens_map.json`.
    SpecialTokens,
}

/// Keys that are treated alike.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(super) keys: Cow<'static, [&'static str]>,
    pub(super) rule: Rule,
}

/// What is done about a key.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rule {
    /// It is used. Null is refused: the reference has no default for it.
    Used,
    /// It is used; null is as good as nothing.
    UsedOrNull,
    /// The tokenizer's reader uses it.
    ByTokenizer,
    /// A head of classification uses it.
    ByClassifier,
    /// Only these values are what vecmill computes; others are refused, and why.
    Only(&'static [Plain], &'static str),
    /// It says the same as another key, and is refused where it doesn't.
    SameAs(&'static str),
    /// It bears on no vector, and why.
    Unread(
        #[cfg_attr(
            not(test),
            expect(dead_code, reason = "the test that compares docs/model-files.md reads it")
        )]
        &'static str,
    ),
}

/// A value that a row allows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Plain {
    Null,
    False,
    Text(&'static str),
    /// `{}`, `[]` or `""`.
    Empty,
}

impl Plain {
    fn is(self, value: &Json) -> bool {
        match self {
            Self::Null => *value == Json::Null,
            Self::False => *value == Json::Bool(false),
            Self::Text(text) => value.as_text() == Some(text),
            Self::Empty => match value {
                Json::Object(members) => members.is_empty(),
                Json::Array(elements) => elements.is_empty(),
                Json::Text(text) => text.is_empty(),
                _ => false,
            },
        }
    }

    fn words(self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::False => "false".to_owned(),
            Self::Text(text) => format!("'{text}'"),
            Self::Empty => "empty".to_owned(),
        }
    }
}

impl Kind {
    /// The rule for `key`.
    pub(super) fn rule(self, key: &str) -> Option<Rule> {
        self.rows().find(|row| row.keys.contains(&key)).map(|row| row.rule)
    }
}

/// Refuses values of `file` that are not computed, and warns of keys that nobody knows.
pub(super) fn check(
    file: &JsonFile,
    kind: Kind,
    warnings: &mut Vec<Warning>,
) -> Result<(), ModelError> {
    let mut unknown = Vec::new();
    for (key, value) in file.members() {
        match kind.rule(key) {
            None => unknown.push(key),
            Some(Rule::Used) if *value == Json::Null => {
                return Err(file.wrong(key, "set or left out"));
            }
            Some(Rule::Only(values, why)) if !values.iter().any(|plain| plain.is(value)) => {
                let values: Vec<_> = values.iter().map(|plain| plain.words()).collect();
                return Err(file.wrong(key, format!("{} ({why})", values.join(" or "))));
            }
            Some(Rule::SameAs(other)) if file.get(other).is_some_and(|other| other != value) => {
                return Err(file.wrong(key, format!("the same as '{other}'")));
            }
            Some(_) => {}
        }
    }
    if !unknown.is_empty() {
        warnings.push(Warning::new(file.path(), unknown_keys(&unknown)));
    }
    Ok(())
}

fn unknown_keys(keys: &[&str]) -> String {
    const SHOWN: usize = 6;
    let shown: Vec<_> =
        keys.iter().take(SHOWN).map(|key| format!("'{}'", shortened(key))).collect();
    let more = match keys.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("not known, and not used: {}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests;
