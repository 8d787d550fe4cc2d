//! Where values come from, and what each place says.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The flag with this key.
    Flag(String),
    /// The environment variable with this name.
    Variable(String),
    /// A file.
    File {
        /// Its path as given.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key on that line.
        key: String,
    },
    /// The setting's default.
    Default(String),
}

impl Source {
    /// Which of two sources counts: the lower rank.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Self::Flag(_) => 0,
            Self::Variable(_) => 1,
            Self::File { .. } => 2,
            Self::Default(_) => 3,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(key) => write!(f, "--{key}"),
            Self::Variable(name) => write!(f, "{name}"),
            Self::File { path, line, key } => write!(f, "{}:{line}: {key}", path.display()),
            Self::Default(key) => write!(f, "default of {key}"),
        }
    }
}

/// One source's word on one setting.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Where it came from.
    pub(crate) source: Source,
    /// The texts given: one, or several for settings that may be repeated.
    pub(crate) texts: Vec<String>,
}
