//! What a model's files leave open or ask for in vain: worth a word, but no reason to refuse.

use std::fmt;
use std::path::{Path, PathBuf};

/// Something in a model's folder that its user should know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    path: PathBuf,
    what: String,
}

impl Warning {
    pub(super) fn new(path: &Path, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), what: what.into() }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}
