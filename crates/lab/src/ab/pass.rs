//! One pass: an arm, under one pass's requests.

use std::time::{Duration, Instant};

use super::error::AbError;
use super::figures::Figures;
use super::generator::{Generator, Sent};
use super::observer::{observe, work};
use crate::traffic::{Mix, Traffic};

/// Looks at the devices in the time that counts.
const SLICES: f64 = 40.0;

/// Seconds between looks at devices whose work takes as long as it takes.
const STEP: f64 = 0.05;

/// The part of bulk work that warms up, and is dropped.
const WARM_UP_PART: usize = 10;

/// Sends `traffic` when it is due; what is due before `warm_up`, or answered after `until`, is dropped.
pub(super) fn open(
    generator: &Generator<'_>,
    traffic: &Traffic,
    (warm_up, until): (f64, f64),
    drain: Duration,
) -> Result<Figures, AbError> {
    let start = Instant::now();
    let step = (until - warm_up) / SLICES;
    let (sent, looks) = observe(generator.engine, (start, warm_up, step), || {
        generator.send(traffic, start, drain)
    })?;
    Ok(Figures::new(&sent, work(&looks, until), (warm_up, until)))
}

/// Sends so many requests at once, and waits for all.
pub(super) fn bulk(
    generator: &Generator<'_>,
    (mix, repeat): (Mix, u64),
    requests: usize,
) -> Result<Figures, AbError> {
    let made = |requests: usize| {
        let traffic = Traffic::bulk(mix, repeat, requests);
        let made = traffic.arrivals.iter().map(|arrival| generator.request(arrival)).collect();
        (traffic, made)
    };
    let (traffic, made_first) = made(requests.div_ceil(WARM_UP_PART));
    generator.send_at_once(&traffic, made_first, Instant::now())?;
    let (traffic, made) = made(requests);
    let start = Instant::now();
    let (sent, looks) = observe(generator.engine, (start, 0.0, STEP), || {
        generator.send_at_once(&traffic, made, start)
    })?;
    let makespan = sent.iter().map(Sent::answered).fold(0.0, f64::max);
    Ok(Figures::new(&sent, work(&looks, makespan), (0.0, makespan)))
}
