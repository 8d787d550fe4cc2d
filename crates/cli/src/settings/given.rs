//! What flags, environment and file give, merged: the flag counts first, then the variable, then
//! the file, then the default.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use vecmill_server::Invisible;

use crate::settings::file::{self, closest};
use crate::settings::problem::{Problem, Problems};
use crate::settings::setting::{PREFIX, Setting};
use crate::settings::source::{Entry, Source};
use crate::settings::value::Value;

/// The environment, by name.
pub(crate) type Environment = BTreeMap<String, OsString>;

/// The flags given, by the field of their setting.
pub(crate) type FlagTexts = BTreeMap<&'static str, Vec<String>>;

/// What all sources give, and what is wrong with it.
#[derive(Debug, Default)]
pub(crate) struct Given {
    entries: BTreeMap<&'static str, Entry>,
    problems: Vec<Problem>,
}

impl Given {
    /// Collects what `flags`, `environment` and `file` say about the `known` settings.
    pub(crate) fn collect(
        known: &[&'static Setting],
        flags: FlagTexts,
        environment: &Environment,
        file: Option<(Source, PathBuf)>,
    ) -> Self {
        let mut given = Self::default();
        if let Some((origin, path)) = file {
            let (entries, problems) = file::read(&path, &origin, known);
            given.problems = problems;
            for (setting, entry) in entries {
                if let Some(earlier) = given.entries.insert(setting.field, entry) {
                    let message = format!("also given as '{}': keep one", setting.key());
                    given.problem_at(&earlier.source, message);
                }
            }
        }
        for setting in known {
            if let Some(entry) = given.entry_of_variable(setting, environment) {
                given.entries.insert(setting.field, entry);
            }
        }
        for (field, texts) in flags {
            let source = Source::Flag(field.replace('_', "-"));
            given.entries.insert(field, Entry { source, texts });
        }
        given
    }

    fn entry_of_variable(&mut self, setting: &Setting, environment: &Environment) -> Option<Entry> {
        let (name, value) = setting.variables().find_map(|name| {
            let value = environment.get(&name).filter(|value| is_meant(&name, value))?;
            Some((name, value))
        })?;
        let source = Source::Variable(name);
        let Some(text) = value.to_str() else {
            self.problem_at(&source, "expected UTF-8".to_owned());
            return None;
        };
        let texts = if setting.many {
            text.split(',').map(|part| part.trim().to_owned()).collect()
        } else {
            vec![text.to_owned()]
        };
        Some(Entry { source, texts })
    }

    /// The value of `setting`, read as a `T`; `None` if it can't be, which is noted.
    pub(crate) fn take<T: Value>(&mut self, setting: &Setting) -> Option<T> {
        let default = || {
            let texts = vec![setting.default?.to_owned()];
            Some(Entry { source: Source::Default(setting.key()), texts })
        };
        let Some(entry) = self.entries.get(setting.field).cloned().or_else(default) else {
            return T::absent().or_else(|| {
                let message = format!("missing: expected {}", T::EXPECTED);
                let place = format!("--{}", setting.key());
                self.problems.push(Problem { place, value: None, message });
                None
            });
        };
        let mut all = Some(T::absent());
        for text in entry.texts {
            let value = T::parse(&text);
            if value.is_none() {
                let invisible = Invisible::first_in(&text);
                let found = invisible.map(|it| format!(", found {it}")).unwrap_or_default();
                self.problems.push(Problem {
                    place: entry.source.to_string(),
                    value: (!setting.secret).then_some(text),
                    message: format!("expected {}{found}", T::EXPECTED),
                });
            }
            all = all.zip(value).map(|(all, value)| match all {
                Some(all) => Some(all.and(value)),
                None => Some(value),
            });
        }
        all.flatten()
    }

    /// Of two settings that exclude each other keeps the one from the stronger source.
    pub(crate) fn keep_stronger<A, B>(
        &mut self,
        (one, first): (&str, &mut Option<A>),
        (other, second): (&str, &mut Option<B>),
    ) {
        if first.is_none() || second.is_none() {
            return;
        }
        let rank = |field| self.source(field).map(Source::rank);
        match rank(one).cmp(&rank(other)) {
            Ordering::Less => *second = None,
            Ordering::Greater => *first = None,
            Ordering::Equal => {
                let message = format!("excludes {}: keep one of them", one.replace('_', "-"));
                self.problem(other, message);
            }
        }
    }

    fn source(&self, field: &str) -> Option<&Source> {
        self.entries.get(field).map(|entry| &entry.source)
    }

    /// Notes what is wrong with the value of `field`, seen only beside other values.
    pub(crate) fn problem(&mut self, field: &str, message: String) {
        let key = || Source::Default(field.replace('_', "-"));
        let source = self.source(field).cloned().unwrap_or_else(key);
        self.problem_at(&source, message);
    }

    fn problem_at(&mut self, source: &Source, message: String) {
        self.problems.push(Problem { place: source.to_string(), value: None, message });
    }

    /// `settings`, unless something was wrong.
    pub(crate) fn finish<S>(self, settings: Option<S>) -> Result<S, Problems> {
        match settings {
            Some(settings) if self.problems.is_empty() => Ok(settings),
            _ => Err(Problems(self.problems)),
        }
    }
}

/// Whether a variable is meant as a setting. An empty one is as good as unset; and Kubernetes sets
/// `VECMILL_PORT=tcp://…` in every container beside a Service named `vecmill`.
fn is_meant(name: &str, value: &OsString) -> bool {
    let from_kubernetes = name == "VECMILL_PORT" && value.to_string_lossy().starts_with("tcp://");
    !value.is_empty() && !from_kubernetes
}

/// A warning for each variable that looks like a setting's with a slip in its name.
pub(crate) fn suspects(known: &[&'static Setting], environment: &Environment) -> Vec<String> {
    let names = || {
        let own = known.iter().flat_map(|setting| setting.variables());
        own.filter_map(|name| name.strip_prefix(PREFIX).map(str::to_owned)).chain(["CONFIG".into()])
    };
    let given = environment.keys().filter_map(|name| name.strip_prefix(PREFIX));
    let unknown = given.filter(|name| names().all(|known| known != *name));
    let warning = |name: &str| {
        let close = closest(name, names())?;
        Some(format!("the variable {PREFIX}{name} is no setting; did you mean {PREFIX}{close}?"))
    };
    unknown.filter_map(warning).collect()
}
