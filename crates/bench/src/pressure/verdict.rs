//! Whether all that has to hold did hold.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;
use vecmill_lab::results;
use vecmill_memory::Statistics;

use super::load::Responses;

/// Memory at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) seconds: f64,
    pub(super) spike: bool,
    pub(super) held_bytes: usize,
    pub(super) leased_bytes: usize,
    pub(super) device_free_bytes: usize,
}

/// How memory came back after a spike.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Recovery {
    spike_ends_at_seconds: f64,
    held_before_bytes: usize,
    held_peak_bytes: usize,
    /// Until at most a tenth more than before was held; `None` if it never was.
    seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    answers: Responses,
    period_seconds: f64,
    spikes: Vec<Recovery>,
    recovered_in_time: usize,
    leases_warm: u64,
    leases_grown: u64,
    leases_waited: u64,
    leases_refused: u64,
    refused_with_room: u64,
    source_failures: u64,
    last_source_failure: Option<String>,
    overruns: u64,
    peak_held_bytes: usize,
    budget_bytes: usize,
    least_device_free_bytes: usize,
}

/// Samples before a spike that tell the level.
const LEVEL: usize = 20;

impl Verdict {
    pub(super) fn new(
        samples: &[Sample],
        period: Duration,
        answers: &Responses,
        pool: &Statistics,
    ) -> Self {
        let spikes = recoveries(samples);
        let limit = period.as_secs_f64();
        let in_time = |spike: &&Recovery| spike.seconds.is_some_and(|seconds| seconds <= limit);
        Self {
            answers: answers.clone(),
            period_seconds: limit,
            recovered_in_time: spikes.iter().filter(in_time).count(),
            spikes,
            leases_warm: pool.leases.warm,
            leases_grown: pool.leases.grown,
            leases_waited: pool.leases.waited,
            leases_refused: pool.leases.refused,
            refused_with_room: pool.refused_with_room,
            source_failures: pool.failures,
            last_source_failure: pool.last_failure.as_ref().map(ToString::to_string),
            overruns: pool.overruns,
            peak_held_bytes: pool.peak_held_bytes,
            budget_bytes: pool.budget_bytes,
            least_device_free_bytes: samples
                .iter()
                .map(|sample| sample.device_free_bytes)
                .min()
                .unwrap_or(0),
        }
    }

    pub(super) fn is_good(&self) -> bool {
        let Responses { accepted, answered, .. } = self.answers;
        accepted == answered && self.recovered_in_time == self.spikes.len()
    }

    pub(super) fn text(&self) -> String {
        let Responses { accepted, answered, not_accepted, busy, failed, corrupted, splits, .. } =
            &self.answers;
        let slowest = self.spikes.iter().filter_map(|spike| spike.seconds).fold(0.0, f64::max);
        format!(
            "requests: {accepted} accepted, {answered} answered right, {busy} busy, {failed} failed, \
             {corrupted} corrupted; {not_accepted} refused at once; {splits} splits\n\
             spikes: {} of {} back within 10 % in {} s, the slowest in {slowest:.2} s\n\
             leases: {} warm, {} grown, {} waited, {} refused, {} refused with room\n\
             source refusals: {}; peak held {} of {} MiB; least free on the card {} MiB",
            self.recovered_in_time,
            self.spikes.len(),
            self.period_seconds,
            self.leases_warm,
            self.leases_grown,
            self.leases_waited,
            self.leases_refused,
            self.refused_with_room,
            self.source_failures,
            self.peak_held_bytes >> 20,
            self.budget_bytes >> 20,
            self.least_device_free_bytes >> 20,
        )
    }
}

