//! Tables of functions that are looked up in a library when the program runs.

/// Declares a table of functions, `field = "symbol"(arguments) -> result`; a function without a
/// result named returns a `u32`, which is how status codes are read. A missing function is an
/// answer; a missing one under `optional` is `None`.
///
/// Whoever writes a table vouches that the library's header declares the symbols so. C `enum`s that
/// come back are `u32`: a value that a newer library invents is then a number like others.
macro_rules! function_table {
    (@result) => { u32 };
    (@result $result:ty) => { $result };
    (
        $(#[$attribute:meta])*
        $table:ident {
            $($field:ident = $symbol:literal($($argument:ty),* $(,)?) $(-> $result:ty)?;)*
        }
        $(optional {
            $($newer:ident = $newer_symbol:literal($($newer_argument:ty),* $(,)?);)*
        })?
    ) => {
        $(#[$attribute])*
        #[derive(Debug)]
        pub(super) struct $table {
            $(pub(super) $field:
                unsafe extern "system" fn($($argument),*) -> function_table!(@result $($result)?),)*
            $($(pub(super) $newer:
                Option<unsafe extern "system" fn($($newer_argument),*) -> u32>,)*)?
        }

        impl $table {
            /// Looks all functions up; the error is the name of one that is missing.
            pub(super) fn find(library: &'static libloading::Library) -> Result<Self, &'static str> {
                Ok(Self {
                    $($field: {
                        type Function = unsafe extern "system" fn($($argument),*)
                            -> function_table!(@result $($result)?);
                        // SAFETY: the library's header declares this symbol as a function of these
                        // parameters, and a status has the size of a `u32`. The library is never
                        // unloaded, so the pointer stays good.
                        let symbol = unsafe { library.get::<Function>($symbol.as_bytes()) };
                        *symbol.map_err(|_| $symbol)?
                    },)*
                    $($($newer: {
                        type Function = unsafe extern "system" fn($($newer_argument),*) -> u32;
                        // SAFETY: as above.
                        let symbol = unsafe { library.get::<Function>($newer_symbol.as_bytes()) };
                        symbol.ok().map(|symbol| *symbol)
                    },)*)?
                })
            }
        }
    };
}

pub(super) use function_table;
