//! What happened in a pool, event by event: recorded while it runs, kept in files, replayed.
//!
//! - [`Trace`] is a list of [`Event`]s in order of time.
//! - `csv` reads and writes it as plain text that other programs can make as well.
//!
//! The choice behind it: an event says what was asked for and when it came back, not where the pool
//! put it. So the same trace runs through any way of managing memory, and they can be compared.

mod csv;

pub use csv::TraceError;

/// Events in order of time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// The events, earliest first.
    pub events: Vec<Event>,
    /// Events that were overwritten before they were read, where a ring buffer recorded them.
    pub lost: u64,
}

impl Trace {
    /// The time from the first event to the last.
    pub fn nanoseconds(&self) -> u64 {
        let first = self.events.first().map_or(0, |event| event.nanoseconds);
        let last = self.events.last().map_or(0, |event| event.nanoseconds);
        last.saturating_sub(first)
    }
}

/// One thing that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// When, counted from any fixed moment.
    pub nanoseconds: u64,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// Memory was leased.
    Lease {
        /// Names the lease until it is returned.
        id: u64,
        /// Whose work it is for: leases of one stream are used in order.
        stream: u32,
        /// Bytes asked for.
        bytes: usize,
    },
    /// A lease came back.
    Return {
        /// The lease.
        id: u64,
    },
    /// Memory was asked for and not given.
    Refuse {
        /// For whose work.
        stream: u32,
        /// Bytes asked for.
        bytes: usize,
    },
}
