//! Why a lease was not given, and what to do about it.

use crate::source::{Cause, SourceError};

/// Why a pool gave no memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// It can never fit.
    #[error(
        "{needed} bytes are needed, but the budget leaves {available}: send less at once or raise the budget"
    )]
    TooLarge {
        /// Bytes that the lease would take.
        needed: usize,
        /// Bytes that the budget leaves beside reservations.
        available: usize,
    },
    /// It fits once other leases are returned.
    #[error(
        "{needed} bytes are needed, but {leased} of the {available} available are leased: try again when a batch has finished"
    )]
    Busy {
        /// Bytes that the lease would take.
        needed: usize,
        /// Bytes that other batches hold at the moment.
        leased: usize,
        /// Bytes that the budget leaves beside reservations.
        available: usize,
    },
    /// The budget allows it, but the device has no memory left: somebody else is using it.
    #[error("{needed} bytes are needed, but the device has too little left: {source}")]
    Pressure {
        /// Bytes that the lease would take.
        needed: usize,
        /// Bytes that other batches hold at the moment.
        leased: usize,
        /// What the source said.
        source: SourceError,
    },
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// What to do about a [`LeaseError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Wait until another lease is returned, then try again.
    Wait,
    /// Split the batch; what can't be split must be rejected.
    Split,
    /// Reject it: neither helps.
    Reject,
}

impl LeaseError {
    /// What to do about it.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::TooLarge { .. } => Remedy::Split,
            Self::Busy { .. } => Remedy::Wait,
            Self::Pressure { leased, .. } if *leased > 0 => Remedy::Wait,
            Self::Pressure { .. } => Remedy::Split,
            Self::Source(error) if error.cause == Cause::Exhausted => Remedy::Split,
            Self::Source(_) => Remedy::Reject,
        }
    }
}
