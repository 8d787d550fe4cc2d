//! How much of a device's memory may be taken.

use crate::error::StartError;

/// The most that weights and batches may take on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryBudget {
    /// So many bytes on each device.
    Bytes(usize),
    /// So many parts in a hundred of each device's memory.
    Percent(u8),
}

impl From<usize> for MemoryBudget {
    fn from(bytes: usize) -> Self {
        Self::Bytes(bytes)
    }
}

impl MemoryBudget {
    /// In bytes, on a device with `total`, where that is known.
    pub(super) fn of(self, total: Option<usize>) -> Result<usize, StartError> {
        match (self, total) {
            (Self::Bytes(bytes), _) => Ok(bytes),
            (Self::Percent(percent), Some(total)) => Ok(total / 100 * usize::from(percent)),
            (Self::Percent(_), None) => Err(StartError::Setting {
                setting: "memory budget",
                reason:
                    "this system does not say how much memory there is: give a size such as 8GiB"
                        .into(),
            }),
        }
    }
}
