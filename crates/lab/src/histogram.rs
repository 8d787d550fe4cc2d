//! How samples are spread: percentiles of those that are kept, and of those that are only counted.
//!
//! - [`percentile`] and [`buckets`] are of sorted samples.
//! - [`Histogram`] counts durations in constant memory.

use std::time::Duration;

use crate::results::whole;

/// Steps per octave: a duration is known to one sixteenth.
const STEPS_LOG2: u32 = 4;
const STEPS: usize = 1 << STEPS_LOG2;

/// Counts durations in buckets that grow with what they hold.
#[derive(Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; bucket(u64::MAX) + 1], total: 0 }
    }
}

impl Histogram {
    /// Counts one more.
    pub fn add(&mut self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket(nanoseconds)) {
            *count += 1;
            self.total += 1;
        }
    }

    /// The duration that `percent` of those added don't exceed, to within its bucket; zero when
    /// none were added.
    pub fn percentile(&self, percent: u64) -> Duration {
        let wanted = (self.total.saturating_mul(percent)).div_ceil(100);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= wanted {
                return Duration::from_nanos(start(index));
            }
        }
        Duration::ZERO
    }
}

/// The least of sorted samples that such a part of them does not exceed, by the nearest rank; nothing,
/// such as 0, if there are none.
pub fn percentile<T: Copy + Default>(sorted: &[T], part: f64) -> T {
    let rank = whole((part * sorted.len() as f64).ceil()) as usize;
    let last = sorted.len().saturating_sub(1);
    sorted.get(rank.saturating_sub(1).min(last)).copied().unwrap_or_default()
}

/// Sorted samples in buckets whose upper bounds grow by a `ratio` above 1: each bound, and how many
/// samples are not above it, but above the one before. Empty buckets are left out.
pub fn buckets(sorted: &[f64], first: f64, ratio: f64) -> Vec<(f64, usize)> {
    let mut buckets = Vec::new();
    let (mut bound, mut rest) = (first, sorted);
    while !rest.is_empty() {
        let inside = rest.partition_point(|&sample| sample <= bound);
        if inside > 0 {
            buckets.push((bound, inside));
        }
        rest = &rest[inside..];
        bound *= ratio;
    }
    buckets
}

fn bucket(nanoseconds: u64) -> usize {
    let octave = nanoseconds.max(1).ilog2().saturating_sub(STEPS_LOG2);
    let step = usize::try_from(nanoseconds >> octave).unwrap_or(0);
    octave as usize * STEPS + step
}

/// The least that falls into a bucket.
fn start(bucket: usize) -> u64 {
    let octave = (bucket / STEPS).saturating_sub(1);
    let step = (bucket - octave * STEPS) as u64;
    step << octave
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_one_sixteenth_wide() {
        let mut nanoseconds = 0u64;
        while nanoseconds < u64::MAX / 3 {
            let least = start(bucket(nanoseconds));
            assert!(least <= nanoseconds && nanoseconds - least <= nanoseconds / 16);
            assert!(bucket(nanoseconds) <= bucket(nanoseconds + 1));
            assert_eq!(bucket(least), bucket(nanoseconds));
            nanoseconds += nanoseconds / 7 + 1;
        }
    }

    #[test]
    fn percentiles_are_those_of_the_durations() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(50), Duration::ZERO);
        for micros in 1..=100 {
            histogram.add(Duration::from_micros(micros));
        }
        for percent in [1, 50, 99, 100] {
            let (found, exact) =
                (histogram.percentile(percent).as_nanos(), u128::from(percent) * 1000);
            assert!(found <= exact && exact - found <= exact / 16, "{percent}: {found}");
        }
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        let at = |part| percentile(&values, part);
        assert_eq!([at(0.0), at(0.5), at(0.95), at(0.99), at(1.0)], [1.0, 50.0, 95.0, 99.0, 100.0]);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert_eq!(percentile::<u64>(&[], 0.5), 0);
    }

    #[test]
    fn buckets_have_every_sample_once() {
        let buckets = buckets(&[0.05, 0.1, 0.100_001, 3000.0], 0.1, 1.25);
        assert_eq!((buckets[0], buckets[1], buckets.len()), ((0.1, 2), (0.125, 1), 3));
        assert!((3000.0..3750.0).contains(&buckets[2].0));
    }
}
