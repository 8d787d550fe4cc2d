//! What there is of NVIDIA's libraries, for people. Apart from how they are opened, because it asks those
//! who open them.

use super::{Found, Missing, NvidiaLibrary, loaded};
use crate::driver;
use crate::error::Unavailable;

/// The libraries that vecmill needs beside the driver, each with where it is or why there is none.
/// Opens them.
///
/// ```
/// for (library, found) in vecmill_backend_cuda::libraries() {
///     match found {
///         Ok(found) => println!("{}: {}", library.name(), found.file.display()),
///         Err(missing) => println!("{missing}"),
///     }
/// }
/// ```
pub fn libraries() -> [(NvidiaLibrary, Result<Found, Missing>); 2] {
    [
        (NvidiaLibrary::Nvrtc, driver::nvrtc::found().map(located)),
        (NvidiaLibrary::CublasLt, driver::cublaslt::found().map(located)),
    ]
}

/// The driver's library.
///
/// # Errors
/// [`Unavailable`] when there is none that works.
pub fn driver_library() -> Result<Found, Unavailable> {
    let version = driver::version()?;
    let usual = driver::library_names().into_iter().next().unwrap_or_default();
    Ok(located(Found { file: usual.into(), version }))
}

/// With its path in place of the name that the loader was given.
fn located(found: Found) -> Found {
    let file = loaded::loaded_as(&found.file).unwrap_or(found.file);
    Found { file, ..found }
}
