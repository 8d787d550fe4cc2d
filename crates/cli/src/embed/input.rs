//! Where texts come from: arguments, standard input or a file, one record each.

use std::fs::{File, Metadata};
use std::io::{self, BufReader, IsTerminal, stdin};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::arguments::{EmbedArguments, Format};
use crate::embed::lines::Lines;
use crate::failure::Failure;

/// One text to embed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Its place among the records, from 0: its row in the output.
    pub(crate) index: u64,
    /// Its place in the input, from 1.
    pub(crate) number: u64,
    /// Bytes that it took of the input.
    pub(crate) size: u64,
    /// The text, or why there is none.
    pub(crate) text: Result<String, String>,
}

/// Where texts come from, and how.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// These texts.
    Arguments(Vec<String>),
    /// Lines of a file, or of standard input.
    Lines {
        /// The file; `None` is standard input.
        file: Option<PathBuf>,
        /// How lines hold texts.
        reading: Reading,
    },
}

/// How lines hold texts.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    format: Format,
    field: String,
    skip_empty: bool,
}

impl Input {
    /// The input that the arguments ask for.
    pub(crate) fn new(arguments: &EmbedArguments) -> Self {
        if !arguments.texts.is_empty() {
            return Self::Arguments(arguments.texts.clone());
        }
        let file = arguments.input.clone().filter(|path| path != Path::new("-"));
        let format = arguments.format.unwrap_or_else(|| match &file {
            Some(path) if is_jsonl(path) => Format::Jsonl,
            _ => Format::Text,
        });
        let field = arguments.field.clone();
        let reading = Reading { format, field, skip_empty: arguments.skip_empty };
        Self::Lines { file, reading }
    }

    /// What the number of a record counts.
    pub(crate) fn unit(&self) -> &'static str {
        match self {
            Self::Arguments(_) => "text",
            Self::Lines { .. } => "line",
        }
    }

    /// How many bytes there are in all, if that is known.
    pub(crate) fn size(&self) -> Option<u64> {
        match self {
            Self::Arguments(texts) => Some(texts.iter().map(|text| text.len() as u64).sum()),
            Self::Lines { file: None, .. } => None,
            Self::Lines { file: Some(path), .. } => {
                let metadata = path.metadata().ok()?;
                metadata.is_file().then_some(metadata.len())
            }
        }
    }

    /// Whether somebody is to type the texts.
    pub(crate) fn is_typed(&self) -> bool {
        matches!(self, Self::Lines { file: None, .. }) && stdin().is_terminal()
    }

    /// Fails now if the input can't be read, rather than after the model is loaded.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let Self::Lines { file: Some(path), .. } = self else { return Ok(()) };
        let checked = match path.metadata() {
            Ok(metadata) if metadata.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(metadata) if metadata.is_file() => File::open(path).map(drop),
            Ok(metadata) if is_endless(path, &metadata) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a device: expected a file, a pipe or a terminal",
            )),
            // A pipe can be opened only once.
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        checked.map_err(|source| self.failure(source))
    }

    /// Hands the records to `take`, in order, until it says `false`.
    pub(crate) fn read(self, take: impl FnMut(Record) -> bool) -> Result<(), Failure> {
        let named = self.clone();
        let read = match self {
            Self::Arguments(texts) => {
                read_arguments(texts, take);
                Ok(())
            }
            Self::Lines { file: None, reading } => {
                reading.read(&mut Lines::new(stdin().lock()), take)
            }
            Self::Lines { file: Some(path), reading } => File::open(path).and_then(|file| {
                reading.read(&mut Lines::new(BufReader::with_capacity(1 << 16, file)), take)
            }),
        };
        read.map_err(|source| named.failure(source))
    }

    fn failure(&self, source: io::Error) -> Failure {
        let path = match self {
            Self::Lines { file: Some(path), .. } => path.clone(),
            _ => "standard input".into(),
        };
        Failure::Read { path, source }
    }
}

/// Whether this is a device that may go on for ever, such as `/dev/zero`.
#[cfg(unix)]
fn is_endless(path: &Path, metadata: &Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let kind = metadata.file_type();
    let ends = || path.ends_with("null") || File::open(path).is_ok_and(|file| file.is_terminal());
    kind.is_block_device() || (kind.is_char_device() && !ends())
}

