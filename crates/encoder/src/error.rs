//! What a device says when it fails.

/// A device's operation failed. Never the caller's fault: operands are checked before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation} failed: {reason}")]
pub struct BackendError {
    /// The operation's name.
    pub operation: &'static str,
    /// What the device said.
    pub reason: String,
}
