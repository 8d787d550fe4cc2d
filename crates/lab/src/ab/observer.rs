//! How busy each device was and what was learned of it, from looks at its counters.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vecmill_engine::{DeviceName, DeviceStatistics, Engine};
use vecmill_scheduler::Coefficients;

use super::error::AbError;

/// The devices' counters at one moment.
#[derive(Debug)]
pub(super) struct Look {
    /// Seconds after the start.
    pub(super) at: f64,
    pub(super) devices: Vec<Counters>,
}

/// What a device has done so far.
#[derive(Debug, Clone)]
pub(super) struct Counters {
    name: String,
    tokens: u64,
    batches: u64,
    busy: Duration,
    learned: Option<Learned>,
}

/// What the scheduler has learned of a device's speed: seconds, and how far they are off on average.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    /// Of a batch, however small.
    pub fixed: f64,
    /// Of each token beyond that.
    pub per_token: f64,
    /// Of each token squared of a sequence.
    pub per_square: f64,
    /// By how much the batches' times were off, relative to them.
    pub mean_error: f64,
}

impl Learned {
    fn new(speed: Coefficients, mean_error: f64) -> Self {
        let Coefficients { fixed, per_token, per_square } = speed;
        Self { fixed, per_token, per_square, mean_error }
    }
}

impl Look {
    fn take(engine: &Engine, start: Instant) -> Self {
        let counters = |(name, device): (DeviceName, DeviceStatistics)| {
            let DeviceStatistics { tokens, batches, busy, speed, mean_error, .. } = device;
            let learned = speed.map(|speed| Learned::new(speed, mean_error));
            Counters { name: name.to_string(), tokens, batches, busy, learned }
        };
        let devices = engine.scheduling().into_iter().map(counters).collect();
        Self { at: start.elapsed().as_secs_f64(), devices }
    }
}

/// Does `work` and looks at the devices meanwhile: `first` seconds after `start`, every `step` seconds
/// from then on, and at the end.
pub(super) fn observe<R>(
    engine: &Engine,
    (start, first, step): (Instant, f64, f64),
    work: impl FnOnce() -> Result<R, AbError>,
) -> Result<(R, Vec<Look>), AbError> {
    thread::scope(|scope| {
        let (done, until) = mpsc::channel::<()>();
        let looks = move || {
            let mut looks = Vec::new();
            loop {
                let due = start + Duration::from_secs_f64(first + step * looks.len() as f64);
                match until.recv_timeout(due.saturating_duration_since(Instant::now())) {
                    Err(RecvTimeoutError::Timeout) => looks.push(Look::take(engine, start)),
                    _ => break,
                }
            }
            looks.push(Look::take(engine, start));
            looks
        };
        let observer = thread::Builder::new().name("observer".into()).spawn_scoped(scope, looks)?;
        let result = work();
        drop(done);
        let looks = observer.join().unwrap_or_default(); // it has nothing to panic at
        Ok((result?, looks))
    })
}

/// What a device did between the first look and `until`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Work {
    /// The device.
    pub name: String,
    /// Tokens of the batches that ended.
    pub tokens: u64,
    /// Batches that ended.
    pub batches: u64,
    /// The part of the time that it was at work, between each look and the next.
    pub shares: Vec<f64>,
    /// The same over all of it.
    pub share: f64,
    /// Tokens per second while it was at work.
    pub speed: f64,
    /// What the scheduler had learned of its speed in the end.
    pub learned: Option<Learned>,
}

/// What each device did, between the first look and the last one that is not after `until`.
pub(super) fn work(looks: &[Look], until: f64) -> Vec<Work> {
    // Looks are a little late.
    let in_time = looks.iter().rposition(|look| look.at <= until + 1e-3).unwrap_or(0);
    let end = in_time.max(1).min(looks.len().saturating_sub(1));
    let devices = looks.first().map_or(0, |look| look.devices.len());
    (0..devices)
        .map(|device| {
            let counters = looks.iter().map(|look| (look.at, &look.devices[device]));
            work_of(&counters.collect::<Vec<_>>(), end)
        })
        .collect()
}

/// What one device did up to the look number `end`.
fn work_of(looks: &[(f64, &Counters)], end: usize) -> Work {
    let since = |(_, now): (f64, &Counters), (_, then): (f64, &Counters)| {
        let busy = now.busy.saturating_sub(then.busy).as_secs_f64();
        (now.tokens - then.tokens, now.batches - then.batches, busy)
    };
    let span = |two: &[(f64, &Counters)]| (two[1].0 - two[0].0, since(two[1], two[0]).2);
    let spans: Vec<(f64, f64)> = looks.windows(2).map(span).collect();
    let worked = when_it_worked(&spans);
    let (tokens, batches, _) = since(looks[end], looks[0]);
    let (all_tokens, _, all_busy) = since(looks[looks.len() - 1], looks[0]);
    Work {
        name: looks[0].1.name.clone(),
        tokens,
        batches,
        shares: spans[..end].iter().zip(&worked).map(|(span, at)| divided(*at, span.0)).collect(),
        share: divided(worked[..end].iter().sum(), looks[end].0 - looks[0].0),
        speed: divided(all_tokens as f64, all_busy),
        learned: looks[end].1.learned,
    }
}

/// Counters grow when a batch ends, by all that it took: what exceeds the span since the last look
/// belongs to the spans before.
fn when_it_worked(spans: &[(f64, f64)]) -> Vec<f64> {
    let mut earlier = 0.0;
    let mut worked: Vec<f64> = spans
        .iter()
        .rev()
        .map(|(seconds, busy)| {
            let all = busy + earlier;
            earlier = (all - seconds).max(0.0);
            all.min(*seconds)
        })
        .collect();
    worked.reverse();
    worked
}

/// 0 where there is nothing to divide by.
pub(super) fn divided(value: f64, by: f64) -> f64 {
    if by > 0.0 { value / by } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A look at one device of so many tokens and so many seconds of work.
    fn look((at, tokens, busy): (f64, u64, f64)) -> Look {
        let busy = Duration::from_secs_f64(busy);
        Look {
            at,
            devices: vec![Counters {
                name: "cpu".into(),
                tokens,
                batches: tokens / 100,
                busy,
                learned: None,
            }],
        }
    }

    #[test]
    fn a_long_batch_counts_for_the_time_that_it_ran() {
        // Three seconds of work end between 4 and 5, the window at 4.
        let figures = [(1.0, 0, 0.5), (2.0, 0, 0.5), (3.0, 0, 0.5), (4.0, 0, 0.5), (5.0, 300, 3.5)];
        let looks: Vec<Look> = figures.map(look).into();
        let work = &work(&looks, 4.0)[0];
        assert_eq!(work.shares, [0.0, 1.0, 1.0]);
        assert!((work.share - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!((work.tokens, work.batches), (0, 0), "it has not ended yet");
        assert!((work.speed - 100.0).abs() < 1e-9);
    }

    #[test]
    fn nothing_seen_is_nothing_done() {
        assert!(work(&[], 1.0).is_empty());
        let once = work(&[look((0.0, 5, 0.1))], 1.0);
        assert_eq!((once[0].share, once[0].speed, once[0].tokens), (0.0, 0.0, 0));
    }
}
