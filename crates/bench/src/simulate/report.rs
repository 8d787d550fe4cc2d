//! The table and the picture.

use std::fmt::Write;

use super::Row;
use super::figures::Figures;

/// A table of all rows, grouped by devices and load.
pub(super) fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:16} {:5} {:16} {:>9} {:>9} {:>9} {:>9} {:>8} {:>6}  busy",
        "devices", "load", "policy", "wait ms", "p50 ms", "p99 ms", "ktok/s", "of least", "spread"
    );
    for row in rows {
        let figures = &row.figures;
        let least = row.of_least_makespan.map_or(String::new(), |ratio| format!("{ratio:.3}"));
        // Writing to a string can't fail.
        let _ = write!(
            text,
            "\n{:16} {:5} {:16} {:9.1} {:9.1} {:9.1} {:9.0} {least:>8} {:6.2}  {}",
            names(row),
            load(row),
            row.policy,
            figures.mean_wait_ms,
            figures.p50_ms,
            figures.p99_ms,
            figures.tokens_per_second / 1e3,
            figures.spread,
            busy(&figures.busy),
        );
    }
    text
}

/// The most devices that are listed one by one.
const LISTED: usize = 8;

fn names(row: &Row) -> String {
    if row.devices.len() > LISTED {
        let (least, most) = ends(&row.devices);
        return format!("{} of {least}–{most}", row.devices.len());
    }
    row.devices.iter().map(f64::to_string).collect::<Vec<_>>().join(":")
}

fn busy(shares: &[f64]) -> String {
    if shares.len() > LISTED {
        let (least, most) = ends(shares);
        return format!("{least:.2}–{most:.2}");
    }
    shares.iter().map(|share| format!("{share:.2}")).collect::<Vec<_>>().join(" ")
}

/// The least and the largest.
fn ends(values: &[f64]) -> (f64, f64) {
    let fold = |start, choose: fn(f64, f64) -> f64| values.iter().copied().fold(start, choose);
    (fold(f64::INFINITY, f64::min), fold(f64::NEG_INFINITY, f64::max))
}

fn load(row: &Row) -> String {
    row.load.map_or("bulk".to_owned(), |load| ((load * 1e3).round() / 1e3).to_string())
}

const WIDTH: f64 = 1100.0;
const LEFT: f64 = 90.0;
const TOP: f64 = 70.0;
const PANEL: f64 = 260.0;
const GAP: f64 = 70.0;
const COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#999999", "#d55e00", "#cc79a7"];

/// A panel of the picture: what it shows of a run, on a logarithmic scale.
struct Panel {
    title: &'static str,
    of: fn(&Figures) -> f64,
}

const PANELS: [Panel; 2] = [
    Panel { title: "p99 of the latency, ms", of: |figures| figures.p99_ms },
    Panel { title: "mean wait, ms", of: |figures| figures.mean_wait_ms },
];

/// Bars for each policy, by devices and load, as SVG.
pub(super) fn draw(rows: &[Row]) -> String {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.load.is_some()).collect();
    let groups: Vec<&[&Row]> =
        rows.chunk_by(|a, b| a.devices == b.devices && a.load == b.load).collect();
    let height = TOP + PANELS.len() as f64 * (PANEL + GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\"><rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/><text x=\"{LEFT}\" y=\"24\" font-size=\"16\">Policies on simulated \
         devices of unequal speed, by load</text>"
    );
    // Writing to a string can't fail.
    for (index, row) in groups.first().into_iter().flat_map(|group| group.iter()).enumerate() {
        let x = LEFT + 180.0 * index as f64;
        let _ = write!(
            svg,
            "<rect x=\"{x}\" y=\"36\" width=\"14\" height=\"10\" fill=\"{}\"/>\
             <text x=\"{}\" y=\"46\">{}</text>",
            colour(index),
            x + 20.0,
            row.policy
        );
    }
    for (index, panel) in PANELS.iter().enumerate() {
        draw_panel(&mut svg, panel, &groups, TOP + index as f64 * (PANEL + GAP));
    }
    svg + "</svg>\n"
}

fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

fn draw_panel(svg: &mut String, panel: &Panel, groups: &[&[&Row]], top: f64) {
    let values =
        || groups.iter().flat_map(|group| group.iter()).map(|row| (panel.of)(&row.figures));
    let most = values().fold(1.0, f64::max).log10().ceil().max(1.0);
    let bottom = top + PANEL;
    let y = |value: f64| bottom - (PANEL - 24.0) * (value.max(1.0).log10() / most);
    let _ = write!(
        svg,
        "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}</text>",
        top + 12.0,
        panel.title
    );
    for power in 0..=vecmill_lab::results::whole(most) {
        let value = 10f64.powf(power as f64);
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#e5e5e5\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            WIDTH - 20.0,
            LEFT - 6.0,
            y(value) + 4.0,
            y = y(value),
        );
    }
    let width = (WIDTH - LEFT - 20.0) / groups.len().max(1) as f64;
    for (place, group) in groups.iter().enumerate() {
        let x = LEFT + width * place as f64;
        let bar = 0.8 * width / group.len().max(1) as f64;
        for (index, row) in group.iter().enumerate() {
            let value = y((panel.of)(&row.figures));
            let _ = write!(
                svg,
                "<rect x=\"{:.1}\" y=\"{value:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>",
                x + 0.1 * width + bar * index as f64,
                bar * 0.9,
                bottom - value,
                colour(index)
            );
        }
        if let Some(row) = group.first() {
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
                 <text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666\">at {}</text>",
                x + width / 2.0,
                bottom + 18.0,
                names(row),
                x + width / 2.0,
                bottom + 34.0,
                load(row)
            );
        }
    }
}
