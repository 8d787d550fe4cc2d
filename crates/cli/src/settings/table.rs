//! What a setting is, and the macro that defines a group of them.
//!
//! A setting is written once, as a field: its name makes the flag (`--max-batch-tokens`), the
//! variable (`VECMILL_MAX_BATCH_TOKENS`) and the key in the file (`max-batch-tokens`), its
//! documentation is the help text, and its type says what is accepted and how it is read.

use crate::settings::given::Given;
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

/// Settings that belong together in the help text and in the program.
pub(crate) trait Group: Sized {
    /// Their heading in the help text.
    const HEADING: &'static str;
    /// Their definitions.
    const SETTINGS: &'static [Setting];

    /// Reads them all, noting in `given` what can't be used; `None` if anything can't.
    fn resolve(given: &mut Given) -> Option<Self>;
}

/// Defines a [`Group`] as a struct with one field per setting.
///
/// `= "text"` is the default, read like a value from any other source. `where alias = "name"` gives
/// flag and key a second name, `where variable = "NAME"` adds a variable.
macro_rules! settings {
    (
        $(#[$about:meta])*
        $group:ident ($heading:literal) {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $type:ty $(= $default:literal)? $(where $also:ident = $name:literal)*
            ),+ $(,)?
        }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone)]
        pub(crate) struct $group {
            $($(#[doc = $doc])+ pub(crate) $field: $type,)+
        }

        impl $crate::settings::table::Group for $group {
            const HEADING: &'static str = $heading;
            const SETTINGS: &'static [$crate::settings::table::Setting] = &[
                $($crate::settings::table::Setting {
                    field: stringify!($field),
                    doc: &[$($doc),+],
                    $(default: Some($default),)?
                    $($also: Some($name),)*
                    ..$crate::settings::table::Setting::of::<$type>()
                },)+
            ];

            fn resolve(given: &mut $crate::settings::given::Given) -> Option<Self> {
                let mut settings = Self::SETTINGS.iter();
                $(let $field = settings.next().and_then(|setting| given.take::<$type>(setting));)+
                Some(Self { $($field: $field?,)+ })
            }
        }
    };
}
pub(crate) use settings;
