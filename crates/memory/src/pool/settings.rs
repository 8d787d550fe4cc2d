//! What a pool goes by.

use std::time::Duration;

/// Settings of a pool.
///
/// ```
/// use std::time::Duration;
/// use vecmill_memory::{GiveBack, PoolSettings};
///
/// let settings = PoolSettings {
///     give_back: GiveBack::After(Duration::from_secs(5)),
///     ..PoolSettings::default()
/// };
/// assert!(settings.predict);
/// ```
#[derive(Debug, Clone)]
pub struct PoolSettings {
    /// When slabs that nobody needs go back to the source (default: after 60 seconds).
    pub give_back: GiveBack,
    /// Whether slabs are made ready ahead of demand (default: yes).
    pub predict: bool,
    /// Leases that each slab's ring remembers for recordings (default: 4,096).
    pub recorded_leases: usize,
}

/// When unused memory is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveBack {
    /// When it has not been needed for so long.
    After(Duration),
    /// Only when [`Pool::trim`](crate::Pool::trim) is called or the source runs dry.
    Never,
}

impl GiveBack {
    /// The period over which demand is remembered.
    pub(super) fn period(self) -> Duration {
        match self {
            Self::After(period) => period,
            Self::Never => Duration::from_secs(60),
        }
    }
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            give_back: GiveBack::After(Duration::from_secs(60)),
            predict: true,
            recorded_leases: 4096,
        }
    }
}
