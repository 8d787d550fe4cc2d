//! What the colours mean.

use vecmill_lab::svg::{Anchor, Area, Path, Svg};
use vecmill_lab::units::{bytes, count};

use super::super::Comparison;
use super::{ASKED, BUDGET, COLOURS, Frame, IDLE, MARGIN, ROUNDED, TEXT, WIDTH};

const BOX: f64 = 14.0;
const LINE: f64 = 22.0;

/// Entries beside each other, in as many lines as they need.
struct Legend<'a> {
    svg: &'a mut Svg,
    x: f64,
    y: f64,
}

impl Legend<'_> {
    fn entry(&mut self, colour: &str, opacity: f64, text: &str) {
        let (x, y) = self.place(text);
        let mut path = Path::default();
        path.rectangle(Area { x, y, width: BOX, height: BOX });
        self.svg.path(&path, colour, &format!(r#" fill-opacity="{opacity}""#));
    }

    fn line(&mut self, colour: &str, text: &str) {
        let (x, y) = self.place(text);
        let middle = y + BOX / 2.0;
        self.svg.line((x - 5.0, middle), (x + BOX + 3.0, middle), colour, true);
    }

    /// Writes `text` and returns the place for what it explains.
    fn place(&mut self, text: &str) -> (f64, f64) {
        // No font is measured here: this is wide enough for the usual ones.
        let width = 44.0 + 7.0 * text.chars().count() as f64;
        if self.x + width > WIDTH - MARGIN {
            (self.x, self.y) = (MARGIN, self.y + LINE);
        }
        let place = (self.x, self.y);
        self.svg.text((self.x + 22.0, self.y + 12.0), Anchor::Start, TEXT, text);
        self.x += width;
        place
    }
}

/// Explains the curves, and returns where it ends.
pub(super) fn of_curves(svg: &mut Svg, y: f64, budget: Option<usize>, frame: &Frame<'_>) -> f64 {
    let mut legend = Legend { svg, x: MARGIN, y };
    legend.entry(ASKED, 1.0, "asked for");
    legend.entry(ROUNDED, 1.0, "handed out beyond that");
    legend.entry(IDLE, 1.0, "held, but idle");
    if let Some(budget) = budget {
        let above = if frame.budget.is_none() { ", far above" } else { "" };
        legend.line(BUDGET, &format!("budget: {}{above}", bytes(budget as f64)));
    }
    legend.y + BOX
}

/// Explains the maps, and returns where it ends.
pub(super) fn of_maps(svg: &mut Svg, y: f64, comparison: &Comparison) -> f64 {
    let partly = comparison.reports.iter().find(|report| !report.map.complete);
    let text = "From left to right: time. From bottom to top: addresses; those in use by nobody take no space.";
    svg.text((MARGIN, y + 8.0), Anchor::Start, TEXT, text);
    let mut y = y + LINE;
    if let Some(report) = partly {
        let leases = report.map.pieces.iter().filter(|piece| piece.lease.is_some()).count();
        let text = format!(
            "Only the {} leases around the moment when most was asked for: between the upright lines above.",
            count(leases as u64)
        );
        svg.text((MARGIN, y + 8.0), Anchor::Start, TEXT, &text);
        y += LINE;
    }
    let mut legend = Legend { svg, x: MARGIN, y };
    for (index, colour) in COLOURS.iter().enumerate() {
        let streams: Vec<u32> =
            comparison.streams.iter().copied().skip(index).step_by(COLOURS.len()).collect();
        match streams[..] {
            [] => {}
            [stream] => legend.entry(colour, 1.0, &format!("stream {stream}")),
            [first, second] => legend.entry(colour, 1.0, &format!("streams {first}, {second}")),
            [first, ..] => legend.entry(colour, 1.0, &format!("streams {first}, …")),
        }
    }
    legend.entry(COLOURS[0], 0.4, "pale: beyond what was asked for");
    legend.entry(IDLE, 1.0, "held, but idle");
    legend.y + BOX
}
