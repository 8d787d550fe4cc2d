//! How much was asked for, handed out and held, over time.

use vecmill_lab::svg::axis::{Marks, Scale, draw_below, draw_left};
use vecmill_lab::svg::{Area, Path, Svg};

use super::super::report::Report;
use super::super::series::{Sample, Series};
use super::{ASKED, BUDGET, Frame, IDLE, INK, ROUNDED};

/// One of a sample's values.
type Value = fn(&Sample) -> usize;

/// What is drawn, from the back to the front: each hides what is below it.
const LAYERS: [(Value, &str); 3] = [
    (|sample| sample.held_bytes, IDLE),
    (|sample| sample.leased_bytes, ROUNDED),
    (|sample| sample.requested_bytes, ASKED),
];

/// Draws a report's curves.
pub(super) fn draw(svg: &mut Svg, area: Area, report: &Report, frame: &Frame<'_>) {
    draw_left(svg, area, frame.held_marks, frame.held);
    let across = Scale::across(area, 0.0, frame.nanoseconds);
    let up = Scale::up(area, frame.held);
    for (value, colour) in LAYERS {
        svg.path(&outline(&report.series, value, across, up), colour, "");
    }
    if !report.map.complete {
        mark_window(svg, area, across, report);
    }
    if let Some(budget) = frame.budget {
        let y = up.at(budget);
        svg.line((area.x, y), (area.right(), y), BUDGET, true);
    }
    let marks = Marks::time(frame.nanoseconds, frame.time_marks);
    draw_below(svg, area, marks, 0.0, frame.nanoseconds);
}

fn outline(series: &Series, value: Value, across: Scale, up: Scale) -> Path {
    let mut path = Path::default();
    if series.bins.is_empty() {
        return path;
    }
    let start = |bin: usize| across.at(bin as f64 * series.bin_nanoseconds as f64);
    path.start(start(0), up.at(0.0));
    let mut last = 0;
    for (index, bin) in series.bins.iter().enumerate() {
        let value = value(bin);
        if value != last {
            path.across(start(index));
            path.up_or_down(up.at(value as f64));
            last = value;
        }
    }
    path.across(start(series.bins.len()));
    path.up_or_down(up.at(0.0));
    path.close();
    path
}

/// Shows which part of the time the map below is of.
fn mark_window(svg: &mut Svg, area: Area, across: Scale, report: &Report) {
    for moment in [report.map.from, report.map.to] {
        let x = across.at(moment as f64);
        svg.line((x, area.y), (x, area.bottom()), INK, false);
    }
}
