//! Quantiles of durations in constant memory.

use std::time::Duration;

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
}