/// The spikes that have all of their aftermath in the samples.
fn recoveries(samples: &[Sample]) -> Vec<Recovery> {
    let starts = (1..samples.len()).filter(|&i| samples[i].spike && !samples[i - 1].spike);
    let recovery = |start: usize| {
        let before = &samples[start.saturating_sub(LEVEL)..start];
        let held_before = before.iter().map(|sample| sample.held_bytes).max()?;
        let length = samples[start..].iter().position(|sample| !sample.spike)?;
        let after = &samples[start + length..];
        let next = after.iter().position(|sample| sample.spike)?;
        let end = after.first()?.seconds;
        let limit = held_before + held_before / 10;
        let back = after[..next].iter().find(|sample| sample.held_bytes <= limit);
        let peak = samples[start..start + length + next].iter().map(|sample| sample.held_bytes);
        Some(Recovery {
            spike_ends_at_seconds: end,
            held_before_bytes: held_before,
            held_peak_bytes: peak.max()?,
            seconds: back.map(|sample| sample.seconds - end),
        })
    };
    starts.filter_map(recovery).collect()
}

const WIDTH: f64 = 1100.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 50.0;

/// Memory over time as SVG.
pub(super) fn draw(samples: &[Sample], budget: usize, device: &str) -> String {
    let last = samples.last().map_or(1.0, |sample| sample.seconds);
    let most = samples.iter().map(|s| s.device_free_bytes.max(s.held_bytes)).max().unwrap_or(1);
    let most = most.max(budget) as f64 * 1.05;
    let x = |seconds: f64| LEFT + (WIDTH - LEFT - 20.0) * seconds / last;
    let y = |bytes: f64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - bytes / most);
    let line = |of: &dyn Fn(&Sample) -> usize| {
        // Of the samples within a pixel, the least and the most are all that can be seen.
        let within = |a: &Sample, b: &Sample| x(a.seconds).floor() == x(b.seconds).floor();
        let points = samples.chunk_by(within).flat_map(|pixel| {
            let bytes = || pixel.iter().map(of);
            let at = x(pixel[0].seconds).floor();
            let ends = [bytes().min(), bytes().max()].into_iter().flatten();
            ends.map(move |bytes| format!("{at},{:.1}", y(bytes as f64)))
        });
        points.collect::<Vec<_>>().join(" ")
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\"><rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/><text x=\"{LEFT}\" y=\"24\" font-size=\"16\">Pool memory under adversarial \
         load beside a greedy neighbour, {device}</text>"
    );
    // Writing to a string can't fail.
    for (index, (name, colour)) in [
        ("held by the pool", "#0072b2"),
        ("leased to batches", "#e69f00"),
        ("free on the card", "#999999"),
    ]
    .into_iter()
    .enumerate()
    {
        let at = LEFT + 180.0 * index as f64;
        let _ = write!(
            svg,
            "<rect x=\"{at}\" y=\"36\" width=\"14\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"46\">{name}</text>",
            at + 20.0
        );
    }
    let gib = f64::from(1 << 30);
    for tick in 0..=results::whole(most / gib / 20.0) {
        let bytes = tick as f64 * 20.0 * gib;
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\" stroke=\"#e5e5e5\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{} GiB</text>",
            WIDTH - 20.0,
            LEFT - 6.0,
            y(bytes) + 4.0,
            tick * 20,
            y = y(bytes),
        );
    }
    for minute in 0..=results::whole(last / 60.0) {
        let at = x(minute as f64 * 60.0);
        let _ = write!(
            svg,
            "<text x=\"{at}\" y=\"{}\" text-anchor=\"middle\">{minute} min</text>",
            HEIGHT - BOTTOM + 20.0
        );
    }
    let _ = write!(
        svg,
        "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{b}\" y2=\"{b}\" stroke=\"#d55e00\" \
         stroke-dasharray=\"6 4\"/><text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#d55e00\">\
         budget</text>",
        WIDTH - 20.0,
        WIDTH - 22.0,
        y(budget as f64) - 5.0,
        b = y(budget as f64),
    );
    for (colour, of) in [
        ("#999999", &(|s: &Sample| s.device_free_bytes) as &dyn Fn(&Sample) -> usize),
        ("#0072b2", &|s: &Sample| s.held_bytes),
        ("#e69f00", &|s: &Sample| s.leased_bytes),
    ] {
        let _ = write!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1\" points=\"{}\"/>",
            line(of)
        );
    }
    svg + "</svg>\n"
}
