//! The figures of one pass.

use serde::{Deserialize, Serialize};

use super::generator::{Fate, Sent};
use super::observer::{Learned, Work, divided};
use crate::histogram::percentile;

/// How many points of a latency curve lie between 0 and each further nine.
const POINTS_PER_NINE: usize = 16;

/// Nines that a latency curve goes up to: 99.9 %.
pub(super) const NINES: usize = 3;

/// What one pass showed. Times are in seconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Figures {
    /// The policy of its arm.
    pub policy: String,
    /// Which of that arm's passes it is, from 0.
    pub repeat: usize,
    /// Seconds that count.
    pub seconds: f64,
    /// Requests that were due in them.
    pub requests: usize,
    /// Those that the engine had no room for.
    pub refused: usize,
    /// Those that a device failed at.
    pub failed: usize,
    /// Given up: their latencies are lower bounds.
    pub unanswered: usize,
    /// Tokens of what was answered in time, per second.
    pub tokens_per_second: f64,
    /// Requests that were answered in time, per second.
    pub requests_per_second: f64,
    /// The mean latency, from when a request was due.
    pub mean_latency: f64,
    /// The latency that half of the requests did not exceed.
    pub p50: f64,
    /// That of 95 of 100.
    pub p95: f64,
    /// That of 99 of 100.
    pub p99: f64,
    /// How long a request waited for a device, on average.
    pub mean_waiting: f64,
    /// How much too late requests were sent: above a millisecond the generator could not keep up.
    pub p99_late: f64,
    /// What each device did, in the order of the engine.
    pub devices: Vec<DeviceFigures>,
    /// Largest less smallest busy share of the devices.
    pub spread: f64,
    /// Standard deviation of the devices' busy shares relative to their mean.
    pub variation: f64,
    /// Tokens per second relative to the sum of the devices' own speeds, for work that came all at once.
    pub efficiency: Option<f64>,
    /// Latencies at rising percentiles, evenly spaced in nines.
    pub curve: Vec<f64>,
}

/// What one device did in a pass.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DeviceFigures {
    /// The device.
    pub name: String,
    /// The part of the time that it was at work.
    pub busy_share: f64,
    /// Tokens of the batches that ended.
    pub tokens: u64,
    /// Batches that ended.
    pub batches: u64,
    /// The busy share in each slice of the pass.
    pub busy_shares: Vec<f64>,
    /// What the scheduler had learned of its speed in the end.
    #[serde(default)]
    pub learned: Option<Learned>,
}

impl Figures {
    /// Of requests that were due, or answered, from the second `from` to the second `to`.
    pub fn new(sent: &[Sent], work: Vec<Work>, (from, to): (f64, f64)) -> Self {
        let due: Vec<&Sent> = sent.iter().filter(|sent| sent.at >= from).collect();
        let in_time =
            |sent: &&Sent| sent.fate == Fate::Answered && (from..=to).contains(&sent.answered());
        let answered: Vec<&Sent> = sent.iter().filter(in_time).collect();
        let tokens: usize = answered.iter().map(|sent| sent.tokens).sum();
        let count = |fate| due.iter().filter(|sent| sent.fate == fate).count();
        let sorted = |of: fn(&Sent) -> f64| {
            let mut values: Vec<f64> = due.iter().map(|sent| of(sent)).collect();
            values.sort_unstable_by(f64::total_cmp);
            values
        };
        let latencies = sorted(|sent| sent.latency);
        let mean =
            |of: fn(&Sent) -> f64| divided(due.iter().map(|sent| of(sent)).sum(), due.len() as f64);
        let shares: Vec<f64> = work.iter().map(|device| device.share).collect();
        Self {
            seconds: to - from,
            requests: due.len(),
            refused: count(Fate::Refused),
            failed: count(Fate::Failed),
            unanswered: count(Fate::Unanswered),
            tokens_per_second: divided(tokens as f64, to - from),
            requests_per_second: divided(answered.len() as f64, to - from),
            mean_latency: mean(|sent| sent.latency),
            p50: percentile(&latencies, 0.5),
            p95: percentile(&latencies, 0.95),
            p99: percentile(&latencies, 0.99),
            mean_waiting: mean(|sent| sent.waiting),
            p99_late: percentile(&sorted(|sent| sent.late), 0.99),
            devices: work.into_iter().map(DeviceFigures::from).collect(),
            spread: spread(&shares),
            variation: variation(&shares),
            curve: curve(&latencies),
            ..Self::default()
        }
    }

    /// Requests that got no vectors.
    pub(super) fn lost(&self) -> usize {
        self.refused + self.failed + self.unanswered
    }
}

impl From<Work> for DeviceFigures {
    fn from(work: Work) -> Self {
        let Work { name, tokens, batches, shares, share, learned, .. } = work;
        Self { name, busy_share: share, tokens, batches, busy_shares: shares, learned }
    }
}

/// How many nines a point of a curve is at: 1 is 90 %, 2 is 99 %.
pub(super) fn nines(point: usize) -> f64 {
    point as f64 / POINTS_PER_NINE as f64
}

fn curve(latencies: &[f64]) -> Vec<f64> {
    let part = |point| 1.0 - 10f64.powf(-nines(point));
    (0..=NINES * POINTS_PER_NINE).map(|point| percentile(latencies, part(point))).collect()
}

fn spread(shares: &[f64]) -> f64 {
    let highest = shares.iter().copied().fold(0.0, f64::max);
    shares.iter().map(|share| highest - share).fold(0.0, f64::max)
}

fn variation(shares: &[f64]) -> f64 {
    let count = shares.len() as f64;
    let mean = divided(shares.iter().sum(), count);
    let squares: f64 = shares.iter().map(|share| (share - mean).powi(2)).sum();
    divided(divided(squares, count).sqrt(), mean)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn sent(at: f64, latency: f64, fate: Fate) -> Sent {
        Sent { at, late: 0.0, latency, waiting: latency / 2.0, tokens: 10, fate }
    }

    #[test]
    fn a_curve_has_its_points_at_nines() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        let curve = curve(&values);
        assert_eq!((curve[0], curve[POINTS_PER_NINE]), (1.0, 90.0));
        assert_eq!((curve[2 * POINTS_PER_NINE], curve[NINES * POINTS_PER_NINE]), (99.0, 100.0));
    }

    #[test]
    fn what_gets_no_answer_counts_as_slow_not_as_absent() {
        let requests = [
            sent(0.5, 1.0, Fate::Answered), // warm-up, but answered in the time that counts
            sent(1.0, 0.2, Fate::Answered),
            sent(2.0, 9.0, Fate::Unanswered),
            sent(2.5, 1.0, Fate::Answered), // after the end
        ];
        let figures = Figures::new(&requests, Vec::new(), (1.0, 3.0));
        assert_eq!((figures.requests, figures.unanswered, figures.lost()), (3, 1, 1));
        assert_eq!((figures.p50, figures.p99), (1.0, 9.0));
        assert!((figures.mean_waiting - 10.2 / 6.0).abs() < 1e-9);
        assert_eq!((figures.tokens_per_second, figures.requests_per_second), (10.0, 1.0));
    }

    #[test]
    fn uneven_work_shows_in_spread_and_variation() {
        assert!((spread(&[0.9, 0.3, 0.6]) - 0.6).abs() < 1e-12);
        assert!((variation(&[1.0, 0.0]) - 1.0).abs() < 1e-12);
        assert_eq!((spread(&[0.5, 0.5]), variation(&[0.5, 0.5])), (0.0, 0.0));
        assert_eq!((spread(&[]), variation(&[0.0, 0.0])), (0.0, 0.0));
    }
}
