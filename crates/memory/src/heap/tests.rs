use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const G: usize = Heap::GRANULE;

/// How many records one operation may look at; a second look at one counts again. Freeing between
/// two holes takes the most: the block, its neighbours and theirs, and those beside the holes in
/// their lists.
const MOST_VISITS: usize = 32;

fn heap_of(bytes: usize) -> Heap {
    let mut heap = Heap::new();
    heap.extend(bytes).unwrap();
    heap
}

/// Walks all records: blocks follow one another without gaps, no two free ones are adjacent, the
/// free ones are in their lists, and the kept counts are right.
fn check(heap: &Heap) {
    let (mut end, mut live, mut slack, mut blocks) = (0, 0, 0, 0);
    let mut free = Vec::new();
    let mut before = EDGE;
    let mut index = heap.nodes[EDGE].after;
    while index != EDGE {
        let node = heap.nodes[index];
        assert_eq!((node.start, node.before), (end, before));
        assert!(node.granules > 0);
        match node.state {
            State::Absent => panic!("a removed record is still linked"),
            State::Free => {
                assert!(!heap.is_free(before), "free neighbours are merged");
                free.push(index);
            }
            State::Live { slack: added } => {
                live += node.granules;
                slack += usize::from(added);
            }
        }
        blocks += 1;
        end += node.granules;
        (before, index) = (index, node.after);
    }
    assert_eq!(heap.nodes.last(), before);
    assert_eq!((heap.capacity, heap.live, heap.slack), (end, live, slack));
    assert_eq!((heap.holes, heap.nodes.blocks()), (free.len(), blocks));
    let mut listed = heap.bins.all(&heap.nodes);
    listed.sort_unstable();
    free.sort_unstable();
    assert_eq!(listed, free);
}

#[test]
fn freed_neighbours_merge_in_every_order() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut heap = heap_of(3 * G);
        let spans = [(); 3].map(|()| heap.allocate(1).unwrap());
        assert!(heap.allocate(1).is_none());
        for pick in order {
            heap.free(spans[pick]).unwrap();
            check(&heap);
        }
        assert_eq!(heap.allocate(3 * G).map(|span| span.offset()), Some(0));
    }
}

#[test]
fn a_stale_or_foreign_span_changes_nothing() {
    let (mut heap, mut other) = (heap_of(4 * G), heap_of(4 * G));
    let span = heap.allocate(G).unwrap();
    let foreign = other.allocate(G).unwrap();
    assert_eq!((foreign.offset(), foreign.bytes()), (span.offset(), span.bytes()));
    assert!(heap.free(foreign).is_err());
    heap.free(span).unwrap();
    let before = heap.statistics();
    assert_eq!(heap.free(span), Err(StaleSpan { offset: 0, bytes: G }));
    assert_eq!(heap.statistics(), before);

    let again = heap.allocate(G).unwrap();
    assert_eq!(again.offset(), span.offset());
    assert!(heap.free(span).is_err(), "the same range, but another allocation");
    let forged = Span { node: EDGE, ..again };
    assert!(heap.free(forged).is_err());
    assert!(heap.free(Span { node: u32::MAX, ..again }).is_err());
    heap.free(again).unwrap();
    check(&heap);
}

#[test]
fn an_extension_made_to_measure_is_found_among_holes_of_its_list() {
    // All in one list, and all too small by a granule.
    let hole = 1024 * G;
    let mut heap = heap_of(40 * (hole + G));
    let spans: Vec<_> =
        (0..40).map(|_| (heap.allocate(hole).unwrap(), heap.allocate(G).unwrap())).collect();
    for (span, _) in &spans {
        heap.free(*span).unwrap();
    }
    heap.nodes.visits.set(0);
    assert!(heap.allocate(hole + G).is_none());
    assert!(heap.nodes.visits.get() <= MOST_VISITS, "not every hole of the list is tried");
    heap.extend(hole).unwrap();
    heap.extend(G).unwrap();
    assert!(heap.allocate(hole + G).is_some());
    check(&heap);
}

