//! The table and the picture.

use std::fmt::Write;

use vecmill_lab::svg::axis::Decades;
use vecmill_lab::svg::{Anchor, Area, COLOURS, Font, INK, NAME, Path, SMALL, Svg};

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
const TOP: f64 = 84.0;
const PANEL: f64 = 236.0;
const GAP: f64 = 94.0;

const TITLE: Font = Font { size: 16, bold: false, colour: INK };

/// A panel of the picture: what it shows of a run, on a logarithmic scale.
struct Panel {
    title: &'static str,
    of: fn(&Figures) -> f64,
}

const PANELS: [Panel; 2] = [
    Panel { title: "p99 of the latency", of: |figures| figures.p99_ms },
    Panel { title: "mean wait", of: |figures| figures.mean_wait_ms },
];

/// Bars for each policy, by devices and load, as SVG.
pub(super) fn draw(rows: &[Row]) -> String {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.load.is_some()).collect();
    let groups: Vec<&[&Row]> =
        rows.chunk_by(|a, b| a.devices == b.devices && a.load == b.load).collect();
    let title = "Policies on simulated devices of unequal speed, by load";
    let mut svg = Svg::default();
    svg.text((LEFT, 24.0), Anchor::Start, TITLE, title);
    for (index, row) in groups.first().into_iter().flat_map(|group| group.iter()).enumerate() {
        let x = LEFT + 180.0 * index as f64;
        let mut path = Path::default();
        path.rectangle(Area { x, y: 36.0, width: 14.0, height: 10.0 });
        svg.path(&path, colour(index), "");
        svg.text((x + 20.0, 46.0), Anchor::Start, SMALL, &row.policy);
    }
    for (index, panel) in PANELS.iter().enumerate() {
        let (y, width) = (TOP + index as f64 * (PANEL + GAP), WIDTH - LEFT - 20.0);
        draw_panel(&mut svg, panel, &groups, Area { x: LEFT, y, width, height: PANEL });
    }
    svg.finish(WIDTH, TOP + PANELS.len() as f64 * (PANEL + GAP), title)
}

fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

fn draw_panel(svg: &mut Svg, panel: &Panel, groups: &[&[&Row]], area: Area) {
    let rows = groups.iter().flat_map(|group| group.iter());
    // From a millisecond on: what is less is as good as none.
    let decades = Decades::around(rows.map(|row| (panel.of)(&row.figures)).chain([1.0]));
    svg.text((area.x, area.y - 10.0), Anchor::Start, NAME, panel.title);
    decades.draw_left(svg, area, "ms");
    let width = area.width / groups.len().max(1) as f64;
    for (place, group) in groups.iter().enumerate() {
        let left = area.x + width * place as f64;
        let bar = 0.8 * width / group.len().max(1) as f64;
        for (index, row) in group.iter().enumerate() {
            let y = decades.at(area, (panel.of)(&row.figures));
            let x = left + 0.1 * width + bar * index as f64;
            let mut path = Path::default();
            path.rectangle(Area { x, y, width: bar * 0.9, height: area.bottom() - y });
            svg.path(&path, colour(index), "");
        }
        if let Some(row) = group.first() {
            let middle = left + width / 2.0;
            let font = Font { colour: INK, ..SMALL };
            svg.text((middle, area.bottom() + 18.0), Anchor::Middle, font, &names(row));
            let load = format!("at {}", load(row));
            svg.text((middle, area.bottom() + 34.0), Anchor::Middle, SMALL, &load);
        }
    }
}
