//! Opens the cuBLASLt library.

use std::sync::OnceLock;

const NAMES: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];

/// The library of CUDA 13 or 12, whichever the loader finds first; it is never unloaded.
pub(super) fn open() -> Result<&'static libloading::Library, String> {
    static LIBRARY: OnceLock<libloading::Library> = OnceLock::new();
    if let Some(library) = LIBRARY.get() {
        return Ok(library);
    }
    let found = NAMES.iter().find_map(|name| {
        // SAFETY: loading a library runs its initialisers. The names are NVIDIA's, and whoever can
        // place another file under them in the loader's path can run code in any program here.
        unsafe { libloading::Library::new(*name) }.ok()
    });
    let library = found.ok_or_else(|| format!("looked for {}", NAMES.join(", ")))?;
    Ok(LIBRARY.get_or_init(|| library))
}
