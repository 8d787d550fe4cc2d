//! The hashes by which the hub names files: SHA-256 for large ones, git's or plain SHA-1 for others.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::Sha256;

/// A file's hash, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Digest {
    Sha256(String),
    /// Of 40 digits: git's of a blob from the hub, SHA-1 of the contents from some mirrors.
    Short(String),
}

impl Digest {
    /// The hash that `text` is, going by its length.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match text.len() {
            64 if digits => Some(Self::Sha256(text.to_ascii_lowercase())),
            40 if digits => Some(Self::Short(text.to_ascii_lowercase())),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> &str {
        let (Self::Sha256(text) | Self::Short(text)) = self;
        text
    }

    /// The file's hash instead, if this is not it.
    pub(super) fn differs(&self, path: &Path) -> io::Result<Option<String>> {
        match self {
            Self::Sha256(expected) => Ok(Some(sha256(path)?).filter(|found| found != expected)),
            Self::Short(expected) => {
                let git = format!("blob {}\0", path.metadata()?.len());
                let git = hash::<Sha1>(path, git.as_bytes())?;
                let known = git == *expected || hash::<Sha1>(path, b"")? == *expected;
                Ok((!known).then_some(git))
            }
        }
    }
}

/// The file's SHA-256 in hexadecimal.
pub(super) fn sha256(path: &Path) -> io::Result<String> {
    hash::<Sha256>(path, b"")
}

fn hash<H: sha2::Digest>(path: &Path, before: &[u8]) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = H::new();
    hash.update(before);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hash.update(buffer.get(..read).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_git_and_sha256sum() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "hello\n").unwrap();
        for known in [
            "ce013625030ba8dba906f756967f9e9ca394464a", // git hash-object
            "f572d396fae9206628714fb2ce00f72e94f2258f", // sha1sum
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03", // sha256sum
        ] {
            assert_eq!(Digest::parse(known).unwrap().differs(file.path()).unwrap(), None);
            let other = known.replace('f', "0");
            let found = Digest::parse(&other).unwrap().differs(file.path()).unwrap();
            assert!(found.is_some_and(|found| found != other));
        }
        assert_eq!(Digest::parse("W/\"1\""), None);
    }
}
