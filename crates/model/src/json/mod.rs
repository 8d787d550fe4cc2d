//! JSON files read with suspicion: bounded in size, each value checked, each error naming its key.
//!
//! Models are written by Python, so all that its `json` module writes is read ([`Json::parse`]). A
//! number that is not finite, or text with half a character, is refused where it is used, by its
//! key; under keys that nobody reads it is of no concern.

mod parse;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

pub use parse::JsonError;

use super::ModelError;
use super::file::{SETTINGS_LIMIT, read_file, read_optional_file};

/// A value in a model's JSON.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    /// `null`, Python's `None`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number of 64 bits.
    Integer(i64),
    /// Any other number, also NaN and infinity.
    Float(f64),
    /// Text.
    Text(String),
    /// Text with halves of surrogate pairs, which are replaced by U+FFFD.
    BrokenText(String),
    /// An array.
    Array(Vec<Json>),
    /// An object.
    Object(BTreeMap<String, Json>),
}

impl Json {
    /// The value of `key`, if this is an object that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.as_object()?.get(key)
    }

    /// The whole number, also if it is written as `256.0`.
    pub fn as_integer(&self) -> Option<i64> {
        const EXACT: f64 = (1u64 << 53) as f64;
        match *self {
            Self::Integer(integer) => Some(integer),
            #[expect(clippy::cast_possible_truncation, reason = "it is whole and within bounds")]
            Self::Float(number) if number.fract() == 0.0 && number.abs() <= EXACT => {
                Some(number as i64)
            }
            _ => None,
        }
    }

    /// The number, if it is finite.
    pub fn as_number(&self) -> Option<f64> {
        match *self {
            #[expect(clippy::cast_precision_loss, reason = "as Python's float does")]
            Self::Integer(integer) => Some(integer as f64),
            Self::Float(number) => Some(number).filter(|number| number.is_finite()),
            _ => None,
        }
    }

    /// The text, if it is whole.
    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The members, if this is an object.
    pub fn as_object(&self) -> Option<&BTreeMap<String, Self>> {
        if let Self::Object(members) = self { Some(members) } else { None }
    }

    /// The elements, if this is an array.
    pub fn as_array(&self) -> Option<&[Self]> {
        if let Self::Array(elements) = self { Some(elements) } else { None }
    }

    /// The start of the value, as errors quote it.
    pub fn excerpt(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Integer(number) => number.to_string(),
            Self::Float(number) if number.is_nan() => "NaN".to_owned(),
            Self::Float(number) if number.is_infinite() => {
                if *number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
            }
            Self::Float(number) => format!("{number:?}"),
            Self::Text(text) => shortened(text),
            Self::BrokenText(text) => format!("{} (with half a surrogate pair)", shortened(text)),
            Self::Array(_) => "an array".to_owned(),
            Self::Object(_) => "an object".to_owned(),
        }
    }
}

/// At most so much of `text` as errors quote.
pub(super) fn shortened(text: &str) -> String {
    const SHOWN: usize = 80;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// A JSON object in a file.
#[derive(Debug)]
pub struct JsonFile {
    path: PathBuf,
    value: Json,
}

impl JsonFile {
    /// Reads the object in the file at `path`, which must be there.
    ///
    /// # Errors
    /// When it is missing, can't be read, is larger than [`SETTINGS_LIMIT`] or holds no object.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Self::parse(path, &read_file(path, SETTINGS_LIMIT)?)
    }

    /// Reads the object in the file at `path`; an empty one where nothing has this name.
    ///
    /// # Errors
    /// As for [`open`](Self::open), but for a file that is missing.
    pub fn open_optional(path: &Path) -> Result<Self, ModelError> {
        match read_optional_file(path, SETTINGS_LIMIT)? {
            Some(bytes) => Self::parse(path, &bytes),
            None => Self::part(path, Json::Object(BTreeMap::new())),
        }
    }

    /// The object that `bytes`, the contents of the file at `path`, are.
    ///
    /// # Errors
    /// When they are none.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        Self::part(path, value(path, bytes)?)
    }

    /// An object inside the file at `path`.
    pub(super) fn part(path: &Path, value: Json) -> Result<Self, ModelError> {
        if matches!(value, Json::Object(_)) {
            return Ok(Self { path: path.to_owned(), value });
        }
        let found = match &value {
            Json::Text(_) | Json::BrokenText(_) => format!("the text '{}'", value.excerpt()),
            other => other.excerpt(),
        };
        let reason = format!("expected an object, found {found}");
        Err(ModelError::Json { path: path.to_owned(), reason })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The keys in order, and their values, null ones too.
    pub fn members(&self) -> impl Iterator<Item = (&str, &Json)> {
        self.value.as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`; `None` where it is absent or null.
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.value.get(key).filter(|value| **value != Json::Null)
    }

    /// An integer within `range`.
    ///
    /// # Errors
    /// When the key has another value; so for all of these.
    pub fn integer(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let integer = value.as_integer().and_then(|value| usize::try_from(value).ok());
        match integer.filter(|integer| range.contains(integer)) {
            Some(integer) => Ok(Some(integer)),
            None => Err(self.wrong(key, within(&range))),
        }
    }

    /// An integer within `range` that must be there.
    ///
    /// # Errors
    /// Also when it is missing.
    pub fn required_integer(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
    ) -> Result<usize, ModelError> {
        let expected = within(&range);
        self.integer(key, range)?.ok_or_else(|| self.wrong(key, expected))
    }

    /// A finite number.
    ///
    /// # Errors
    /// See [`integer`](Self::integer).
    pub fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_number().map(Some).ok_or_else(|| self.wrong(key, "a finite number"))
    }

    /// A string.
    ///
    /// # Errors
    /// See [`integer`](Self::integer).
    pub fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_text().map(Some).ok_or_else(|| self.wrong(key, "a string"))
    }

    /// A boolean.
    ///
    /// # Errors
    /// See [`integer`](Self::integer).
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Json::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// The error that the value of `key` is not what was `expected`.
    pub fn wrong(&self, key: &str, expected: impl Into<String>) -> ModelError {
        ModelError::Value {
            path: self.path.clone(),
            key: shortened(key),
            expected: expected.into(),
            found: self.value.get(key).map_or_else(|| "missing".to_owned(), Json::excerpt),
        }
    }
}

fn within(range: &RangeInclusive<usize>) -> String {
    match *range.end() {
        usize::MAX => format!("an integer of at least {}", range.start()),
        end if end == *range.start() => format!("{end}"),
        end => format!("an integer from {} to {end}", range.start()),
    }
}

/// The value that `bytes`, the contents of the file at `path`, are.
pub(super) fn value(path: &Path, bytes: &[u8]) -> Result<Json, ModelError> {
    Json::parse(bytes)
        .map_err(|error| ModelError::Json { path: path.to_owned(), reason: error.to_string() })
}

/// `folder` with `relative` appended, if that stays inside. Links are followed: the hub's own cache
/// is made of them.
pub(super) fn join_inside(
    folder: &Path,
    relative: &str,
    named_by: &Path,
) -> Result<PathBuf, ModelError> {
    let normal =
        |component: Component<'_>| matches!(component, Component::Normal(_) | Component::CurDir);
    // Backslashes and colons are path syntax on Windows and in no honest model.
    if relative.contains(['\\', ':', '\0']) || !Path::new(relative).components().all(normal) {
        let path = named_by.to_owned();
        return Err(ModelError::PathEscape { path, found: shortened(relative) });
    }
    Ok(if relative.is_empty() { folder.to_owned() } else { folder.join(relative) })
}
