//! `vecmill-bench replay`: a recording run through several ways of managing memory, to see what each
//! makes of it.
//!
//! - [`Manager`] is a way of managing memory: [`Pooled`] is vecmill's pool, [`Naive`] the pool that
//!   many services write, [`PerTensor`] none at all.
//! - [`compare`] runs a [`Recording`] through them and returns a [`Comparison`]: a [`Report`] each, a
//!   table for the terminal and a picture.
//!
//! The choice behind it: time is the recording's, not the clock's. A day is replayed in seconds and
//! gives the same figures each time, on a device that exists only as numbers; only the time that
//! the manager's own calls take is measured.

mod addresses;
mod command;
mod day;
mod direct;
mod draw;
mod driver;
mod json;
mod manager;
mod naive;
mod pooled;
mod report;
mod run;
mod series;
mod table;
mod watched;

use std::time::Duration;

use indicatif::ProgressBar;
use vecmill_memory::recording::{Recording, What};

pub(crate) use command::{ReplayArguments, run};
use direct::PerTensor;
use manager::{Manager, Placed, Refused, Usage};
use naive::Naive;
use pooled::{Pooled, WatchedPool};
use report::Report;
use run::replay;

/// How a recording is replayed and drawn.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Recording time between two calls of [`Manager::tick`] (default: 100 ms).
    pub(crate) tick: Duration,
    /// The budget to draw as a line. It limits nothing: managers have limits of their own.
    pub(crate) budget: Option<usize>,
    /// Most moments that the curves of the picture keep (default: 2,000).
    pub(crate) points: usize,
    /// Most leases in the map of addresses: of a longer recording it shows those around the moment when
    /// most was asked for (default: 600).
    pub(crate) map_leases: usize,
    /// Is moved by each event (default: hidden).
    pub(crate) progress: ProgressBar,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(100),
            budget: None,
            points: 2000,
            map_leases: 600,
            progress: ProgressBar::hidden(),
        }
    }
}

/// What several managers made of one recording.
#[derive(Debug, Clone)]
pub(crate) struct Comparison {
    /// A report for each manager, in the order in which they were given.
    pub(crate) reports: Vec<Report>,
    /// The recording's length in nanoseconds.
    pub(crate) nanoseconds: u64,
    /// The streams that leases are for, in ascending order.
    pub(crate) streams: Vec<u32>,
    /// The budget to draw.
    pub(crate) budget: Option<usize>,
}

impl Comparison {
    /// The reports side by side as text, a line for each figure and a column for each manager.
    pub(crate) fn table(&self) -> String {
        table::of(&self.reports)
    }

    /// The reports as one SVG picture: what was held over time, and where each lease lay.
    pub(crate) fn svg(&self) -> String {
        draw::comparison(self)
    }
}

/// Runs `recording` through each of the managers.
pub(crate) fn compare(
    recording: &Recording,
    managers: &mut [&mut dyn Manager],
    options: &Options,
) -> Comparison {
    let reports = managers.iter_mut().map(|manager| replay(recording, &mut **manager, options));
    let reports = reports.collect();
    let mut streams: Vec<u32> = Vec::new();
    for event in &recording.events {
        if let What::Lease { stream, .. } = event.what
            && let Err(place) = streams.binary_search(&stream)
        {
            streams.insert(place, stream);
        }
    }
    Comparison { reports, nanoseconds: recording.nanoseconds(), streams, budget: options.budget }
}

#[cfg(test)]
mod tests;
