//! Why the server itself could not start. What goes wrong with a single request is answered over
//! HTTP and never ends up here.

use std::io;

/// Why the server could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A setting makes no sense.
    #[error("{setting}: {reason}")]
    Setting {
        /// The field of [`Settings`](crate::Settings).
        setting: &'static str,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// The address could not be bound.
    #[error("{address} can't be listened on: {source}")]
    Bind {
        /// The address asked for.
        address: String,
        /// The system's words.
        source: io::Error,
    },
    /// The bound socket could not be handed to the async runtime.
    #[error("the listening socket failed: {0}")]
    Listen(#[from] io::Error),
}
