//! Loads a shared library.

use std::path::Path;

/// Loads the library of that path, or of that name where the loader looks. It is never unloaded.
/// The error is what the loader said.
pub(crate) fn load_library(file: &Path) -> Result<&'static libloading::Library, String> {
    // SAFETY: loading a library runs its initialisers. The names are NVIDIA's, and whoever can
    // place another file under them, in the loader's path or in a folder that this user's
    // environment names, can run code in this user's programs anyway.
    let library = unsafe { libloading::Library::new(file) }.map_err(|error| error.to_string())?;
    Ok(Box::leak(Box::new(library)))
}