#[cfg(not(unix))]
fn is_endless(_path: &Path, _metadata: &Metadata) -> bool {
    false
}

/// Whether the file's name says that it holds JSON lines.
pub(crate) fn is_jsonl(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "jsonl" || ending == "ndjson")
}

fn read_arguments(texts: Vec<String>, mut take: impl FnMut(Record) -> bool) {
    for (index, text) in (0..).zip(texts) {
        let size = text.len() as u64;
        if !take(Record { index, number: index + 1, size, text: Ok(text) }) {
            return;
        }
    }
}

impl Reading {
    fn read<R: io::BufRead>(
        &self,
        lines: &mut Lines<R>,
        mut take: impl FnMut(Record) -> bool,
    ) -> io::Result<()> {
        let mut index = 0;
        while let Some(line) = lines.next()? {
            let blank = matches!(&line.text, Ok(text) if text.trim().is_empty());
            if blank && self.skip_empty {
                continue;
            }
            let text = match line.text {
                Ok(_) if blank => Err("blank: --skip-empty leaves such lines out".to_owned()),
                Ok(text) if self.format == Format::Jsonl => self.text_in_json(&text),
                text => text,
            };
            if !take(Record { index, number: line.number, size: line.size, text }) {
                break;
            }
            index += 1;
        }
        Ok(())
    }

    fn text_in_json(&self, line: &str) -> Result<String, String> {
        let field = &self.field;
        match serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))? {
            Value::String(text) => Ok(text),
            Value::Object(mut object) => match object.remove(field) {
                Some(Value::String(text)) => Ok(text),
                Some(other) => Err(format!("field '{field}' is {}, not a string", kind(&other))),
                None if object.is_empty() => Err(format!("the object has no field '{field}'")),
                None => {
                    let names: Vec<&str> = object.keys().map(String::as_str).collect();
                    let names = names.join(", ");
                    Err(format!("the object has no field '{field}', only {names}: set --field"))
                }
            },
            other => Err(format!("{} instead of a string or an object", kind(&other))),
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(input: &str, format: Format, skip_empty: bool) -> Vec<Record> {
        let reading = Reading { format, field: "body".to_owned(), skip_empty };
        let mut records = Vec::new();
        let take = |record| {
            records.push(record);
            true
        };
        reading.read(&mut Lines::new(input.as_bytes()), take).unwrap();
        records
    }

    #[test]
    fn blank_lines_fail_or_are_left_out() {
        let kept = records("a\n \nb\n", Format::Text, false);
        assert_eq!(kept.len(), 3);
        assert!(kept[1].text.as_ref().is_err_and(|reason| reason.contains("--skip-empty")));

        let skipped = records("a\n \nb\n", Format::Text, true);
        let places: Vec<_> = skipped.iter().map(|record| (record.index, record.number)).collect();
        assert_eq!(places, [(0, 1), (1, 3)]);
    }

    #[test]
    fn json_lines_are_strings_or_objects() {
        let lines = "\"a \\u00e4\"\n{\"id\":1,\"body\":\"b\"}\n";
        let texts: Vec<_> = records(lines, Format::Jsonl, false)
            .into_iter()
            .map(|record| record.text.unwrap())
            .collect();
        assert_eq!(texts, ["a ä", "b"]);
    }

    #[test]
    fn json_that_holds_no_text_says_what_it_holds() {
        let reason = |line: &str| {
            let mut records = records(line, Format::Jsonl, false);
            records.remove(0).text.unwrap_err()
        };
        assert!(reason("{\"text\":\"a\",\"id\":1}").contains("only id, text: set --field"));
        assert_eq!(reason("{\"body\":7}"), "field 'body' is a number, not a string");
        assert_eq!(reason("[\"a\"]"), "an array instead of a string or an object");
        assert!(reason("plain text").starts_with("not JSON: "));
        assert!(reason(&"[".repeat(100_000)).starts_with("not JSON: "));
    }

    #[test]
    fn reading_ends_when_nobody_takes() {
        let mut taken = 0;
        let texts = vec!["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let take = |_| {
            taken += 1;
            taken < 2
        };
        Input::Arguments(texts).read(take).unwrap();
        assert_eq!(taken, 2);
    }
}
