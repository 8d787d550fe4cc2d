//! How much memory will be wanted, from how much was.
//!
//! Demand is a list of sizes, largest first: how large the largest slab had to be, the second
//! largest beside it, and so on. It is followed in two ways:
//!
//! - [`Forecast::recent`]: the most that was wanted during the last period, in eight windows. What is
//!   held beyond it has not been needed for that long and is given back.
//! - [`Forecast::usual`]: what most windows with any work wanted, from a histogram over size classes
//!   whose weights decay. It is made ready ahead of demand, and a slab that must grow grows to it.
//!
//! The choice behind it: it is policy only. Whatever is predicted, leases and budget are right.

use std::time::Duration;

use super::slot::Passed;
use crate::budget::{CLASSES, class_of};

const WINDOWS: usize = 8;

/// Busy windows after which an observation counts half: as many as a period has, ten times over.
const HALF_LIFE_WINDOWS: f64 = 80.0;

/// Sizes in bytes, largest first.
pub(super) type Sizes = Vec<usize>;

/// What has been wanted, and what follows from it.
#[derive(Debug)]
pub(super) struct Forecast {
    window_nanoseconds: u64,
    /// The windows of the last period; the last one is being filled.
    windows: [Sizes; WINDOWS],
    window_start: u64,
    history: Vec<History>,
    error: Option<f64>,
    peak: usize,
}

/// The decayed histogram of one rank.
#[derive(Debug, Clone)]
struct History {
    weight: Vec<f32>,
    /// The largest size in bytes that fell into each class.
    largest: Vec<usize>,
    total: f32,
}

impl Forecast {
    pub(super) fn new(period: Duration, now: u64) -> Self {
        // What falls out of the last window was wanted at most a period ago, with a window to spare
        // for whoever looks only now and then.
        let window = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX) / (WINDOWS as u64 + 1);
        Self {
            window_nanoseconds: window.max(1),
            windows: std::array::from_fn(|_| Sizes::new()),
            window_start: now,
            history: Vec::new(),
            error: None,
            peak: 0,
        }
    }

    /// Learns from all leases that were live at any time since the last call: those that came back
    /// and those that are still out.
    pub(super) fn observe(&mut self, leases: &mut [Passed], now: u64) {
        leases.sort_unstable_by_key(|lease| lease.leased_at);
        let mut live: Vec<Passed> = Vec::new();
        for lease in leases.iter() {
            live.retain(|other| other.returned_at > lease.leased_at);
            live.push(*lease);
            self.roll(lease.leased_at);
            let mut sizes: Sizes = live.iter().map(|lease| lease.bytes).collect();
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            self.peak = self.peak.max(sizes.iter().sum());
            raise(&mut self.windows[WINDOWS - 1], &sizes);
        }
        self.roll(now);
        let mut held: Sizes =
            live.iter().filter(|lease| lease.returned_at > now).map(|lease| lease.bytes).collect();
        held.sort_unstable_by(|a, b| b.cmp(a));
        raise(&mut self.windows[WINDOWS - 1], &held);
    }

    /// Closes windows until `now` is in the last one.
    fn roll(&mut self, now: u64) {
        while now.saturating_sub(self.window_start) >= self.window_nanoseconds {
            let closed = self.windows[WINDOWS - 1].clone();
            if closed.is_empty() && self.windows.iter().all(Vec::is_empty) {
                self.window_start = now; // nothing to forget
                return;
            }
            if !closed.is_empty() {
                self.learn(&closed);
            }
            self.windows.rotate_left(1);
            self.windows[WINDOWS - 1].clear();
            self.window_start = self.window_start.saturating_add(self.window_nanoseconds);
        }
    }

    fn learn(&mut self, wanted: &Sizes) {
        let predicted: usize = self.usual().iter().sum();
        let actual: usize = wanted.iter().sum();
        if predicted > 0 && actual > 0 {
            #[expect(clippy::cast_precision_loss, reason = "a ratio of byte counts")]
            let error = predicted.abs_diff(actual) as f64 / actual as f64;
            self.error = Some(self.error.map_or(error, |old| 0.9 * old + 0.1 * error));
        }
        while self.history.len() < wanted.len() {
            // A rank that was not wanted before was wanted with no bytes all the time.
            let total = self.history.first().map_or(0.0, |first| first.total);
            self.history.push(History::new(total));
        }
        for (rank, history) in self.history.iter_mut().enumerate() {
            history.add(wanted.get(rank).copied().unwrap_or(0));
        }
    }

    /// The most that was wanted at once of each rank during the last period.
    pub(super) fn recent(&self) -> Sizes {
        let mut sizes = Sizes::new();
        for window in &self.windows {
            raise(&mut sizes, window);
        }
        sizes
    }

    /// What at least half of the windows with work wanted, weighted towards the newer ones.
    pub(super) fn usual(&self) -> Sizes {
        self.history.iter().map(History::median).take_while(|&bytes| bytes > 0).collect()
    }

    /// The mean of |predicted − wanted| / wanted over the windows with work, or `None` before the
    /// first prediction.
    pub(super) fn error(&self) -> Option<f64> {
        self.error
    }

    /// The most bytes asked for by leases live at once, so far.
    pub(super) fn peak(&self) -> usize {
        self.peak
    }
}

