//! A comparison as a picture: what each manager held over time, and where each lease lay in it.
//!
//! - `occupancy` draws the curves, `addresses` the maps, `legend` says what their colours mean;
//!   this file arranges them: a column for each manager, all with the same scales, so that heights
//!   can be compared across.

mod addresses;
mod legend;
mod occupancy;

use std::time::Duration;

use vecmill_lab::svg::axis::Marks;
use vecmill_lab::svg::{Anchor, Area, COLOURS, Font, INK, MUTED, NAME, SMALL, Svg};
use vecmill_lab::units::{bytes, count, time};

use super::addresses::{Arrangement, arrange};
use super::{Comparison, Report};

const ASKED: &str = "#3d4b63";
const ROUNDED: &str = "#8fa6c8";
const IDLE: &str = "#d5dae1";
const BUDGET: &str = "#b3261e";

const TITLE: Font = Font { size: 20, bold: true, colour: INK };
const HEADING: Font = Font { size: 15, bold: true, colour: INK };
const TEXT: Font = Font { size: 13, bold: false, colour: MUTED };

const WIDTH: f64 = 1280.0;
const MARGIN: f64 = 28.0;
const LABELS: f64 = 48.0; // left of each panel
const GAP: f64 = 20.0; // between columns
const CURVES: f64 = 190.0; // height of a panel of curves
const MAP: f64 = 280.0; // height of a map
const ABOVE: f64 = 58.0; // a panel's name and figures
const BELOW: f64 = 54.0; // a panel's time axis
const COLUMNS: usize = 3;

/// What all panels have in common.
struct Frame<'a> {
    streams: &'a [u32],
    nanoseconds: f64,
    time_marks: f64,
    held: f64,
    held_marks: Marks,
    map: f64,
    map_marks: Marks,
    budget: Option<f64>,
}

impl Frame<'_> {
    /// Which of [`COLOURS`] a stream has: they are dealt out in order of the streams' numbers.
    fn colour(&self, stream: u32) -> usize {
        self.streams.binary_search(&stream).unwrap_or(0) % COLOURS.len()
    }
}

/// Draws a comparison.
pub(super) fn comparison(comparison: &Comparison) -> String {
    let reports = &comparison.reports;
    let arrangements: Vec<Arrangement> =
        reports.iter().map(|report| arrange(&report.map)).collect();
    let frame = frame(comparison, &arrangements);
    let mut svg = Svg::default();
    let mut y = title(&mut svg, comparison);

    y = heading(&mut svg, y, "How much memory was held");
    y = legend::of_curves(&mut svg, y, comparison.budget, &frame);
    for row in reports.chunks(COLUMNS) {
        for (report, area) in row.iter().zip(panels(y, row.len(), CURVES)) {
            let held = bytes(report.peak_held_bytes as f64);
            let asked = bytes(report.peak_requested_bytes as f64);
            name(&mut svg, area, report, &format!("at most {held} held for {asked} asked for"));
            occupancy::draw(&mut svg, area, report, &frame);
        }
        y += ABOVE + CURVES + BELOW;
    }

    y = heading(&mut svg, y - 4.0, "Where each lease lay");
    y = legend::of_maps(&mut svg, y, comparison);
    let columns: Vec<_> = reports.iter().zip(&arrangements).collect();
    for row in columns.chunks(COLUMNS) {
        for ((report, arrangement), area) in row.iter().zip(panels(y, row.len(), MAP)) {
            name(&mut svg, area, report, &calls(report));
            addresses::draw(&mut svg, area, &report.map, arrangement, &frame);
        }
        y += ABOVE + MAP + BELOW;
    }
    svg.finish(WIDTH, y + 8.0, "Device memory over time")
}

/// Scales that suit every report.
fn frame<'a>(comparison: &'a Comparison, arrangements: &[Arrangement]) -> Frame<'a> {
    let reports = &comparison.reports;
    let held = reports.iter().map(|report| report.peak_held_bytes).max().unwrap_or(0);
    // A budget that is far above everything would flatten the curves: it is left out.
    let budget = comparison.budget.filter(|&budget| budget <= held.saturating_mul(3));
    let highest = held.max(budget.unwrap_or(0)) as f64;
    let held_marks = Marks::bytes(highest);
    let map = arrangements.iter().map(|arrangement| arrangement.height).max().unwrap_or(0) as f64;
    let map_marks = Marks::bytes(map);
    Frame {
        streams: &comparison.streams,
        nanoseconds: comparison.nanoseconds as f64,
        time_marks: if reports.len() > 1 { 6.0 } else { 12.0 },
        held: held_marks.above(highest.max(1.0)),
        held_marks,
        map: map_marks.above(map.max(1.0)),
        map_marks,
        budget: budget.map(|budget| budget as f64),
    }
}

/// The areas of `count` panels side by side, below their names that begin at `y`.
fn panels(y: f64, count: usize, height: f64) -> impl Iterator<Item = Area> {
    let columns = count.max(1) as f64;
    let width = (WIDTH - 2.0 * MARGIN - GAP * (columns - 1.0)) / columns;
    (0..count).map(move |column| Area {
        x: MARGIN + (width + GAP) * column as f64 + LABELS,
        y: y + ABOVE,
        width: width - LABELS,
        height,
    })
}

fn title(svg: &mut Svg, comparison: &Comparison) -> f64 {
    svg.text((MARGIN, 42.0), Anchor::Start, TITLE, "Device memory over time");
    let asked = comparison.reports.first().map_or(0, |report| report.leases + report.refusals);
    let duration = time(Duration::from_nanos(comparison.nanoseconds));
    let streams = match comparison.streams.len() {
        1 => "1 stream".to_owned(),
        streams => format!("{streams} streams"),
    };
    let mut text = format!("{} leases for {streams} within {duration}", count(asked));
    if comparison.reports.len() > 1 {
        let ways = comparison.reports.len();
        text.push_str(&format!(
            ", the same for each of {ways} ways to manage memory. Heights can be compared across."
        ));
    }
    svg.text((MARGIN, 66.0), Anchor::Start, TEXT, &text);
    80.0
}

fn heading(svg: &mut Svg, y: f64, text: &str) -> f64 {
    svg.text((MARGIN, y + 28.0), Anchor::Start, HEADING, text);
    y + 40.0
}

fn name(svg: &mut Svg, area: Area, report: &Report, figures: &str) {
    svg.text((area.x, area.y - 28.0), Anchor::Start, NAME, &report.name);
    svg.text((area.x, area.y - 10.0), Anchor::Start, SMALL, figures);
}

/// The figures above a map.
fn calls(report: &Report) -> String {
    let calls = report.driver_calls.iter().map(|(_, calls)| calls).sum();
    let mut text = format!("{} driver calls for {} leases", count(calls), count(report.leases));
    if report.refusals > 0 {
        text.push_str(&format!(", {} refused", count(report.refusals)));
    }
    text
}
