//! The types of settings about memory.

use std::path::PathBuf;

use vecmill_engine::MemoryBudget;

use crate::settings::kind::Bytes;
use crate::settings::value::Value;

/// The most memory to use on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget(pub(crate) MemoryBudget);

impl Value for Budget {
    const PLACEHOLDER: &'static str = "SIZE";
    const EXPECTED: &'static str = "a size such as 8GiB or 512MiB, a number of bytes, or a part \
        from 1% to 100% of the device's memory";

    fn parse(text: &str) -> Option<Self> {
        let Some(number) = text.strip_suffix('%') else {
            return Bytes::parse(text).map(|bytes| Self(MemoryBudget::Bytes(bytes.0)));
        };
        let percent: u8 = number.trim_end().parse().ok()?;
        (1..=100).contains(&percent).then_some(Self(MemoryBudget::Percent(percent)))
    }
}

/// A folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Folder(pub(crate) PathBuf);

impl Value for Folder {
    const PLACEHOLDER: &'static str = "FOLDER";
    const EXPECTED: &'static str = "a folder that exists";

    fn parse(text: &str) -> Option<Self> {
        let folder = PathBuf::from(text);
        folder.is_dir().then_some(Self(folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_size_or_a_part() {
        let budget = |text| Budget::parse(text).map(|budget| budget.0);
        assert_eq!(budget("2GiB"), Some(MemoryBudget::Bytes(2 << 30)));
        assert_eq!(budget("3000000000"), Some(MemoryBudget::Bytes(3_000_000_000)));
        assert_eq!(budget("75 %"), Some(MemoryBudget::Percent(75)));
        for wrong in ["0%", "101%", "300%", "%", "half", "-1%", "8GB", "8G", "0.5"] {
            assert_eq!(budget(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn folders_exist() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Folder::parse(folder.path().to_str().unwrap()).is_some());
        let file = tempfile::NamedTempFile::new().unwrap();
        for wrong in ["", "/no/such/folder", file.path().to_str().unwrap()] {
            assert_eq!(Folder::parse(wrong), None, "{wrong}");
        }
    }
}
