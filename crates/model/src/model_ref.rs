//! Naming a model.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const DEFAULT_ID: &str = "sentence-transformers/all-MiniLM-L6-v2";

/// Longer names are not names.
const LENGTH_LIMIT: usize = 200;

/// A model by name.
///
/// ```
/// use vecmill_model::ModelRef;
///
/// # fn main() -> Result<(), vecmill_model::InvalidModelRef> {
/// let model: ModelRef = "intfloat/e5-small-v2@main".parse()?;
/// assert!(matches!(model, ModelRef::Hub { id, .. } if id == "intfloat/e5-small-v2"));
/// assert!(matches!("./my-model".parse()?, ModelRef::Folder(_)));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// A repository on the Hugging Face hub.
    Hub {
        /// `owner/name`.
        id: String,
        /// Branch, tag or commit; `None`: `main`.
        revision: Option<String>,
    },
    /// A local folder.
    Folder(PathBuf),
}

/// What was to name a model names none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{found}' names no model: give a folder (./path/to/folder) or a Hugging Face id \
     (owner/name or owner/name@revision)"
)]
pub struct InvalidModelRef {
    /// What was given.
    pub found: String,
}

impl ModelRef {
    /// Whether this is the model that vecmill runs when none is named, as first published.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
            || matches!(self, Self::Hub { id, revision: Some(revision) }
                if id == DEFAULT_ID && revision == "main")
    }

    /// Checks the parts of a hub reference, which become parts of paths and addresses.
    ///
    /// # Errors
    /// When one of them is none that the hub allows.
    pub fn check(&self) -> Result<(), InvalidModelRef> {
        let Self::Hub { id, revision } = self else { return Ok(()) };
        let id_is_good = id.split('/').count() == 2 && id.split('/').all(is_name);
        let revision_is_good =
            revision.as_deref().is_none_or(|revision| revision.split('/').all(is_name));
        if id_is_good && revision_is_good {
            Ok(())
        } else {
            let found = self.to_string().chars().take(LENGTH_LIMIT).collect();
            Err(InvalidModelRef { found })
        }
    }
}

/// What the hub allows in names, which leaves out whatever means something in paths.
fn is_name(name: &str) -> bool {
    let allowed = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    (1..=LENGTH_LIMIT).contains(&name.len())
        && name.chars().all(allowed)
        && !name.starts_with('.')
        && !name.contains("..")
        && !name.contains("--")
}

impl Default for ModelRef {
    fn default() -> Self {
        Self::Hub { id: DEFAULT_ID.to_owned(), revision: None }
    }
}

impl FromStr for ModelRef {
    type Err = InvalidModelRef;

    /// An existing folder, or what can only be a path, is a folder; all else is `owner/name` or
    /// `owner/name@revision`.
    fn from_str(text: &str) -> Result<Self, InvalidModelRef> {
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision.to_owned())),
            None => (text, None),
        };
        let is_path = text.starts_with(['.', '/', '~'])
            || text.ends_with('/')
            || text.contains('\\')
            || id.split('/').count() > 2;
        if is_path || Path::new(text).is_dir() {
            return Ok(Self::Folder(PathBuf::from(text)));
        }
        let model = Self::Hub { id: id.to_owned(), revision };
        model.check()?;
        Ok(model)
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub { id, revision: None } => f.write_str(id),
            Self::Hub { id, revision: Some(revision) } => write!(f, "{id}@{revision}"),
            Self::Folder(folder) => folder.display().fmt(f),
        }
    }
}
