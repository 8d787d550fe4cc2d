//! What a setting is.
//!
//! A setting is written once, as a field: its name makes the flag (`--max-batch-tokens`), the
//! variable (`VECMILL_MAX_BATCH_TOKENS`) and the key in the file (`max-batch-tokens`), its
//! documentation is the help text, and its type says what is accepted and how it is read.

use crate::settings::value::Value;

/// What the variables of settings begin with.
pub(crate) const PREFIX: &str = "VECMILL_";

/// The definition of one setting, the same for flags, environment and file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    /// The name with underscores.
    pub(crate) field: &'static str,
    /// The help text: lines of which an empty one ends the summary.
    pub(crate) doc: &'static [&'static str],
    /// The value when no source gives one.
    pub(crate) default: Option<&'static str>,
    /// A second name for flag and key.
    pub(crate) alias: Option<&'static str>,
    /// A second variable, looked at after the first.
    pub(crate) variable: Option<&'static str>,
    /// What help texts show in the value's place.
    pub(crate) placeholder: &'static str,
    /// Whether it may be given more than once.
    pub(crate) many: bool,
    /// What the flag means without a value, if it may stand without one.
    pub(crate) implied: Option<&'static str>,
    /// Whether its value must not be shown.
    pub(crate) secret: bool,
}

impl Setting {
    /// What the type of a setting determines.
    pub(crate) const fn of<T: Value>() -> Self {
        Self {
            field: "",
            doc: &[],
            default: None,
            alias: None,
            variable: None,
            placeholder: T::PLACEHOLDER,
            many: T::MANY,
            implied: T::IMPLIED,
            secret: T::SECRET,
        }
    }

    /// The name of flag and key.
    pub(crate) fn key(&self) -> String {
        self.field.replace('_', "-")
    }

    /// The names of its variables, the first one first.
    pub(crate) fn variables(&self) -> impl Iterator<Item = String> {
        let own = format!("{PREFIX}{}", self.field.to_ascii_uppercase());
        std::iter::once(own).chain(self.variable.map(str::to_owned))
    }

    /// Whether `key` names it in a file.
    pub(crate) fn is_called(&self, key: &str) -> bool {
        self.key() == key || self.alias == Some(key)
    }
}
