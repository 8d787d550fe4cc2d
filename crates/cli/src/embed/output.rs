//! Where vectors go: JSON lines to standard output or a file, or a matrix in a `.npy` file.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use vecmill_engine::Embedding;

use crate::embed::input::is_jsonl;
use crate::embed::npy::NpyWriter;
use crate::failure::Failure;
use crate::new_file::{NewFile, folder_of};
use crate::patient::Patient;
use crate::stdout::{self, Stdout};

/// Where vectors are to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// JSON lines to standard output.
    Stdout,
    /// JSON lines to what is no regular file, such as a named pipe.
    Pipe(PathBuf),
    /// JSON lines to a file.
    Jsonl(PathBuf),
    /// A matrix to a file.
    Npy(PathBuf),
}

impl Target {
    /// The target that `--output` asks for, checked as far as it can be without writing.
    pub(crate) fn new(output: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = output.filter(|path| *path != Path::new("-")) else {
            return Ok(Self::Stdout);
        };
        let fail = |kind: io::ErrorKind| {
            Err(Failure::Write { path: path.to_owned(), source: kind.into() })
        };
        let matrix = path.extension().is_some_and(|ending| ending == "npy");
        // What a link points to is replaced, not the link.
        let file = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        match file.metadata() {
            Ok(metadata) if metadata.is_dir() => return fail(io::ErrorKind::IsADirectory),
            Ok(metadata) if !metadata.is_file() && !matrix => return Ok(Self::Pipe(file)),
            Ok(metadata) if !metadata.is_file() => return fail(io::ErrorKind::NotSeekable),
            _ if !folder_of(&file).is_dir() => return fail(io::ErrorKind::NotFound),
            _ if matrix => return Ok(Self::Npy(file)),
            _ => {}
        }
        if is_jsonl(path) {
            return Ok(Self::Jsonl(file));
        }
        let path = path.display();
        Err(Failure::Usage(format!("--output {path}: expected a name ending in .jsonl or .npy")))
    }

    /// Whether it is a terminal that shows progress bars, too.
    pub(crate) fn is_terminal(&self) -> bool {
        *self == Self::Stdout && io::stdout().is_terminal()
    }

    /// Begins to write vectors with so many dimensions.
    pub(crate) fn open(self, dimensions: usize) -> Result<Output, Failure> {
        let failure = |path: &Path, source| Failure::Write { path: path.to_owned(), source };
        match self {
            Self::Stdout => stdout::open().map(Output::Stdout).map_err(Failure::Stdout),
            Self::Pipe(path) => match OpenOptions::new().write(true).open(&path) {
                Ok(file) => Ok(Output::Pipe(path, BufWriter::new(Patient(file)))),
                Err(error) => Err(failure(&path, error)),
            },
            Self::Jsonl(path) => match NewFile::create(&path) {
                Ok(file) => Ok(Output::Jsonl(path, file)),
                Err(error) => Err(failure(&path, error)),
            },
            Self::Npy(path) => {
                let begin = |file| NpyWriter::new(file, dimensions);
                match NewFile::create(&path).and_then(begin) {
                    Ok(matrix) => Ok(Output::Npy(path, matrix)),
                    Err(error) => Err(failure(&path, error)),
                }
            }
        }
    }
}

/// An opened [`Target`].
#[derive(Debug)]
pub(crate) enum Output {
    Stdout(Stdout),
    Pipe(PathBuf, BufWriter<Patient<File>>),
    Jsonl(PathBuf, NewFile),
    Npy(PathBuf, NpyWriter<NewFile>),
}

