//! Reports side by side, for a terminal.

use std::fmt::Write;

use vecmill_lab::units::{bytes, count, percent, time};

use super::report::Report;

/// A line of the table: what it is called, and what it says of a report.
type Line = (&'static str, fn(&Report) -> String);

const LINES: [Line; 15] = [
    ("leases given", |report| count(report.leases)),
    ("leases refused", |report| count(report.refusals)),
    ("refused with room", |report| count(report.refusals_with_room)),
    ("peak asked for", |report| bytes(report.peak_requested_bytes as f64)),
    ("peak held", |report| bytes(report.peak_held_bytes as f64)),
    ("mean held", |report| bytes(report.mean_held_bytes)),
    ("held at the end", |report| bytes(report.end_held_bytes as f64)),
    ("utilisation loss", |report| percent(report.utilisation_loss())),
    ("external frag., mean", |report| percent(report.mean_external_fragmentation)),
    ("external frag., max", |report| percent(report.max_external_fragmentation)),
    ("given per asked, mean", |report| format!("{:.3}", report.mean_internal_fragmentation)),
    ("given per asked, peak", |report| format!("{:.3}", report.peak_internal_fragmentation)),
    ("warm leases", |report| percent(report.warm_ratio())),
    ("lease+return, p50", |report| time(report.median_time)),
    ("lease+return, p99", |report| time(report.p99_time)),
];

/// The table of `reports`.
pub(super) fn of(reports: &[Report]) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let row = |title: &str, cell: &dyn Fn(&Report) -> String| {
        std::iter::once(title.to_owned()).chain(reports.iter().map(cell)).collect()
    };
    rows.push(row("", &|report| report.name.clone()));
    for (title, cell) in LINES {
        rows.push(row(title, &cell));
    }
    for kind in kinds(reports) {
        rows.push(row(&format!("driver calls: {kind}"), &|report| {
            let calls = report.driver_calls.iter().find(|(name, _)| *name == kind);
            calls.map_or_else(|| "-".to_owned(), |(_, calls)| count(*calls))
        }));
    }
    align(&rows)
}

/// The kinds of driver calls in any report, in the order in which they come.
fn kinds(reports: &[Report]) -> Vec<&'static str> {
    let mut kinds = Vec::new();
    for (kind, _) in reports.iter().flat_map(|report| &report.driver_calls) {
        if !kinds.contains(kind) {
            kinds.push(*kind);
        }
    }
    kinds
}

/// The first column to the left, the others to the right, as wide as they need.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (index, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            // Writing to a string can't fail.
            let _ = match index {
                0 => write!(text, "{cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    text
}
