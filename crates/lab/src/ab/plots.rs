//! The plots of a report, each an SVG of its own.

use super::bootstrap;
use super::figures::{Figures, NINES, nines};
use super::observer::divided;
use super::report::Report;
use crate::svg::axis::{Decades, Marks, Scale, draw_below, draw_left};
use crate::svg::{Anchor, Area, Path, Svg};
use crate::svg::{COLOURS, INK, NAME, SMALL};

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 330.0;
const AREA: Area = Area { x: 70.0, y: 72.0, width: 470.0, height: 196.0 };

/// Marks on an upright scale.
const MARKS: f64 = 5.0;

/// The colour of an arm or device, in the order of their names.
fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

/// An empty plot with its name and what its colours mean.
fn plot<'a>(title: &str, names: impl Iterator<Item = &'a str>) -> Svg {
    let mut svg = Svg::default();
    svg.text((20.0, 24.0), Anchor::Start, NAME, title);
    let mut x = AREA.x;
    for (index, name) in names.enumerate() {
        let mut path = Path::default();
        path.circle(x + 5.0, 41.0, 5.0);
        svg.path(&path, colour(index), "");
        svg.text((x + 15.0, 45.0), Anchor::Start, SMALL, name);
        x += 34.0 + 6.8 * name.chars().count() as f64;
    }
    svg
}

fn stroke(svg: &mut Svg, path: &Path, colour: &str, width: f64, opacity: f64) {
    let look = format!(
        r#" stroke="{colour}" stroke-width="{width}" stroke-opacity="{opacity}" stroke-linejoin="round""#
    );
    svg.path(path, "none", &look);
}

/// A curve through points.
fn curve(points: impl Iterator<Item = (f64, f64)>) -> Path {
    let mut path = Path::default();
    for (index, (x, y)) in points.enumerate() {
        if index == 0 { path.start(x, y) } else { path.to(x, y) }
    }
    path
}

/// A dot for each pass, from left to right as they were taken, and the mean with its interval.
pub(super) fn dots(
    title: &str,
    unit: &'static str,
    policies: &[String],
    arms: &[Vec<f64>],
) -> String {
    let names = policies.iter().map(String::as_str);
    let mut svg = plot(title, names);
    let highest = arms.iter().flatten().copied().fold(0.0, f64::max);
    let marks = Marks::numbers(highest * 1.05, MARKS, unit);
    let high = marks.above(highest * 1.05).max(f64::MIN_POSITIVE);
    draw_left(&mut svg, AREA, marks, high);
    let up = Scale::up(AREA, high);
    let column = AREA.width / arms.len() as f64;
    for (arm, values) in arms.iter().enumerate() {
        let left = AREA.x + column * arm as f64;
        let step = column * 0.6 / values.len().max(1) as f64;
        let mut path = Path::default();
        for (index, value) in values.iter().enumerate() {
            path.circle(left + column * 0.1 + step * (index as f64 + 0.5), up.at(*value), 4.0);
        }
        svg.path(&path, colour(arm), r#" fill-opacity="0.75""#);
        if let Some(estimate) = bootstrap::mean(values) {
            let x = left + column * 0.84;
            let (low, mean, top) =
                (up.at(estimate.low), up.at(estimate.value), up.at(estimate.high));
            let mut path = curve([(x, low), (x, top)].into_iter());
            for (y, half) in [(low, 6.0), (top, 6.0), (mean, 12.0)] {
                path.start(x - half, y);
                path.to(x + half, y);
            }
            stroke(&mut svg, &path, colour(arm), 2.0, 1.0);
        }
    }
    base(&mut svg, "passes in their order; right of them the mean and its 95 % interval");
    svg.finish(WIDTH, HEIGHT, title)
}

/// A line below the plot, and what is below it.
fn base(svg: &mut Svg, text: &str) {
    svg.line((AREA.x, AREA.bottom()), (AREA.right(), AREA.bottom()), INK, false);
    svg.text((AREA.x, AREA.bottom() + 33.0), Anchor::Start, SMALL, text);
}

/// The devices' busy shares over an arm's passes: their mean at each part of the pass.
pub(super) fn busy(policy: &str, passes: &[&Figures]) -> String {
    let title = format!("Busy share of each device over a pass: {policy}");
    let devices = passes.first().map_or(&[][..], |pass| &pass.devices);
    let mut svg = plot(&title, devices.iter().map(|device| device.name.as_str()));
    draw_left(&mut svg, AREA, Marks::numbers(100.0, MARKS, "%"), 100.0);
    let up = Scale::up(AREA, 100.0);
    let count = passes.len().max(1) as f64;
    let seconds = passes.iter().map(|pass| pass.seconds).sum::<f64>() / count;
    for device in 0..devices.len() {
        let shares: Vec<&[f64]> =
            passes.iter().map(|pass| &pass.devices[device].busy_shares[..]).collect();
        // Passes of bulk work last as long as they last: they are laid over each other as a whole.
        let slices = shares.iter().map(|shares| shares.len()).max().unwrap_or(0);
        let across = Scale::across(AREA, 0.0, slices as f64);
        let mean = |slice: usize| {
            let at = |shares: &&[f64]| shares.get(slice * shares.len() / slices).copied();
            100.0 * divided(shares.iter().filter_map(at).sum(), count)
        };
        let points = (0..slices).map(|slice| (across.at(slice as f64 + 0.5), up.at(mean(slice))));
        stroke(&mut svg, &curve(points), colour(device), 2.0, 1.0);
    }
    draw_below(&mut svg, AREA, Marks::time(seconds * 1e9, 8.0), 0.0, seconds * 1e9);
    svg.finish(WIDTH, HEIGHT, &title)
}

/// Latency at each percentile: a thin line for each pass, a thick one for their mean.
pub(super) fn latencies(report: &Report) -> String {
    let title = "Latency by percentile, from when a request was due";
    let policies = &report.experiment.policies;
    let mut svg = plot(title, policies.iter().map(String::as_str));
    let all = || report.passes.iter().flat_map(|pass| &pass.curve).map(|seconds| seconds * 1e3);
    let decades = Decades::around(all());
    decades.draw_left(&mut svg, AREA, "ms");
    let across = Scale::across(AREA, 0.0, NINES as f64);
    for (at, label) in [(0.0, "0"), (0.301, "50 %"), (1.0, "90 %"), (2.0, "99 %"), (3.0, "99.9 %")]
    {
        let x = across.at(at);
        svg.line((x, AREA.bottom()), (x, AREA.bottom() + 4.0), INK, false);
        svg.text((x, AREA.bottom() + 17.0), Anchor::Middle, SMALL, label);
    }
    for (arm, policy) in policies.iter().enumerate() {
        let passes = report.passes_of(policy);
        let points = passes.iter().map(|pass| pass.curve.len()).min().unwrap_or(0);
        let draw = |of: &dyn Fn(usize) -> f64| {
            let y = |seconds: f64| decades.at(AREA, seconds * 1e3);
            curve((0..points).map(|point| (across.at(nines(point)), y(of(point)))))
        };
        for pass in &passes {
            stroke(&mut svg, &draw(&|point| pass.curve[point]), colour(arm), 1.0, 0.35);
        }
        let count = passes.len() as f64;
        let mean = |point: usize| divided(passes.iter().map(|pass| pass.curve[point]).sum(), count);
        stroke(&mut svg, &draw(&mean), colour(arm), 2.5, 1.0);
    }
    base(&mut svg, "percentile; thin: passes, thick: their mean");
    svg.finish(WIDTH, HEIGHT, title)
}
