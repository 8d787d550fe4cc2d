//! Settings in a TOML file: every value with its line, as text like that of the other sources.

use std::io;
use std::path::Path;

use strsim::osa_distance;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use vecmill_model::disk;

use crate::settings::problem::Problem;
use crate::settings::setting::Setting;
use crate::settings::source::{Entry, Source};

/// The most of a file that is read, of settings or of keys.
pub(super) const LIMIT: u64 = 1 << 20;

/// What a file gives: each setting's entry, and what is wrong.
pub(crate) type Contents = (Vec<(&'static Setting, Entry)>, Vec<Problem>);

/// Reads the file at `path`, as `origin` asks, in which the keys of `known` may occur.
pub(crate) fn read(path: &Path, origin: &Source, known: &[&'static Setting]) -> Contents {
    match text(path) {
        Ok(text) => parse(path, &text, known),
        Err(error) => {
            let value = Some(path.display().to_string());
            let message = format!("the settings file can't be read: {error}");
            (Vec::new(), vec![Problem { place: origin.to_string(), value, message }])
        }
    }
}

/// The text of a settings file: a regular file that people could have written.
fn text(path: &Path) -> io::Result<String> {
    let wrong = |_| io::Error::new(io::ErrorKind::InvalidData, "it is not valid UTF-8 text");
    String::from_utf8(disk::read_regular(path, LIMIT)?).map_err(wrong)
}

fn parse(path: &Path, text: &str, known: &[&'static Setting]) -> Contents {
    let line = |offset: usize| 1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count();
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut problems = Vec::new();
    let mut broken = Vec::new();
    for error in errors {
        let line = error.span().map_or(1, |span| line(span.start));
        broken.push(line);
        let place = format!("{}:{line}", path.display());
        let message = format!("not valid TOML: {}", error.message());
        problems.push(Problem { place, value: None, message });
    }
    let mut entries = Vec::new();
    for (key, value) in table.into_inner() {
        let line = line(key.span().start);
        if broken.contains(&line) {
            continue; // what the parser makes of it says nothing more
        }
        let key = key.into_inner().into_owned();
        let source = Source::File { path: path.to_owned(), line, key: key.clone() };
        let wrong = |message| Problem { place: source.to_string(), value: None, message };
        match known.iter().find(|setting| setting.is_called(&key)) {
            None => problems.push(wrong(unknown(&key, known))),
            Some(setting) => match texts(&value, setting.many) {
                Ok(texts) => entries.push((*setting, Entry { source, texts })),
                Err(message) => problems.push(wrong(message)),
            },
        }
    }
    (entries, problems)
}

/// The texts of a value: one, or for a setting that may be given more than once those of an array.
fn texts(value: &Spanned<DeValue<'_>>, many: bool) -> Result<Vec<String>, String> {
    match value.get_ref() {
        DeValue::Array(items) if many => {
            items.iter().map(|item| scalar(item.get_ref())).collect::<Result<_, _>>()
        }
        value => scalar(value).map(|text| vec![text]),
    }
}

fn scalar(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.clone().into_owned()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Ok(flag.to_string()),
        other => Err(format!("expected text, a number or true/false, found {}", other.type_str())),
    }
}

fn unknown(key: &str, known: &[&'static Setting]) -> String {
    let names = known.iter().map(|setting| setting.key());
    match closest(key, names) {
        Some(name) => format!("no such setting; did you mean '{name}'?"),
        None => "no such setting: 'vecmill serve --help' lists them all".to_owned(),
    }
}

/// The name most like `word`, if any is like it at all: by how many characters must be added, removed,
/// exchanged with the next or replaced.
pub(crate) fn closest(word: &str, names: impl Iterator<Item = String>) -> Option<String> {
    let (distance, name) = names.map(|name| (osa_distance(word, &name), name)).min()?;
    (distance <= 1 + word.chars().count() / 4).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_names_are_found_and_distant_ones_are_not() {
        let names = || ["port", "hostname", "model-id"].map(str::to_owned).into_iter();
        assert_eq!(closest("prot", names()).as_deref(), Some("port"));
        assert_eq!(closest("model_id", names()).as_deref(), Some("model-id"));
        assert_eq!(closest("host-name", names()).as_deref(), Some("hostname"));
        assert_eq!(closest("gpu-layers", names()), None);
    }
}
