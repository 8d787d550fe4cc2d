//! Time: the host's clock, and for each stream the moment at which its queue is empty.
//!
//! The choice behind it: nothing moves by itself. The host's clock moves when a test says so and
//! when a memory call takes time, so every run of a test sees the same times.

use std::ops::Range;

/// The host's clock and those of the streams, in nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Clock {
    now: u64,
    in_driver: u64,
    /// By stream: when all its work so far has finished.
    streams: Vec<u64>,
}

impl Clock {
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Nanoseconds spent in driver calls.
    pub(super) fn in_driver(&self) -> u64 {
        self.in_driver
    }

    pub(super) fn advance(&mut self, nanoseconds: u64) {
        self.now = self.now.saturating_add(nanoseconds);
    }

    /// Spends time in a call that takes or gives memory. Such calls hold a lock of the driver: they
    /// stop every thread of the host, so the one clock moves.
    pub(super) fn spend(&mut self, nanoseconds: u64) {
        self.advance(nanoseconds);
        self.spend_aside(nanoseconds);
    }

    /// Spends time in a call about an event. Threads make those side by side, and asking whether
    /// work has finished must not be what finishes it: the clock stays.
    pub(super) fn spend_aside(&mut self, nanoseconds: u64) {
        self.in_driver = self.in_driver.saturating_add(nanoseconds);
    }

    /// A new stream with nothing to do.
    pub(super) fn stream(&mut self) -> usize {
        self.streams.push(0);
        self.streams.len() - 1
    }

    /// When `stream` has done all that it was given; a moment before now when it has.
    pub(super) fn stream_time(&self, stream: usize) -> u64 {
        self.streams.get(stream).copied().unwrap_or(0)
    }

    /// Lets `stream` go on no earlier than at `time`.
    pub(super) fn hold(&mut self, stream: usize, time: u64) {
        if let Some(at) = self.streams.get_mut(stream) {
            *at = time.max(*at);
        }
    }

    /// Queues work on `stream` and says when it runs.
    pub(super) fn enqueue(&mut self, stream: usize, duration: u64) -> Range<u64> {
        let start = self.now.max(self.stream_time(stream));
        let end = start.saturating_add(duration);
        self.hold(stream, end);
        start..end
    }

    /// Has the host wait for all work of `stream`.
    pub(super) fn synchronize(&mut self, stream: usize) {
        self.now = self.now.max(self.stream_time(stream));
    }

    /// Drops all queued work.
    pub(super) fn empty_queues(&mut self) {
        for at in &mut self.streams {
            *at = self.now.min(*at);
        }
    }
}