/// A line of JSON.
#[derive(Serialize)]
#[serde(untagged)]
enum JsonLine<'a> {
    Vector { index: u64, tokens: usize, truncated: bool, embedding: &'a [f32] },
    Failed { index: u64, error: &'a str },
}

impl Output {
    /// Writes what became of the text with this index.
    pub(crate) fn write(
        &mut self,
        index: u64,
        outcome: Result<&Embedding, &str>,
    ) -> Result<(), Failure> {
        let line = match outcome {
            Ok(Embedding { vector, tokens, truncated }) => {
                let (tokens, truncated) = (*tokens, *truncated);
                JsonLine::Vector { index, tokens, truncated, embedding: vector }
            }
            Err(error) => JsonLine::Failed { index, error },
        };
        let written = match self {
            Self::Stdout(out) => write_line(out, &line),
            Self::Pipe(_, out) => write_line(out, &line),
            Self::Jsonl(_, out) => write_line(out, &line),
            Self::Npy(_, matrix) => {
                matrix.row(outcome.ok().map(|embedding| embedding.vector.as_slice()))
            }
        };
        written.map_err(|error| self.failure(error))
    }

    /// Passes on what whoever reads along is waiting for.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        let flushed = match self {
            Self::Stdout(out) => out.flush(),
            Self::Pipe(_, out) => out.flush(),
            Self::Jsonl(..) | Self::Npy(..) => Ok(()),
        };
        flushed.map_err(|error| self.failure(error))
    }

    /// Ends the output; a file gets its name.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        self.flush()?;
        let (path, finished) = match self {
            Self::Stdout(_) | Self::Pipe(..) => return Ok(()),
            Self::Jsonl(path, out) => {
                let finished = out.finish(&path);
                (path, finished)
            }
            Self::Npy(path, matrix) => {
                let finished = matrix.finish().and_then(|out| out.finish(&path));
                (path, finished)
            }
        };
        finished.map_err(|source| Failure::Write { path, source })
    }

    fn failure(&self, source: io::Error) -> Failure {
        match self {
            Self::Stdout(_) => Failure::Stdout(source),
            Self::Pipe(path, _) | Self::Jsonl(path, _) | Self::Npy(path, _) => {
                Failure::Write { path: path.clone(), source }
            }
        }
    }
}

fn write_line(out: &mut impl Write, line: &JsonLine<'_>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedding(vector: Vec<f32>) -> Embedding {
        Embedding { vector, tokens: 3, truncated: true }
    }

    #[test]
    fn targets_go_by_their_ending() {
        let folder = tempfile::tempdir().unwrap();
        let target = |name: &str| Target::new(Some(&folder.path().join(name)));
        assert!(matches!(target("a.jsonl").unwrap(), Target::Jsonl(_)));
        assert!(matches!(target("a.npy").unwrap(), Target::Npy(_)));
        assert!(matches!(target("a.txt").unwrap_err(), Failure::Usage(_)));
        assert!(matches!(target("missing/a.npy").unwrap_err(), Failure::Write { .. }));
        assert!(matches!(target("").unwrap_err(), Failure::Write { .. }));
        assert_eq!(Target::new(None).unwrap(), Target::Stdout);
        assert_eq!(Target::new(Some(Path::new("-"))).unwrap(), Target::Stdout);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_not_replaced() {
        let null = Path::new("/dev/null");
        let mut output = Target::new(Some(null)).unwrap().open(1).unwrap();
        assert!(matches!(output, Output::Pipe(..)));
        output.write(0, Ok(&embedding(vec![1.0]))).unwrap();
        output.finish().unwrap();
        assert!(!null.metadata().unwrap().is_file());
    }

    #[test]
    fn lines_are_json_in_the_documented_form() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let mut output = Target::new(Some(&path)).unwrap().open(2).unwrap();
        output.write(0, Ok(&embedding(vec![0.1, -2.0]))).unwrap();
        output.write(1, Err("no \"text\"")).unwrap();
        assert!(!path.exists(), "a file is complete or not there");
        output.finish().unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\"index\":0,\"tokens\":3,\"truncated\":true,\"embedding\":[0.1,-2.0]}\n\
             {\"index\":1,\"error\":\"no \\\"text\\\"\"}\n"
        );
    }

    #[test]
    fn an_output_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let output = Target::new(Some(&folder.path().join("a.npy"))).unwrap().open(2).unwrap();
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
        drop(output);
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
}