#[test]
fn sizes_may_not_overflow() {
    let mut heap = Heap::new();
    assert!(heap.allocate(0).is_none());
    heap.extend(Heap::MAX_CAPACITY).unwrap();
    let capacity = Heap::MAX_CAPACITY;
    assert_eq!(heap.extend(G), Err(ResizeError::TooLarge { bytes: G, capacity }));
    let most = usize::MAX / G * G;
    assert_eq!(heap.extend(most), Err(ResizeError::TooLarge { bytes: most, capacity }));
    assert_eq!(
        heap.shrink(most),
        Err(ResizeError::InUse { bytes: most, trimmable: Heap::MAX_CAPACITY })
    );
    assert!(heap.allocate(usize::MAX).is_none());
    assert!(heap.allocate(Heap::MAX_CAPACITY + 1).is_none());
    let all = heap.allocate(Heap::MAX_CAPACITY).unwrap();
    assert_eq!(heap.statistics().requested_bytes, Heap::MAX_CAPACITY);
    assert_eq!(heap.trimmable(), 0);
    heap.free(all).unwrap();
    check(&heap);
}

#[test]
fn capacity_changes_by_whole_free_granules() {
    let mut heap = heap_of(4 * G);
    assert_eq!(heap.extend(100), Err(ResizeError::Uneven { bytes: 100 }));
    assert_eq!(heap.shrink(100), Err(ResizeError::Uneven { bytes: 100 }));
    let span = heap.allocate(0).unwrap();
    assert_eq!((span.bytes(), heap.statistics().requested_bytes), (G, 0));
    assert_eq!(heap.shrink(4 * G), Err(ResizeError::InUse { bytes: 4 * G, trimmable: 3 * G }));
    heap.shrink(2 * G).unwrap();
    heap.shrink(G).unwrap();
    heap.shrink(0).unwrap();
    check(&heap);
    heap.free(span).unwrap();
    heap.shrink(G).unwrap();
    assert_eq!(heap.statistics(), Heap::new().statistics());
    check(&heap);
}

