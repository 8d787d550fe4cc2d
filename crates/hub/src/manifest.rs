//! What a cached model's files were when they were checked.
//!
//! Sizes and times are compared at each start, which costs next to nothing; a file whose time is
//! another is hashed. So what was cut short or altered since is found, and a copy of the cache, whose
//! files are younger, is read through once.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::digest::sha256;
use super::files::ModelFiles;
use vecmill_model::disk;

/// The name of the manifest, in the model's folder.
const NAME: &str = ".vecmill-files.json";
const LIMIT: u64 = 1 << 20;

/// A model's files.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    files: BTreeMap<String, Facts>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    size: u64,
    /// Nanoseconds since 1970.
    modified: u64,
    sha256: String,
}

impl Manifest {
    /// Of these files, which have been checked.
    pub(super) fn of(folder: &Path, files: &ModelFiles) -> io::Result<Self> {
        let mut manifest = Self::default();
        for file in files.all() {
            let (size, modified) = stamp(&folder.join(file))?;
            let facts = Facts { size, modified, sha256: sha256(&folder.join(file))? };
            manifest.files.insert(file.clone(), facts);
        }
        Ok(manifest)
    }

    /// That of the model in `folder`; `None` where there is none of use.
    pub(super) fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&disk::read_regular(&folder.join(NAME), LIMIT).ok()?).ok()
    }

    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        let mut file = disk::temporary(folder, ".vecmill-")?;
        serde_json::to_writer(&mut file, self)?;
        file.persist(folder.join(NAME))?;
        Ok(())
    }

    /// What is wrong with a file of the model in `folder`, if anything is. Files with new times and
    /// old contents are noted.
    pub(super) fn check(&mut self, folder: &Path) -> Result<(), String> {
        let mut news = false;
        for (name, facts) in &mut self.files {
            let path = folder.join(name);
            let unreadable = |error: io::Error| format!("{name} can't be read: {error}");
            let (size, modified) = stamp(&path).map_err(unreadable)?;
            if size != facts.size {
                return Err(format!("{name} has {size} bytes, but had {}", facts.size));
            }
            if modified == facts.modified {
                continue;
            }
            if sha256(&path).map_err(unreadable)? != facts.sha256 {
                return Err(format!("{name} was altered"));
            }
            facts.modified = modified;
            news = true;
        }
        if news {
            // In a folder that can't be written to, they are hashed at each start.
            let _ = self.write(folder);
        }
        Ok(())
    }
}

/// The size of a regular file, and when it was written.
fn stamp(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = path.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((metadata.len(), u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)))
}
