//! Where a library that the loader found by its name is.

use std::path::{Path, PathBuf};

/// The file that was loaded under `name`, where the system tells.
pub(super) fn loaded_as(name: &Path) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    mapped_as(&maps, name.to_str()?)
}

/// The mapped file of that name, whichever version is behind it: the loader was given a link's name.
fn mapped_as(maps: &str, name: &str) -> Option<PathBuf> {
    let (library, _version) = name.split_once(".so")?;
    let file = format!("/{library}.so");
    // Address, rights, offset, device and number stand before the path.
    let mut paths = maps.lines().filter_map(|line| line.find('/').and_then(|at| line.get(at..)));
    paths.find(|path| path.contains(&file)).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_the_names_of_their_links() {
        let maps = "7f00-7f01 r--p 00000000 08:01 12   /usr/lib/libcudart.so.13\n\
                    7f01-7f02 rw-p 00000000 00:00 0 \n\
                    7f02-7f03 r-xp 00001000 08:01 13   /usr/lib/a folder/libcuda.so.580.65.06\n";
        let found = |name| mapped_as(maps, name);
        let driver = Some("/usr/lib/a folder/libcuda.so.580.65.06".into());
        assert_eq!((found("libcuda.so.1"), found("libcuda.so")), (driver.clone(), driver));
        assert_eq!(found("libcudart.so.12"), Some("/usr/lib/libcudart.so.13".into()));
        assert_eq!((found("libnvrtc.so.13"), found("nvcuda.dll")), (None, None));
    }
}
