//! How slowly a client may send or take bytes.

use std::time::Duration;

/// The least rate at which a client must send a body or take a reply, in bytes per second.
pub(crate) const LEAST_RATE: u64 = 64 << 10;

/// Patience at the start, and then time for what comes at the least rate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) patience: Duration,
}

impl Pace {
    /// How long a client that has sent or taken `bytes` may have kept the server waiting.
    pub(crate) fn allowed(self, bytes: u64) -> Duration {
        let milliseconds = bytes.saturating_mul(1000) / LEAST_RATE;
        self.patience.saturating_add(Duration::from_millis(milliseconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_grows_with_what_has_come() {
        let pace = Pace { patience: Duration::from_secs(30) };
        assert_eq!(pace.allowed(0), Duration::from_secs(30));
        assert_eq!(pace.allowed(LEAST_RATE / 2), Duration::from_millis(30_500));
        assert!(pace.allowed(u64::MAX) > Duration::from_secs(u64::MAX / 1000 / LEAST_RATE));
    }
}
