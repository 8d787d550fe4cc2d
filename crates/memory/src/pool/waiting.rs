//! Waiting for a lease to come back.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::sync::{AtomicU64, AtomicUsize, Condvar, Mutex, Ordering};

/// How long a waiter sleeps at most before it looks again: what other processes give back, nobody
/// announces.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Looked at by every return; locked by none, while nobody waits.
    waiters: AtomicUsize,
    /// Returns that happened while somebody waited.
    returns: AtomicU64,
    gate: Mutex<()>,
    returned: Condvar,
}

impl Waiting {
    /// Tells waiters that a lease came back.
    #[inline]
    pub(super) fn wake(&self) {
        if self.waiters.load(Ordering::SeqCst) > 0 {
            self.returns.fetch_add(1, Ordering::SeqCst);
            let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
            self.returned.notify_all();
        }
    }

    pub(super) fn is_waited_for(&self) -> bool {
        self.waiters.load(Ordering::SeqCst) > 0
    }

    /// Repeats `attempt` until it succeeds, fails with an error that waiting doesn't help, or
    /// `patience` has run out. Tells whether it waited.
    pub(super) fn until<T, E>(
        &self,
        patience: Duration,
        attempt: impl Fn() -> Result<T, E>,
        helps: impl Fn(&E) -> bool,
    ) -> (Result<T, E>, bool) {
        let mut result = attempt();
        if !result.as_ref().is_err_and(&helps) || patience.is_zero() {
            return (result, false);
        }
        let started = Instant::now();
        self.waiters.fetch_add(1, Ordering::SeqCst);
        loop {
            let seen = self.returns.load(Ordering::SeqCst);
            result = attempt();
            let left = patience.saturating_sub(started.elapsed());
            if !result.as_ref().is_err_and(&helps) || left.is_zero() {
                break;
            }
            let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
            // A return since the attempt is not slept through.
            if self.returns.load(Ordering::SeqCst) == seen {
                let _ = self.returned.wait_timeout(gate, left.min(LOOK_AGAIN));
            }
        }
        self.waiters.fetch_sub(1, Ordering::SeqCst);
        (result, true)
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicBool;

    use super::*;

    /// loom's condition variables never time out: a lost wake-up would be a deadlock, which it
    /// reports.
    #[test]
    fn no_return_is_slept_through() {
        loom::model(|| {
            let shared = Arc::new((Waiting::default(), AtomicBool::new(false)));
            let waiter = Arc::clone(&shared);
            let thread = loom::thread::spawn(move || {
                let (waiting, free) = &*waiter;
                // As a lease: taken by exchange.
                let attempt = || match free.swap(false, Ordering::AcqRel) {
                    true => Ok(()),
                    false => Err(()),
                };
                waiting.until(Duration::from_secs(3600), attempt, |()| true).0
            });
            let (waiting, free) = &*shared;
            // As a return: the slab first, by a swap, then the waiters.
            free.swap(true, Ordering::SeqCst);
            waiting.wake();
            assert_eq!(thread.join().unwrap(), Ok(()));
        });
    }
}
