//! Opening NVIDIA's libraries beside the driver.

use std::path::Path;
use std::sync::OnceLock;

use libloading::Library;

use crate::libraries::{Missing, NvidiaLibrary, children, folders};

/// The library, which is never unloaded. Nothing is remembered of a failure.
pub(super) fn open(which: NvidiaLibrary) -> Result<&'static Library, Missing> {
    static NVRTC: OnceLock<Library> = OnceLock::new();
    static CUBLASLT: OnceLock<Library> = OnceLock::new();
    let place = match which {
        NvidiaLibrary::Nvrtc => &NVRTC,
        NvidiaLibrary::CublasLt => &CUBLASLT,
    };
    if let Some(library) = place.get() {
        return Ok(library);
    }
    let library = find(which)?;
    Ok(place.get_or_init(|| library))
}

fn find(which: NvidiaLibrary) -> Result<Library, Missing> {
    let loaders = which.file_names().iter().find_map(|name| load(Path::new(name)).ok());
    if let Some(library) = loaders {
        return Ok(library);
    }
    let (folders, mut failures) = (folders(), Vec::new());
    for folder in &folders {
        for file in which.file_names().iter().map(|name| folder.join(name)) {
            if !file.is_file() {
                continue;
            }
            for part in which.needs().iter().flat_map(|begin| children(folder, begin)) {
                if let Ok(part) = load(&part) {
                    std::mem::forget(part); // stays open, for the library to find by its name
                }
            }
            match load(&file) {
                Ok(library) => return Ok(library),
                Err(error) => failures.push(error.to_string()),
            }
        }
    }
    Err(which.missing(folders.len(), &failures))
}

fn load(file: &Path) -> Result<Library, libloading::Error> {
    // SAFETY: loading a library runs its initialisers. The names are NVIDIA's, in the loader's path
    // and in folders that the user or the system's administrator chose: whoever can place another
    // file there can run code in any program that looks there, as with every plug-in.
    unsafe { Library::new(file) }
}
