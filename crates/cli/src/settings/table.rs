//! Groups of settings, and the macro that defines one: a struct with a field for each.

use crate::settings::given::Given;
use crate::settings::setting::Setting;

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
            const SETTINGS: &'static [$crate::settings::setting::Setting] = &[
                $($crate::settings::setting::Setting {
                    field: stringify!($field),
                    doc: &[$($doc),+],
                    $(default: Some($default),)?
                    $($also: Some($name),)*
                    ..$crate::settings::setting::Setting::of::<$type>()
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
