//! JSON files read with suspicion: bounded in size, each value checked, each error naming its key.

use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::ModelError;
use super::file::{SETTINGS_LIMIT, read_file};

/// A JSON object in a file.
#[derive(Debug)]
pub(super) struct JsonFile {
    path: PathBuf,
    value: Value,
}

impl JsonFile {
    /// Reads the file at `path`, which must be there.
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let value = parse(path, &read_file(path, SETTINGS_LIMIT)?)?;
        Ok(Self { path: path.to_owned(), value })
    }

    /// Reads the file at `path`, or gives an empty object when there is none.
    pub(super) fn open_optional(path: &Path) -> Result<Self, ModelError> {
        match Self::open(path) {
            Err(ModelError::MissingFile { path }) => {
                Ok(Self { path, value: Value::Object(serde_json::Map::new()) })
            }
            result => result,
        }
    }

    /// An object inside the file at `path`.
    pub(super) fn part(path: &Path, value: Value) -> Self {
        Self { path: path.to_owned(), value }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The whole value, for files that are not objects.
    pub(super) fn into_value(self) -> Value {
        self.value
    }

    /// The value of `key`; `None` where it is absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    /// An integer within `range`.
    pub(super) fn integer(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let integer = value.as_u64().and_then(|value| usize::try_from(value).ok());
        match integer.filter(|integer| range.contains(integer)) {
            Some(integer) => Ok(Some(integer)),
            None => {
                Err(self
                    .wrong(key, format!("an integer from {} to {}", range.start(), range.end())))
            }
        }
    }

    /// An integer within `range` that must be there.
    pub(super) fn required_integer(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
    ) -> Result<usize, ModelError> {
        let expected = format!("an integer from {} to {}", range.start(), range.end());
        self.integer(key, range)?.ok_or_else(|| self.wrong(key, expected))
    }

    /// A finite number.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(key, "a number")),
        }
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, "a string"))
    }

    /// A boolean.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, "true or false"))
    }

    /// The error that the value of `key` is not what was `expected`.
    pub(super) fn wrong(&self, key: &str, expected: impl Into<String>) -> ModelError {
        ModelError::Value {
            path: self.path.clone(),
            key: key.to_owned(),
            expected: expected.into(),
            found: self.get(key).map_or_else(|| "missing".to_owned(), excerpt),
        }
    }
}

/// Parses the contents of the file at `path`. Nesting is bounded by the parser.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Value, ModelError> {
    serde_json::from_slice(bytes)
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
        return Err(ModelError::PathEscape { path, found: excerpt(&Value::from(relative)) });
    }
    Ok(if relative.is_empty() { folder.to_owned() } else { folder.join(relative) })
}

/// The start of a value, as errors quote it.
fn excerpt(value: &Value) -> String {
    const SHOWN: usize = 80;
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(_) => return "an array".to_owned(),
        Value::Object(_) => return "an object".to_owned(),
        scalar => scalar.to_string(),
    };
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
