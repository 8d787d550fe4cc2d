//! Where each lease lay, and for how long.

use vecmill_lab::svg::axis::{Marks, Scale, draw_below, draw_left};
use vecmill_lab::svg::{Area, Path, Svg};

use super::super::addresses::{AddressMap, Arrangement, Piece};
use super::{COLOURS, Frame, IDLE};

/// Pieces narrower than this on average are drawn without gaps, which would hide them.
const MIN_WIDTH_FOR_GAPS: f64 = 4.0;

/// Draws a map whose pieces are at `arrangement`.
pub(super) fn draw(
    svg: &mut Svg,
    area: Area,
    map: &AddressMap,
    arrangement: &Arrangement,
    frame: &Frame<'_>,
) {
    draw_left(svg, area, frame.map_marks, frame.map);
    let (from, to) = (map.from as f64, map.to as f64);
    let (across, up) = (Scale::across(area, from, to), Scale::up(area, frame.map));
    let place = |piece: &Piece, offset: u64, bytes: usize| {
        let (left, right) = (across.at(piece.from as f64), across.at(piece.to as f64));
        let (low, high) = (up.at(offset as f64), up.at(offset as f64 + bytes as f64));
        Area { x: left, y: high, width: (right - left).max(0.3), height: low - high }
    };
    let mut idle = Path::default();
    let mut given: Vec<Path> = COLOURS.iter().map(|_| Path::default()).collect();
    let mut asked: Vec<Path> = COLOURS.iter().map(|_| Path::default()).collect();
    let mut wide = 0.0;
    for (piece, &offset) in map.pieces.iter().zip(&arrangement.offsets) {
        let whole = place(piece, offset, piece.bytes);
        let Some((stream, bytes)) = piece.lease else {
            idle.rectangle(whole);
            continue;
        };
        let stream = frame.colour(stream);
        given[stream].rectangle(whole);
        asked[stream].rectangle(place(piece, offset, bytes.min(piece.bytes)));
        wide += whole.width;
    }
    let leases = map.pieces.iter().filter(|piece| piece.lease.is_some()).count();
    let gaps = wide > MIN_WIDTH_FOR_GAPS * leases as f64;
    let look = if gaps { r##" stroke="#ffffff" stroke-width="0.5""## } else { "" };
    svg.path(&idle, IDLE, r##" stroke="#ffffff" stroke-width="0.5""##);
    for ((given, asked), colour) in given.iter().zip(&asked).zip(COLOURS) {
        svg.path(given, colour, &format!(r#" fill-opacity="0.4"{look}"#));
        svg.path(asked, colour, look);
    }
    draw_below(svg, area, Marks::time(to - from, frame.time_marks), from, to);
}