impl History {
    fn new(absent: f32) -> Self {
        let mut weight = vec![0.0; CLASSES + 1];
        weight[0] = absent;
        Self { weight, largest: vec![0; CLASSES + 1], total: absent }
    }

    fn add(&mut self, bytes: usize) {
        #[expect(clippy::cast_possible_truncation, reason = "a factor just below one")]
        let keep = 0.5f64.powf(1.0 / HALF_LIFE_WINDOWS) as f32;
        for weight in &mut self.weight {
            *weight *= keep;
        }
        // Index 0 is "nothing"; class c is index c + 1.
        let index = if bytes == 0 { 0 } else { class_of(bytes).map_or(CLASSES, |class| class + 1) };
        self.weight[index] += 1.0;
        self.total = self.total * keep + 1.0;
        self.largest[index] = self.largest[index].max(bytes);
    }

    /// The smallest size that covers half of the weight.
    fn median(&self) -> usize {
        let mut covered = 0.0;
        for (weight, &largest) in self.weight.iter().zip(&self.largest) {
            covered += weight;
            if covered * 2.0 >= self.total {
                return largest;
            }
        }
        0
    }
}

/// Makes each rank of `sizes` at least that of `other`.
fn raise(sizes: &mut Sizes, other: &[usize]) {
    if sizes.len() < other.len() {
        sizes.resize(other.len(), 0);
    }
    for (size, &other) in sizes.iter_mut().zip(other) {
        *size = (*size).max(other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;
    const SECOND: u64 = 1_000_000_000;

    fn lease(from: u64, to: u64, mib: usize) -> Passed {
        Passed { leased_at: from, returned_at: to, bytes: mib * MIB, stream: 0 }
    }

    fn forecast() -> Forecast {
        Forecast::new(Duration::from_secs(8), 0) // windows of one second
    }

    #[test]
    fn ranks_are_what_was_live_at_once() {
        let mut forecast = forecast();
        forecast.observe(&mut [lease(10, 30, 5), lease(0, 20, 9), lease(25, 40, 7)], 50);
        assert_eq!(forecast.recent(), [9 * MIB, 5 * MIB]);
        assert_eq!(forecast.peak(), 14 * MIB);
    }

    #[test]
    fn a_spike_is_forgotten_after_the_period() {
        let mut forecast = forecast();
        forecast.observe(&mut [lease(0, 5, 100)], 10);
        for second in 1..=8 {
            forecast
                .observe(&mut [lease(second * SECOND, second * SECOND + 5, 10)], second * SECOND);
        }
        assert_eq!(forecast.recent(), [10 * MIB]);
    }

    #[test]
    fn the_usual_demand_survives_idle_time_and_ignores_rare_spikes() {
        let mut forecast = forecast();
        for second in 0..100 {
            let size = if second % 10 == 0 { 200 } else { 40 };
            let now = second * SECOND;
            forecast
                .observe(&mut [lease(now, now + 5, size), lease(now + 1, now + 4, 20)], now + 9);
        }
        forecast.observe(&mut [], 10_000 * SECOND);
        assert!(forecast.recent().is_empty());
        assert_eq!(forecast.usual(), [40 * MIB, 20 * MIB]);
        assert!(forecast.error().unwrap() < 0.5);
    }

    #[test]
    fn a_lease_that_is_still_out_counts_in_every_window() {
        let mut forecast = forecast();
        for second in 0..20 {
            forecast.observe(&mut [lease(5, u64::MAX, 64)], second * SECOND);
        }
        assert_eq!(forecast.recent(), [64 * MIB]);
        forecast.observe(&mut [lease(5, u64::MAX, 64)], 1000 * SECOND);
        assert_eq!(forecast.recent(), [64 * MIB], "also when nobody has looked for long");
    }
}
