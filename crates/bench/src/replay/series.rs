//! Curves that keep their peaks however long they are.

/// Bytes at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Asked for by the leases that are out.
    pub(crate) requested_bytes: usize,
    /// Handed out to them.
    pub(crate) leased_bytes: usize,
    /// Taken from the device.
    pub(crate) held_bytes: usize,
}

impl Sample {
    fn max(self, other: Self) -> Self {
        Self {
            requested_bytes: self.requested_bytes.max(other.requested_bytes),
            leased_bytes: self.leased_bytes.max(other.leased_bytes),
            held_bytes: self.held_bytes.max(other.held_bytes),
        }
    }
}

/// Samples over time in bins of equal length, each with the highest values that were reached in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Series {
    /// How long a bin is, in nanoseconds.
    pub(crate) bin_nanoseconds: u64,
    /// The bins' highest values, earliest first.
    pub(crate) bins: Vec<Sample>,
    last: Sample,
}

impl Series {
    /// A series of `nanoseconds` in at most `points` bins.
    pub(super) fn new(nanoseconds: u64, points: usize) -> Self {
        // The last moment must have a place too, hence the one more.
        let bin_nanoseconds = nanoseconds / points.max(1) as u64 + 1;
        Self { bin_nanoseconds, bins: Vec::new(), last: Sample::default() }
    }

    /// Notes that values are `sample` from `nanoseconds` on. Time must not go back.
    pub(super) fn record(&mut self, nanoseconds: u64, sample: Sample) {
        let bin = usize::try_from(nanoseconds / self.bin_nanoseconds).unwrap_or(usize::MAX - 1);
        while self.bins.len() <= bin {
            self.bins.push(self.last);
        }
        if let Some(highest) = self.bins.last_mut() {
            *highest = highest.max(sample);
        }
        self.last = sample;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(held_bytes: usize) -> Sample {
        Sample { held_bytes, ..Sample::default() }
    }

    #[test]
    fn a_bin_has_its_highest_value_and_an_empty_one_what_was_before() {
        let mut series = Series::new(99, 10);
        assert_eq!(series.bin_nanoseconds, 10);
        for (nanoseconds, bytes) in [(0, 1), (3, 9), (9, 2), (35, 0), (36, 1), (99, 4)] {
            series.record(nanoseconds, held(bytes));
        }
        let bins: Vec<usize> = series.bins.iter().map(|bin| bin.held_bytes).collect();
        assert_eq!(bins, [9, 2, 2, 2, 1, 1, 1, 1, 1, 4]);
    }

    #[test]
    fn any_length_fits_the_points() {
        for nanoseconds in [0, 1, 1999, 2000, 2001, u64::MAX] {
            let mut series = Series::new(nanoseconds, 2000);
            series.record(nanoseconds, held(1));
            assert!(series.bins.len() <= 2000, "{nanoseconds}: {}", series.bins.len());
        }
    }
}