#[test]
fn fragmentation_is_the_share_outside_the_largest_hole() {
    let mut heap = heap_of(6 * G);
    assert_eq!(Heap::new().statistics().external_fragmentation(), 0.0);
    assert_eq!(heap.statistics().external_fragmentation(), 0.0);
    let first = heap.allocate(G).unwrap();
    heap.allocate(2 * G).unwrap();
    heap.free(first).unwrap();
    assert_eq!(heap.statistics().external_fragmentation(), 0.25);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Allocate(usize),
    Free(usize),
    Extend(usize),
    Shrink(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = prop_oneof![
        0..4 * G,
        0..256 * G,
        0..20_000 * G,
        // At and beside the borders of lists.
        (5u32..15, 0usize..32, -1isize..2).prop_map(|(octave, step, beside)| {
            let granules = ((32 + step) << (octave - 5)).saturating_add_signed(beside);
            granules * G
        }),
    ];
    let step = prop_oneof![
        4 => bytes.prop_map(Step::Allocate),
        4 => any::<usize>().prop_map(Step::Free),
        1 => (0usize..40_000).prop_map(|granules| Step::Extend(granules * G)),
        1 => (0usize..40_000).prop_map(|granules| Step::Shrink(granules * G)),
    ];
    prop::collection::vec(step, 1..if cfg!(miri) { 40 } else { 200 })
}

/// What must be true of a heap, kept the slow and obvious way.
#[derive(Default)]
struct Model {
    capacity: usize,
    /// From offset to the span and the bytes asked for.
    live: BTreeMap<usize, (Span, usize)>,
}

impl Model {
    fn holes(&self) -> Vec<usize> {
        let mut end = 0;
        let mut holes = Vec::new();
        for (offset, (span, _)) in &self.live {
            assert!(end <= *offset, "live spans overlap");
            holes.push(offset - end);
            end = offset + span.bytes();
        }
        assert!(end <= self.capacity, "a live span lies outside");
        holes.push(self.capacity - end);
        holes.retain(|&bytes| bytes > 0);
        holes
    }

    fn trimmable(&self) -> usize {
        let last = self.live.last_key_value();
        self.capacity - last.map_or(0, |(offset, (span, _))| offset + span.bytes())
    }

    fn statistics(&self) -> HeapStatistics {
        let holes = self.holes();
        HeapStatistics {
            capacity_bytes: self.capacity,
            live_bytes: self.live.values().map(|(span, _)| span.bytes()).sum(),
            requested_bytes: self.live.values().map(|(_, bytes)| bytes).sum(),
            free_bytes: holes.iter().sum(),
            largest_free_bytes: holes.iter().copied().max().unwrap_or(0),
            holes: holes.len(),
        }
    }

    fn apply(&mut self, heap: &mut Heap, step: Step) {
        match step {
            Step::Allocate(bytes) => self.allocate(heap, bytes),
            Step::Free(pick) => {
                let Some(pick) = pick.checked_rem(self.live.len()) else { return };
                let offset = *self.live.keys().nth(pick).unwrap();
                let (span, _) = self.live.remove(&offset).unwrap();
                heap.free(span).unwrap();
                heap.free(span).unwrap_err();
            }
            Step::Extend(bytes) => {
                heap.extend(bytes).unwrap();
                self.capacity += bytes;
            }
            Step::Shrink(bytes) => {
                let fits = bytes <= self.trimmable();
                assert_eq!(heap.shrink(bytes).is_ok(), fits);
                self.capacity -= if fits { bytes } else { 0 };
            }
        }
    }

    fn allocate(&mut self, heap: &mut Heap, bytes: usize) {
        let rounded = bytes.next_multiple_of(G).max(G);
        let largest = self.holes().into_iter().max().unwrap_or(0);
        let Some(span) = heap.allocate(bytes) else {
            assert!(largest < rounded + rounded / 32, "{bytes} of {largest}");
            return;
        };
        assert!(rounded <= largest);
        assert_eq!(span.bytes(), rounded);
        assert!(self.live.insert(span.offset(), (span, bytes)).is_none());
    }
}

/// Fewer, and no file of failures, where every access is checked.
fn cases() -> ProptestConfig {
    if cfg!(miri) {
        ProptestConfig { cases: 2, failure_persistence: None, ..ProptestConfig::default() }
    } else {
        ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn any_history_agrees_with_the_model(steps in steps()) {
        let mut heap = Heap::new();
        let mut model = Model::default();
        for step in steps {
            model.apply(&mut heap, step);
            check(&heap);
            prop_assert_eq!(heap.statistics(), model.statistics());
            prop_assert_eq!(heap.trimmable(), model.trimmable());
        }
        for (span, _) in model.live.values() {
            heap.free(*span).unwrap();
        }
        check(&heap);
        prop_assert_eq!(heap.statistics().holes, usize::from(model.capacity > 0));
        prop_assert_eq!(heap.trimmable(), model.capacity);
        // However many blocks there were: what's free is found to the last byte.
        prop_assert_eq!(heap.allocate(model.capacity).is_some(), model.capacity > 0);
    }
}

/// Steps of a fixed pseudo-random sequence.
fn random(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize
}

/// The most records that one operation looks at, in a heap with about `holes` holes.
fn most_visits(holes: usize) -> usize {
    let mut state = 1;
    let mut heap = heap_of(holes * 600 * G);
    let mut live: Vec<Span> =
        (0..2 * holes).filter_map(|_| heap.allocate(random(&mut state) % (256 * G))).collect();
    let mut other = true;
    live.retain(|&span| {
        other = !other;
        other || heap.free(span).is_err()
    });
    assert!(heap.statistics().holes >= holes * 9 / 10);
    let mut most = 0;
    for _ in 0..if cfg!(miri) { 200 } else { 4000 } {
        let pick = random(&mut state) % live.len();
        heap.nodes.visits.set(0);
        heap.free(live.swap_remove(pick)).unwrap();
        most = most.max(heap.nodes.visits.take());
        live.extend(heap.allocate(random(&mut state) % (256 * G)));
        most = most.max(heap.nodes.visits.take());
        assert!(heap.allocate(holes * 600 * G).is_none());
        most = most.max(heap.nodes.visits.take());
    }
    most
}

#[test]
fn an_operation_looks_at_as_many_records_whatever_the_number_of_holes() {
    for holes in if cfg!(miri) { [16, 64, 256] } else { [16, 1024, 16_384] } {
        let most = most_visits(holes);
        assert!(most <= MOST_VISITS, "{most} records at {holes} holes");
    }
}
