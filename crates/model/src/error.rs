//! Why a model can't be run: the file, what it should say, what it says, and what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Why a model can't be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file that every model needs isn't there.
    #[error("{}: the file is missing: a model folder needs it", path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// A file that every model needs has another name, if only by its case.
    #[error(
        "{}: the file is missing, but '{found}' lies there: rename it, for the case of names counts",
        path.display()
    )]
    OtherCase {
        /// The file.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// A file is a link, or lies behind one, whose target is missing.
    #[error(
        "{}: it leads through the link {} to '{}', which is not there: a snapshot of the hub's \
         cache is links to its blobs folder, and must be copied with what they lead to (cp -rL)",
        path.display(), link.display(), target.display()
    )]
    DanglingLink {
        /// The file.
        path: PathBuf,
        /// The link: the file itself, or a folder above it.
        link: PathBuf,
        /// What the link says.
        target: PathBuf,
    },
    /// Something that is not a regular file has a file's name.
    #[error("{}: expected a regular file, found {found}", path.display())]
    NoFile {
        /// The path.
        path: PathBuf,
        /// What is there: `a folder`, `a pipe`, …
        found: &'static str,
    },
    /// The system could not read a file.
    #[error("{}: can't be read: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// A file, or a safetensors header, is larger than any honest one.
    #[error("{}: {what} has {found} bytes, but at most {limit} are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Which part of it: `the file` or `the header`.
        what: &'static str,
        /// The most bytes that are read.
        limit: u64,
        /// Its size in bytes.
        found: u64,
    },
    /// A file of weights was written to while it was read.
    #[error(
        "{}: it was changed while the model was loaded: put new files in place by renaming, then \
         start again",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Something that tools leave in a file's place stands there.
    #[error("{}: {found}", path.display())]
    StandIn {
        /// The file.
        path: PathBuf,
        /// What it is, and what to do.
        found: &'static str,
    },
    /// A file isn't the JSON that it should be.
    #[error("{}: not valid JSON: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        reason: String,
    },
    /// A key in a JSON file is missing or has a value that can't be.
    #[error("{}: '{key}' should be {expected}, but is {found}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What values are possible.
        expected: String,
        /// The value, or `missing`.
        found: String,
    },
    /// The model is of a kind, or has a part, that vecmill does not compute.
    #[error("{}: {what} '{found}' is not supported: supported are {supported}", path.display())]
    Unsupported {
        /// The file that asks for it.
        path: PathBuf,
        /// Which kind of thing: `the architecture`, `the module`, …
        what: &'static str,
        /// What is asked for.
        found: String,
        /// What there is instead.
        supported: String,
    },
    /// The folder's model was made for something that is not served.
    #[error(
        "{}: {found} says that the model {task}, and without modules.json nothing says that it \
         embeds: {}",
        path.display(),
        if *may_embed {
            "to embed with it all the same, choose how its tokens' vectors become one (--pooling)"
        } else {
            "choose a model that was trained to embed"
        }
    )]
    Task {
        /// The file.
        path: PathBuf,
        /// What in it says so.
        found: String,
        /// What the model does.
        task: &'static str,
        /// Whether it embeds if its user says how.
        may_embed: bool,
    },
    /// The folder has weights that only change those of another model.
    #[error(
        "{}: adapters (LoRA) are not applied: merge it into its base model \
         (merge_and_unload() of the peft package) and save that",
        path.display()
    )]
    Adapter {
        /// The adapter's file.
        path: PathBuf,
    },
    /// The tensors of a model lie under several prefixes.
    #[error(
        "{}: the model is there twice, as '{first}' and as '{second}': save it once, alone",
        path.display()
    )]
    Twice {
        /// The weights file, or the index of its shards.
        path: PathBuf,
        /// A tensor of the one.
        first: String,
        /// The same tensor of the other.
        second: String,
    },
    /// A path in a file leads out of the model's folder.
    #[error(
        "{}: the path '{found}' leads out of the model's folder: paths must be relative and \
         without '..'",
        path.display()
    )]
    PathEscape {
        /// The file that has the path in it.
        path: PathBuf,
        /// The path.
        found: String,
    },
    /// A safetensors file's header contradicts itself or the file's size.
    #[error(
        "{}: broken safetensors file: {what} should be {expected}, but is {found}: \
         fetch or convert it again",
        path.display()
    )]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// Which part: the header, or a tensor by name.
        what: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A pickle isn't a table of tensors, contradicts itself, or asks for what would run code.
    #[error(
        "{}: pickled weights: {what} should be {expected}, but is {found}: a pickle is read as a \
         table of tensors, and nothing in it is run; fetch it again, or save the model as \
         safetensors where its files are trusted",
        path.display()
    )]
    Pickle {
        /// The file.
        path: PathBuf,
        /// Which part: of the archive, of the pickle, or a tensor by name.
        what: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A tensor that the architecture needs isn't in the weights.
    #[error(
        "{}: the tensor '{tensor}' is missing: config.json and the weights belong to different \
         models, or the weights are incomplete",
        path.display()
    )]
    MissingTensor {
        /// The weights file, or the index of its shards.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor's shape contradicts the configuration.
    #[error(
        "{}: the tensor '{tensor}' should have shape {expected:?}, but has {found:?}",
        path.display()
    )]
    Shape {
        /// The weights file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The shape that the configuration asks for.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor has a number format that vecmill does not compute with.
    #[error(
        "{}: the tensor '{tensor}' should be F32, F16 or BF16, but is {found}: \
         convert the model to one of these",
        path.display()
    )]
    NumberFormat {
        /// The weights file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The format in the file.
        found: String,
    },
}

impl ModelError {
    pub(crate) fn io(path: &Path, error: io::Error) -> Self {
        Self::Io { path: path.to_owned(), error }
    }
}
