//! What settings accept: one type each, parsed from text whatever source it came from.
//!
//! Here is what types of other crates accept; [`kind`](super::kind) has our own.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use vecmill_engine::{ModelRef, Pooling};
use vecmill_server::{ApiKey, TokenInputs};

/// A type that a setting can have.
pub(crate) trait Value: Sized {
    /// What help texts show in the value's place.
    const PLACEHOLDER: &'static str;
    /// What a message says was expected.
    const EXPECTED: &'static str;
    /// Whether the setting may be given more than once; [`Value::and`] then collects.
    const MANY: bool = false;
    /// What the flag means without a value, if it may stand without one.
    const IMPLIED: Option<&'static str> = None;
    /// Whether the value must not be shown.
    const SECRET: bool = false;

    /// The value that `text` stands for; `None` if it is not as expected.
    fn parse(text: &str) -> Option<Self>;

    /// The value when no source gives one and there is no default; `None` if one is needed.
    fn absent() -> Option<Self> {
        None
    }

    /// This value and one more.
    fn and(self, next: Self) -> Self {
        next
    }
}

impl<T: Value> Value for Option<T> {
    const PLACEHOLDER: &'static str = T::PLACEHOLDER;
    const EXPECTED: &'static str = T::EXPECTED;
    const SECRET: bool = T::SECRET;

    fn parse(text: &str) -> Option<Self> {
        T::parse(text).map(Some)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

impl<T: Value> Value for Vec<T> {
    const PLACEHOLDER: &'static str = T::PLACEHOLDER;
    const EXPECTED: &'static str = T::EXPECTED;
    const SECRET: bool = T::SECRET;
    const MANY: bool = true;

    fn parse(text: &str) -> Option<Self> {
        T::parse(text).map(|value| vec![value])
    }

    fn absent() -> Option<Self> {
        Some(Self::new())
    }

    fn and(mut self, next: Self) -> Self {
        self.extend(next);
        self
    }
}

impl Value for String {
    const PLACEHOLDER: &'static str = "TEXT";
    const EXPECTED: &'static str = "text that is not empty";

    fn parse(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| text.to_owned())
    }
}

impl Value for PathBuf {
    const PLACEHOLDER: &'static str = "PATH";
    const EXPECTED: &'static str = "a path";

    fn parse(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::from(text))
    }
}

impl Value for bool {
    const PLACEHOLDER: &'static str = "BOOL";
    const EXPECTED: &'static str = "true or false";
    const IMPLIED: Option<&'static str> = Some("true");

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Value for u16 {
    const PLACEHOLDER: &'static str = "PORT";
    const EXPECTED: &'static str = "a port from 0 to 65535";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Value for NonZeroUsize {
    const PLACEHOLDER: &'static str = "N";
    const EXPECTED: &'static str = "a whole number of at least 1";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Value for Pooling {
    const PLACEHOLDER: &'static str = "POOLING";
    const EXPECTED: &'static str = "mean, cls, max, last-token, mean-sqrt-len or weighted-mean";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Value for ModelRef {
    const PLACEHOLDER: &'static str = "ID|FOLDER";
    const EXPECTED: &'static str =
        "an id on the Hugging Face hub, such as owner/name, or a folder that exists";

    fn parse(text: &str) -> Option<Self> {
        let model = text.parse().ok()?;
        let missing = matches!(&model, Self::Folder(folder) if !folder.is_dir());
        (!missing).then_some(model)
    }
}

impl Value for TokenInputs {
    const PLACEHOLDER: &'static str = "IDS";
    const EXPECTED: &'static str = "model, refuse or cl100k_base";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Value for ApiKey {
    const PLACEHOLDER: &'static str = "KEY";
    const EXPECTED: &'static str = "visible ASCII characters without spaces";
    const SECRET: bool = true;

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}
