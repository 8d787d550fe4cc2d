//! Where leases lay over time: what is seen of a manager's blocks, and how it is arranged to be
//! drawn.

use std::collections::{BTreeMap, HashMap};

use super::manager::Placed;
use vecmill_memory::recording::{Event, Recording, What};

/// What a manager held where, during a part of a recording.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AddressMap {
    /// When the part begins, in nanoseconds since the recording's first event.
    pub(crate) from: u64,
    /// When it ends.
    pub(crate) to: u64,
    /// Whether it is the whole recording.
    pub(crate) complete: bool,
    /// Everything held in that time, in order of its end.
    pub(crate) pieces: Vec<Piece>,
}

/// A piece of memory for as long as its use did not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Its first byte on the device.
    pub(crate) address: u64,
    /// Its size.
    pub(crate) bytes: usize,
    /// The stream and the bytes asked for of the lease that had it; `None` while it was idle.
    pub(crate) lease: Option<(u32, usize)>,
    /// Since when, in nanoseconds since the recording's first event.
    pub(crate) from: u64,
    /// Until when.
    pub(crate) to: u64,
}

/// The events to map: all, or of a recording with more than `leases` leases that many around the
/// moment when most was asked for. As a range of indices.
pub(super) fn window(recording: &Recording, leases: usize) -> std::ops::Range<usize> {
    let (mut live, mut requested, mut highest) = (HashMap::new(), 0usize, 0);
    let (mut total, mut peak) = (0, 0);
    for event in &recording.events {
        match event.what {
            What::Lease { id, bytes, .. } => {
                requested = requested.saturating_add(bytes);
                live.insert(id, bytes);
                if requested > highest {
                    (highest, peak) = (requested, total);
                }
                total += 1;
            }
            What::Return { id } => {
                requested = requested.saturating_sub(live.remove(&id).unwrap_or(0));
            }
            _ => {}
        }
    }
    if total <= leases {
        return 0..recording.events.len();
    }
    if leases == 0 {
        return 0..0;
    }
    let first = peak.saturating_sub(leases / 2).min(total - leases);
    let is_lease = |event: &Event| matches!(event.what, What::Lease { .. });
    let events = recording.events.iter().enumerate();
    let mut shown = events.filter(|(_, event)| is_lease(event)).map(|(index, _)| index);
    let start = shown.nth(first).unwrap_or(0);
    let end = if leases > 1 { shown.nth(leases - 2).unwrap_or(start) } else { start };
    start..end + 1
}

/// Watches a manager's blocks.
#[derive(Debug, Default)]
pub(super) struct Watch {
    map: AddressMap,
    open: BTreeMap<u64, Seen>,
    started: bool,
}

/// A block as it was seen first, and since when.
#[derive(Debug)]
struct Seen {
    bytes: usize,
    id: Option<u64>,
    lease: Option<(u32, usize)>,
    since: u64,
}

impl Watch {
    /// Takes note of the blocks as they are at `now`. `live` says for which stream leases are and
    /// what they asked for.
    pub(super) fn see(
        &mut self,
        now: u64,
        blocks: Vec<Placed>,
        live: impl Fn(u64) -> Option<(u32, usize)>,
    ) {
        if !self.started {
            (self.started, self.map.from) = (true, now);
        }
        self.map.to = now;
        let mut blocks: BTreeMap<u64, Placed> =
            blocks.into_iter().map(|block| (block.address, block)).collect();
        let (open, pieces) = (&mut self.open, &mut self.map.pieces);
        open.retain(|address, seen| {
            let same = blocks
                .get(address)
                .is_some_and(|block| block.bytes == seen.bytes && block.lease == seen.id);
            if same {
                blocks.remove(address);
            } else {
                seen.close(*address, now, pieces);
            }
            same
        });
        for (address, Placed { bytes, lease: id, .. }) in blocks {
            open.insert(address, Seen { bytes, id, lease: id.and_then(&live), since: now });
        }
    }

    /// What was seen.
    pub(super) fn end(mut self, complete: bool) -> AddressMap {
        for (address, seen) in &self.open {
            seen.close(*address, self.map.to, &mut self.map.pieces);
        }
        self.map.complete = complete;
        self.map
    }
}

impl Seen {
    fn close(&self, address: u64, now: u64, pieces: &mut Vec<Piece>) {
        if self.since < now {
            let Self { bytes, lease, since, .. } = *self;
            pieces.push(Piece { address, bytes, lease, from: since, to: now });
        }
    }
}

/// A stretch of addresses that was used, and its place in the drawing.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    start: u64,
    end: u64,
    from: u64,
    to: u64,
    offset: u64,
}

/// Where a map's pieces are drawn.
#[derive(Debug, Default)]
pub(super) struct Arrangement {
    /// For each piece, its offset in bytes from the bottom.
    pub(super) offsets: Vec<u64>,
    /// Bytes from the bottom to the top.
    pub(super) height: u64,
}

/// Arranges pieces so that addresses that are never used take no space, nor those that aren't used
/// any more when others come into use. What overlaps stays together.
pub(super) fn arrange(map: &AddressMap) -> Arrangement {
    let (mut stretches, owners) = stretches(&map.pieces);
    let mut order: Vec<usize> = (0..stretches.len()).collect();
    order.sort_by_key(|&index| (stretches[index].from, stretches[index].start));
    let mut placed: Vec<Stretch> = Vec::new(); // in order of offset
    let mut height = 0;
    for index in order {
        let stretch = &mut stretches[index];
        let (bytes, mut offset) = (stretch.end - stretch.start, 0);
        for other in
            placed.iter().filter(|other| other.to > stretch.from && other.from < stretch.to)
        {
            if other.offset >= offset + bytes {
                break;
            }
            offset = offset.max(other.offset + (other.end - other.start));
        }
        stretch.offset = offset;
        height = height.max(offset + bytes);
        let place = placed.partition_point(|other| other.offset <= offset);
        placed.insert(place, *stretch);
    }
    let offset = |(piece, &owner): (&Piece, &usize)| {
        stretches[owner].offset + (piece.address - stretches[owner].start)
    };
    Arrangement { offsets: map.pieces.iter().zip(&owners).map(offset).collect(), height }
}

/// The stretches that pieces which share bytes make up, and which one each piece is in.
fn stretches(pieces: &[Piece]) -> (Vec<Stretch>, Vec<usize>) {
    let mut order: Vec<usize> = (0..pieces.len()).collect();
    order.sort_by_key(|&index| pieces[index].address);
    let (mut stretches, mut owners) = (Vec::<Stretch>::new(), vec![0; pieces.len()]);
    for index in order {
        let Piece { address: start, from, to, .. } = pieces[index];
        let end = start.saturating_add(pieces[index].bytes as u64);
        match stretches.last_mut() {
            Some(last) if start < last.end => {
                last.end = last.end.max(end);
                (last.from, last.to) = (last.from.min(from), last.to.max(to));
            }
            _ => stretches.push(Stretch { start, end, from, to, offset: 0 }),
        }
        owners[index] = stretches.len() - 1;
    }
    (stretches, owners)
}

#[cfg(test)]
mod tests;
