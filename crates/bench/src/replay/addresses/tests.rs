use super::*;
use vecmill_memory::recording::Event;

fn placed(address: u64, bytes: usize, lease: Option<u64>) -> Placed {
    Placed { address, bytes, lease }
}

/// A map of pieces given as address, bytes, from, to.
fn map(pieces: &[(u64, usize, u64, u64)]) -> AddressMap {
    let piece = |&(address, bytes, from, to)| Piece { address, bytes, lease: None, from, to };
    AddressMap { pieces: pieces.iter().map(piece).collect(), ..AddressMap::default() }
}

/// Leases one after the other, of which that of `peak` is the largest.
fn recording(leases: u64, peak: u64) -> Recording {
    let events = (0..leases).flat_map(|id| {
        let bytes = if id == peak { 2 } else { 1 };
        let lease = Event { nanoseconds: id, what: What::Lease { id, stream: 0, bytes } };
        [lease, Event { nanoseconds: id, what: What::Return { id } }]
    });
    Recording { events: events.collect(), lost: 0 }
}

#[test]
fn the_window_is_the_whole_trace_or_the_leases_around_the_peak() {
    assert_eq!(window(&recording(10, 3), 10), 0..20);
    assert_eq!(window(&recording(100, 50), 10), 90..109, "from a lease to a lease");
    assert_eq!(window(&recording(100, 0), 10), 0..19);
    assert_eq!(window(&recording(100, 99), 10), 180..199);
    assert_eq!(window(&recording(100, 50), 1).len(), 1);
    assert_eq!(window(&recording(100, 50), 0), 0..0);
    assert_eq!(window(&recording(0, 0), 10), 0..0);
}

#[test]
fn a_piece_lasts_as_long_as_its_use() {
    let mut watch = Watch::default();
    let live = |id| Some((u32::try_from(id).unwrap(), 90));
    watch.see(0, vec![placed(0, 100, None)], live);
    watch.see(10, vec![placed(0, 100, Some(7)), placed(200, 100, Some(8))], live);
    watch.see(15, vec![placed(200, 100, Some(8)), placed(0, 100, Some(7))], live);
    watch.see(20, vec![placed(0, 100, None), placed(200, 100, Some(8))], live);
    watch.see(30, vec![placed(200, 100, Some(8))], live);
    let map = watch.end(true);
    let idle = Piece { address: 0, bytes: 100, lease: None, from: 0, to: 10 };
    let leased = Piece { lease: Some((7, 90)), from: 10, to: 20, ..idle };
    let idle_again = Piece { from: 20, to: 30, ..idle };
    let other = Piece { address: 200, lease: Some((8, 90)), from: 10, to: 30, ..idle };
    assert_eq!(map.pieces, [idle, leased, idle_again, other]);
    assert_eq!((map.from, map.to, map.complete), (0, 30, true));
}

#[test]
fn unused_addresses_take_no_space() {
    let far = map(&[(1 << 40, 10, 0, 9), (0, 10, 0, 9), (1 << 50, 5, 0, 9)]);
    let arrangement = arrange(&far);
    assert_eq!(arrangement.offsets, [10, 0, 20]);
    assert_eq!(arrangement.height, 25);
}

#[test]
fn an_address_given_up_makes_room_for_another() {
    let arrangement = arrange(&map(&[(0, 10, 0, 5), (100, 10, 0, 9), (200, 10, 5, 9)]));
    assert_eq!(arrangement.offsets, [0, 10, 0]);
    assert_eq!(arrangement.height, 20);
}

#[test]
fn what_shares_bytes_stays_together() {
    let arrangement = arrange(&map(&[(0, 30, 0, 1), (0, 10, 1, 5), (10, 20, 1, 5), (90, 5, 2, 3)]));
    assert_eq!(arrangement.offsets, [0, 0, 10, 30]);
}
