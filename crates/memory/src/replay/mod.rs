//! A recorded trace run through several ways of managing memory, to see what each makes of it.
//!
//! - [`Manager`] is a way of managing memory: [`Pooled`] is vecmill's pool, [`Naive`] the pool that
//!   many services write, [`PerTensor`] none at all.
//! - [`compare`] runs a [`Trace`] through them and returns a [`Comparison`]: a [`Report`] each, a
//!   table for the terminal and a picture.
//!
//! The choice behind it: time is the trace's, not the clock's. A day is replayed in seconds and
//! gives the same figures each time, on a device that exists only as numbers; only the time that
//! the manager's own calls take is measured.
//!
//! ```
//! use vecmill_memory::HostSource;
//! use vecmill_memory::replay::{Naive, Options, PerTensor, compare};
//! use vecmill_memory::trace::Trace;
//!
//! let text = "nanoseconds,event,id,stream,bytes
//! 0,lease,1,0,3000000
//! 1000,return,1,,
//! 2000,lease,2,0,9000000
//! 3000,return,2,,
//! ";
//! let trace = Trace::read(text.as_bytes())?;
//! let (mut naive, mut direct) = (Naive::new(HostSource), PerTensor::new(HostSource));
//! let comparison = compare(&trace, &mut [&mut naive, &mut direct], &Options::default());
//! assert_eq!(comparison.reports[0].end_held_bytes, 14 << 20, "it kept the first buffer too");
//! assert_eq!(comparison.reports[1].end_held_bytes, 0);
//! println!("{}", comparison.table());
//! # Ok::<(), vecmill_memory::trace::TraceError>(())
//! ```

mod addresses;
mod direct;
pub mod draw;
mod histogram;
mod manager;
mod naive;
mod pooled;
mod report;
mod run;
mod series;
mod table;
mod units;
mod watched;

use std::time::Duration;

use crate::trace::{Trace, What};

pub use addresses::{AddressMap, Piece};
pub use direct::PerTensor;
pub use manager::{Manager, Placed, Refused, Usage};
pub use naive::Naive;
pub use pooled::{Pooled, WatchedPool};
pub use report::Report;
pub use run::replay;
pub use series::{Sample, Series};

/// How a trace is replayed and drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Trace time between two calls of [`Manager::tick`] (default: 100 ms).
    pub tick: Duration,
    /// The budget to draw as a line. It limits nothing: managers have limits of their own.
    pub budget: Option<usize>,
    /// Most moments that the curves of the picture keep (default: 2,000).
    pub points: usize,
    /// Most leases in the map of addresses: of a longer trace it shows those around the moment when
    /// most was asked for (default: 600).
    pub map_leases: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { tick: Duration::from_millis(100), budget: None, points: 2000, map_leases: 600 }
    }
}

/// What several managers made of one trace.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// A report for each manager, in the order in which they were given.
    pub reports: Vec<Report>,
    /// The trace's length in nanoseconds.
    pub nanoseconds: u64,
    /// The streams that leases are for, in ascending order.
    pub streams: Vec<u32>,
    /// The budget to draw.
    pub budget: Option<usize>,
}

impl Comparison {
    /// The reports side by side as text, a line for each figure and a column for each manager.
    pub fn table(&self) -> String {
        table::of(&self.reports)
    }

    /// The reports as one SVG picture: what was held over time, and where each lease lay.
    pub fn svg(&self) -> String {
        draw::comparison(self)
    }
}

/// Runs `trace` through each of the managers.
pub fn compare(trace: &Trace, managers: &mut [&mut dyn Manager], options: &Options) -> Comparison {
    let reports = managers.iter_mut().map(|manager| replay(trace, &mut **manager, options));
    let reports = reports.collect();
    let mut streams: Vec<u32> = Vec::new();
    for event in &trace.events {
        if let What::Lease { stream, .. } = event.what
            && let Err(place) = streams.binary_search(&stream)
        {
            streams.insert(place, stream);
        }
    }
    Comparison { reports, nanoseconds: trace.nanoseconds(), streams, budget: options.budget }
}
