//! The figures that arms are compared by.

use super::figures::Figures;

/// A figure of a pass.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// What reports call it.
    pub name: &'static str,
    /// What it is counted in.
    pub unit: &'static str,
    /// Whether the arm with the higher figure is the better one.
    pub more_is_better: bool,
    /// How it is read from a pass.
    pub of: fn(&Figures) -> f64,
}

/// Tokens that were answered in time.
pub const THROUGHPUT: Metric = Metric {
    name: "throughput",
    unit: "tokens/s",
    more_is_better: true,
    of: |pass| pass.tokens_per_second,
};
const REQUESTS: Metric = Metric {
    name: "requests",
    unit: "requests/s",
    more_is_better: true,
    of: |pass| pass.requests_per_second,
};
/// The mean latency.
pub const MEAN: Metric = milliseconds("mean latency", |pass| pass.mean_latency * 1e3);
/// The median latency.
pub const P50: Metric = milliseconds("p50 latency", |pass| pass.p50 * 1e3);
const P95: Metric = milliseconds("p95 latency", |pass| pass.p95 * 1e3);
/// The latency that 99 of 100 requests kept.
pub const P99: Metric = milliseconds("p99 latency", |pass| pass.p99 * 1e3);
/// The mean time that a request waited for a device.
pub const WAITING: Metric = milliseconds("mean waiting", |pass| pass.mean_waiting * 1e3);
pub(super) const SPREAD: Metric = Metric {
    name: "spread of busy shares",
    unit: "points",
    more_is_better: false,
    of: |pass| pass.spread * 100.0,
};
const VARIATION: Metric = Metric {
    name: "variation of busy shares",
    unit: "%",
    more_is_better: false,
    of: |pass| pass.variation * 100.0,
};
/// How long work that came all at once took.
pub const MAKESPAN: Metric =
    Metric { name: "makespan", unit: "s", more_is_better: false, of: |pass| pass.seconds };
pub(super) const EFFICIENCY: Metric = Metric {
    name: "efficiency",
    unit: "% of the devices' own speeds",
    more_is_better: true,
    of: |pass| pass.efficiency.unwrap_or(f64::NAN) * 100.0,
};

/// What counts under a load that comes whatever comes back.
pub(super) const OPEN: [Metric; 7] = [THROUGHPUT, REQUESTS, MEAN, P50, P95, P99, WAITING];

/// What counts for work that is there all at once.
pub(super) const BULK: [Metric; 3] = [MAKESPAN, THROUGHPUT, EFFICIENCY];

/// What counts where there are several devices.
pub(super) const BALANCE: [Metric; 2] = [SPREAD, VARIATION];

const fn milliseconds(name: &'static str, of: fn(&Figures) -> f64) -> Metric {
    Metric { name, unit: "ms", more_is_better: false, of }
}
