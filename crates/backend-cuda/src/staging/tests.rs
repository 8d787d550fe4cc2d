//! The queue over the buffer and the device of [`fake`], whose copies end when a test says so.

mod fake;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use proptest::prelude::*;

use super::queue::{Pieces, Queue};
use super::ring::Ring;
use crate::driver::DriverError;
use fake::{Copy, FakePart, FakeParts, LOST, Shared, World};

/// A queue over `host` bytes beside a device of `device` bytes.
struct Bench {
    world: Shared,
    queue: Queue<FakeParts>,
}

impl Bench {
    fn new(host: usize, device: usize) -> Self {
        let bytes = World { host: vec![0; host], device: vec![0; device], ..World::default() };
        let world = Arc::new(Mutex::new(bytes));
        let parts = FakeParts { world: Arc::clone(&world), ring: Ring::new(host) };
        Self { world, queue: Queue::new(parts) }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    fn used(&self) -> usize {
        self.queue.buffer().ring.statistics().used_bytes
    }

    /// Copies under way on the streams.
    fn under_way(&self) -> [usize; 2] {
        self.world().streams.each_ref().map(VecDeque::len)
    }

    fn copy_in(&mut self, stream: usize, from: &[u8], to: usize) -> Result<(), DriverError> {
        let world = Arc::clone(&self.world);
        let now = |from: &[u8], at: Range<usize>| {
            let device = to + at.start..to + at.end;
            world.lock().unwrap().now(stream)?.device[device].copy_from_slice(from);
            Ok(())
        };
        self.queue.copy_in(from, begin(stream, to, false), now)
    }

    fn copy_out(
        &mut self,
        stream: usize,
        from: Range<usize>,
    ) -> Result<Pieces<FakePart>, DriverError> {
        let world = Arc::clone(&self.world);
        let now = |into: &mut [u8], at: Range<usize>| {
            let device = from.start + at.start..from.start + at.end;
            into.copy_from_slice(&world.lock().unwrap().now(stream)?.device[device]);
            Ok(())
        };
        self.queue.copy_out(from.len(), begin(stream, from.start, true), now)
    }

    fn read(&mut self, staged: Pieces<FakePart>) -> Vec<u8> {
        let mut bytes = vec![0; staged.bytes()];
        self.queue.read(staged, &mut bytes).unwrap();
        bytes
    }
}

/// Begins copies of parts to or from the device's bytes from `start` on.
fn begin(
    stream: usize,
    start: usize,
    out: bool,
) -> impl FnMut(&mut FakePart, Range<usize>) -> Result<(), DriverError> {
    move |part, at| {
        let mut world = part.world.lock().unwrap();
        if world.lost {
            return Err(LOST);
        }
        world.begun += 1;
        let device = start + at.start..start + at.end;
        let copy = Copy { number: world.begun, host: part.at(), device, out };
        part.copy = Some(copy.number);
        world.streams[stream].push_back(copy);
        Ok(())
    }
}

#[test]
fn nothing_waits_while_there_is_room() {
    let mut bench = Bench::new(256, 256);
    bench.copy_in(0, &[1; 64], 0).unwrap();
    let first = bench.copy_out(0, 0..64).unwrap();
    bench.copy_in(0, &[2; 64], 0).unwrap();
    let second = bench.copy_out(0, 0..64).unwrap();
    assert_eq!((bench.under_way(), bench.queue.waits(), bench.used()), ([4, 0], 0, 256));
    // Only what comes before on the stream.
    assert_eq!(bench.read(first), [1; 64]);
    assert_eq!((bench.under_way(), bench.used()), ([2, 0], 128));
    assert_eq!(bench.read(second), [2; 64]);
    assert_eq!((bench.under_way(), bench.queue.waits(), bench.used()), ([0, 0], 0, 0));
}

#[test]
fn a_full_ring_waits_for_the_oldest_copy_only() {
    let mut bench = Bench::new(256, 512);
    for (turn, value) in [1, 2, 3, 4].into_iter().enumerate() {
        bench.copy_in(turn % 2, &[value; 64], turn * 64).unwrap();
    }
    assert_eq!((bench.under_way(), bench.queue.waits()), ([2, 2], 0));
    bench.copy_in(1, &[5; 64], 256).unwrap();
    assert_eq!((bench.under_way(), bench.queue.waits()), ([1, 3], 1), "the first, on stream 0");
    assert_eq!(bench.world().device[..128], [[1; 64], [0; 64]].concat());
    // A younger copy that is done makes no room: its space is behind an older one's.
    bench.world().step(0);
    bench.copy_in(0, &[6; 64], 320).unwrap();
    assert_eq!((bench.under_way(), bench.queue.waits()), ([1, 2], 2));
    // The one after that is done, so nobody waits.
    bench.copy_in(0, &[7; 64], 384).unwrap();
    assert_eq!((bench.under_way(), bench.queue.waits()), ([2, 2], 2));
    bench.world().run();
    let expected: Vec<u8> = (1..=7).flat_map(|value| [value; 64]).collect();
    assert_eq!(bench.world().device[..448], expected);
}

#[test]
fn more_than_a_quarter_goes_in_pieces() {
    let mut bench = Bench::new(1024, 2000);
    let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
    bench.copy_in(0, &bytes, 7).unwrap();
    assert_eq!((bench.under_way(), bench.queue.waits()), ([4, 0], 0));
    let staged = bench.copy_out(0, 7..1007).unwrap();
    assert_eq!(bench.queue.waits(), 4, "for room");
    assert_eq!(bench.read(staged), bytes);
    assert_eq!(bench.used(), 0);
}

#[test]
fn more_than_the_ring_goes_through_it() {
    for capacity in [64, 100, 256, 300, 1024] {
        let mut bench = Bench::new(capacity, 5000);
        let bytes: Vec<u8> = (0..=250).cycle().take(4321).collect();
        bench.copy_in(0, &bytes, 11).unwrap();
        let staged = bench.copy_out(0, 11..4332).unwrap();
        assert_eq!(staged.bytes(), 4321);
        // The last pieces are still on their way, and others can come behind.
        assert!(bench.under_way()[0] > 0);
        assert_eq!(bench.read(staged), bytes, "through {capacity}");
        assert_eq!((bench.under_way(), bench.used()), ([0, 0], 0));
        let none = bench.copy_out(0, 3..3).unwrap();
        bench.copy_in(0, &[], 3).unwrap();
        assert_eq!((bench.used(), bench.read(none)), (0, Vec::new()));
    }
}

#[test]
fn dropped_unread_its_space_comes_back_when_the_copy_is_done() {
    let mut bench = Bench::new(256, 256);
    drop(bench.copy_out(0, 0..64).unwrap());
    bench.copy_in(1, &[1; 64], 0).unwrap();
    assert_eq!((bench.used(), bench.under_way()), (128, [1, 1]), "the copy is under way");
    bench.world().step(0);
    bench.copy_in(1, &[2; 64], 0).unwrap();
    assert_eq!((bench.used(), bench.queue.waits()), (128, 0));
    // And a full ring waits for it like for any other.
    drop(bench.copy_out(0, 0..64).unwrap());
    drop(bench.copy_out(0, 0..64).unwrap());
    bench.copy_in(1, &[3; 64], 0).unwrap();
    bench.copy_in(1, &[4; 64], 0).unwrap();
    bench.copy_in(1, &[5; 64], 0).unwrap();
    assert_eq!((bench.used(), bench.queue.waits()), (256, 3));
}

#[test]
fn what_finds_a_ring_full_of_unread_bytes_goes_around_it() {
    let mut bench = Bench::new(256, 1024);
    bench.world().device[..64].fill(9);
    let staged = bench.copy_out(0, 0..64).unwrap();
    for _ in 0..3 {
        bench.copy_in(1, &[1; 64], 64).unwrap();
    }
    assert_eq!((bench.queue.waits(), bench.used(), bench.under_way()), (0, 256, [1, 3]));
    bench.copy_in(1, &[2; 300], 64).unwrap();
    assert_eq!((bench.queue.waits(), bench.used(), bench.under_way()), (5, 256, [1, 0]));
    assert_eq!(bench.world().device[64..364], [2; 300]);
    let around = bench.copy_out(1, 0..300).unwrap();
    assert_eq!((bench.queue.waits(), bench.used()), (10, 256));
    let expected = [[9; 64].as_slice(), &[2; 236]].concat();
    assert_eq!(bench.read(around), expected, "and it needs no room until it is read");
    assert_eq!(bench.read(staged), [9; 64], "what was unread is kept");
    bench.copy_in(1, &[3; 64], 64).unwrap();
    assert_eq!((bench.queue.waits(), bench.used()), (10, 64));
}

#[test]
fn a_refused_copy_keeps_no_space_and_another_length_is_not_read() {
    const REFUSED: DriverError = DriverError::invalid("cuMemcpyHtoDAsync");
    let mut bench = Bench::new(256, 256);
    let refuse = |_: &mut FakePart, _| Err(REFUSED);
    assert_eq!(bench.queue.copy_in(&[1; 10], refuse, |_, _| Ok(())), Err(REFUSED));
    assert!(bench.queue.copy_out(10, refuse, |_, _| Ok(())).is_err());
    let staged = bench.copy_out(0, 0..100).unwrap();
    assert!(bench.queue.read(staged, &mut [0; 99]).is_err());
    bench.world().step(0);
    bench.world().step(0);
    bench.copy_in(0, &[1; 10], 0).unwrap();
    assert_eq!(bench.used(), 64);
}

#[test]
fn a_lost_device_is_an_error_everywhere() {
    let mut bench = Bench::new(256, 256);
    let staged = bench.copy_out(0, 0..64).unwrap();
    let unread = bench.copy_out(0, 0..64).unwrap();
    bench.copy_in(0, &[1; 64], 0).unwrap();
    bench.world().lost = true;
    assert_eq!(bench.queue.read(staged, &mut [0; 64]), Err(LOST));
    assert_eq!(bench.copy_in(0, &[1; 64], 0), Err(LOST));
    assert_eq!(bench.copy_out(0, 0..64).unwrap_err(), LOST);
    assert_eq!(bench.copy_in(0, &[1; 500], 0), Err(LOST), "around what is unread, too");
    drop(unread);
}

#[derive(Debug, Clone)]
enum Step {
    In { stream: usize, bytes: usize },
    Out { stream: usize, bytes: usize },
    Read(usize),
    Drop(usize),
    Gpu { stream: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sizes = || (0..2_usize, prop_oneof![4 => 0..200_usize, 1 => 0..3000_usize]);
    let step = prop_oneof![
        4 => sizes().prop_map(|(stream, bytes)| Step::In { stream, bytes }),
        4 => sizes().prop_map(|(stream, bytes)| Step::Out { stream, bytes }),
        3 => any::<usize>().prop_map(Step::Read),
        1 => any::<usize>().prop_map(Step::Drop),
        4 => (0..2_usize).prop_map(|stream| Step::Gpu { stream }),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    /// Each stream has a device memory of its own, so the order of its copies says what they carry.
    #[test]
    fn every_copy_carries_what_it_should(capacity in 64..2000_usize, steps in steps()) {
        const REACH: usize = 3000;
        let mut bench = Bench::new(capacity, 2 * REACH);
        // What the device memory is when all is done, and what each staged copy should bring.
        let mut model = vec![0_u8; 2 * REACH];
        let mut staged: Vec<(Pieces<FakePart>, Vec<u8>)> = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::In { stream, bytes } => {
                    let from: Vec<u8> = (0..bytes).map(|at| (at * 7 + number) as u8).collect();
                    let start = stream * REACH;
                    bench.copy_in(stream, &from, start).unwrap();
                    model[start..start + bytes].copy_from_slice(&from);
                }
                Step::Out { stream, bytes } => {
                    let from = stream * REACH..stream * REACH + bytes;
                    let pieces = bench.copy_out(stream, from.clone()).unwrap();
                    staged.push((pieces, model[from].to_vec()));
                }
                Step::Read(pick) if !staged.is_empty() => {
                    let (pieces, expected) = staged.remove(pick % staged.len());
                    prop_assert_eq!(bench.read(pieces), expected);
                }
                Step::Drop(pick) if !staged.is_empty() => {
                    drop(staged.remove(pick % staged.len()));
                }
                Step::Gpu { stream } => {
                    bench.world().step(stream);
                }
                Step::Read(_) | Step::Drop(_) => {}
            }
        }
        for (pieces, expected) in staged {
            prop_assert_eq!(bench.read(pieces), expected);
        }
        bench.world().run();
        prop_assert_eq!(&bench.world().device, &model);
        bench.copy_in(0, &[1], 0).unwrap();
        prop_assert_eq!(bench.used(), 64, "all other space came back");
    }
}
