//! The staging ring with a device that copies by itself.

use std::collections::VecDeque;

use vecmill_backend_cuda::{CudaSource, Staged, StagingRing};
use vecmill_memory::Source;

use super::{GRANULE, MIB, device, uniform};

const KIB: usize = 1 << 10;

/// Bytes that tell a copy from any other.
fn pattern(number: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (number * 31 + at * 7 + at / 251) as u8).collect()
}

#[test]
#[ignore = "needs a CUDA device"]
fn many_small_copies_pass_through_a_ring_on_two_streams() {
    let (_guard, device) = device();
    let source = CudaSource::new(&device).unwrap();
    let streams = [device.stream().unwrap(), device.stream().unwrap()];
    let block = source.allocate(GRANULE).unwrap();
    let whole = block.span(0..GRANULE).unwrap();
    streams[0].copy_from_host(&vec![0; GRANULE], whole).unwrap();
    // What the block contains in the end.
    let mut model = vec![0; GRANULE];
    let mut ring = StagingRing::new(&device, 32 * KIB).unwrap();
    let mut unread: VecDeque<(Staged, Vec<u8>)> = VecDeque::new();
    let mut random = 88_172_645_463_325_252_u64;
    for number in 0..20_000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let bytes = 1 + usize::try_from(random % 2500).unwrap();
        // Each stream has a megabyte, and copies in and out of the same place.
        let stream = number % 2;
        let start = stream * MIB + number % 199 * 2501;
        let span = block.span(start..start + bytes).unwrap();
        let mut there = pattern(number, bytes);
        model[start..start + bytes].copy_from_slice(&there);
        ring.copy_in(&streams[stream], &there, span).unwrap();
        let staged = ring.copy_out(&streams[stream], span).unwrap();
        assert_eq!(staged.bytes(), bytes);
        // Nothing but the ring waits for the second stream.
        if stream == 1 {
            drop(staged);
        } else {
            unread.push_back((staged, there.clone()));
        }
        there.fill(0xee); // the ring has its own copy
        // With the others that is less than the ring, which is never full of what is unread.
        while unread.len() > 2 {
            let (staged, expected) = unread.pop_front().unwrap();
            let mut back = vec![0; expected.len()];
            ring.read(staged, &mut back).unwrap();
            assert!(back == expected, "before copy {number}");
        }
    }
    unread.clear();
    for stream in &streams {
        stream.synchronize().unwrap();
    }
    let mut contents = vec![0; GRANULE];
    streams[0].copy_to_host(whole, &mut contents).unwrap();
    assert!(contents == model);
    ring.copy_in(&streams[0], &[1], block.span(0..1).unwrap()).unwrap();
    let statistics = ring.statistics();
    assert_eq!((statistics.capacity_bytes, statistics.used_bytes), (32 * KIB, 64));
    assert!(statistics.peak_used_bytes > 16 * KIB && statistics.peak_used_bytes <= 32 * KIB);
    drop(ring);
    source.release(block).unwrap();
}

#[test]
#[ignore = "needs a CUDA device"]
fn more_than_a_staging_ring_passes_through_it() {
    let (_guard, device) = device();
    let source = CudaSource::new(&device).unwrap();
    let stream = device.stream().unwrap();
    let block = source.allocate(8 * MIB).unwrap();
    let there = pattern(5, 7 * MIB + 13);
    let span = block.span(3..3 + there.len()).unwrap();
    for capacity in [4 * KIB, 100_000, MIB, 16 * MIB] {
        let mut ring = StagingRing::new(&device, capacity).unwrap();
        stream.fill_u32(block.span(0..8 * MIB).unwrap(), 0).unwrap();
        ring.copy_in(&stream, &there, span).unwrap();
        let staged = ring.copy_out(&stream, span).unwrap();
        // What comes behind does not change what was copied out.
        stream.fill_u32(block.span(0..8 * MIB).unwrap(), 0xffff_ffff).unwrap();
        let mut back = vec![0; there.len()];
        ring.read(staged, &mut back).unwrap();
        assert!(there == back, "through {capacity} bytes");
        assert_eq!(ring.statistics().used_bytes, 0);
        assert_eq!(uniform(&stream, block.span(0..8 * MIB).unwrap()), 0xffff_ffff);
    }
    source.release(block).unwrap();
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_staging_ring_with_room_does_not_wait_for_the_device() {
    let (_guard, device) = device();
    let source = CudaSource::new(&device).unwrap();
    let (first, second) = (device.stream().unwrap(), device.stream().unwrap());
    let block = source.allocate(512 * MIB).unwrap();
    let mut ring = StagingRing::new(&device, StagingRing::DEFAULT_BYTES).unwrap();
    // While the first stream is at it.
    for value in 1..=200 {
        first.fill_u32(block.span(0..256 * MIB).unwrap(), value).unwrap();
    }
    let late = ring.copy_out(&first, block.span(256 * MIB - 4..256 * MIB).unwrap()).unwrap();
    let forgotten = ring.copy_out(&first, block.span(0..MIB).unwrap()).unwrap();
    let part = block.span(256 * MIB..256 * MIB + 1000).unwrap();
    for number in 0..100 {
        let there = pattern(number, 1000);
        let mut back = vec![0; 1000];
        ring.copy_in(&second, &there, part).unwrap();
        let staged = ring.copy_out(&second, part).unwrap();
        ring.read(staged, &mut back).unwrap();
        assert!(there == back, "copy {number}");
    }
    assert_eq!(ring.statistics().waits, 0);
    let mut word = [0; 4];
    ring.read(late, &mut word).unwrap();
    assert_eq!(u32::from_ne_bytes(word), 200, "it is behind all work of its stream");
    // The memory stays until its copy is done, whoever goes first.
    drop(ring);
    drop(forgotten);
    source.release(block).unwrap();
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_staging_ring_says_what_is_wrong() {
    let (_guard, device) = device();
    let source = CudaSource::new(&device).unwrap();
    let stream = device.stream().unwrap();
    let block = source.allocate(GRANULE).unwrap();
    let (span, longer) = (block.span(0..1024).unwrap(), block.span(0..1028).unwrap());
    assert!(StagingRing::new(&device, 63).is_err());
    let mut ring = StagingRing::new(&device, 4 * KIB).unwrap();
    let differ = ring.copy_in(&stream, &[0; 1024], longer).unwrap_err();
    assert!(differ.to_string().contains("1024 bytes on the host and 1028"), "{differ}");
    let staged = ring.copy_out(&stream, span).unwrap();
    assert!(ring.read(staged, &mut [0; 1023]).is_err());
    ring.copy_in(&stream, &[3; 1024], span).unwrap();
    let staged = ring.copy_out(&stream, span).unwrap();
    let mut back = [0; 1024];
    ring.read(staged, &mut back).unwrap();
    assert_eq!(back, [3; 1024]);
    source.release(block).unwrap();
}

#[test]
#[ignore = "needs a CUDA device"]
fn what_finds_a_staging_ring_full_of_unread_bytes_goes_around_it() {
    let (_guard, device) = device();
    let source = CudaSource::new(&device).unwrap();
    let stream = device.stream().unwrap();
    let block = source.allocate(GRANULE).unwrap();
    stream.fill_u32(block.span(0..GRANULE).unwrap(), 7).unwrap();
    let mut ring = StagingRing::new(&device, 4 * KIB).unwrap();
    let kept = block.span(0..1024).unwrap();
    let unread: Vec<Staged> = (0..4).map(|_| ring.copy_out(&stream, kept).unwrap()).collect();
    assert_eq!(ring.statistics().waits, 0);
    let (there, span) = (pattern(3, 10_000), block.span(0..10_000).unwrap());
    ring.copy_in(&stream, &there, span).unwrap();
    let staged = ring.copy_out(&stream, span).unwrap();
    assert!(ring.statistics().waits > 0);
    let mut back = vec![0; there.len()];
    ring.read(staged, &mut back).unwrap();
    assert!(back == there);
    for staged in unread {
        let mut words = [0; 1024];
        ring.read(staged, &mut words).unwrap();
        assert_eq!(words, [7, 0, 0, 0].repeat(256)[..], "as it was when it was copied out");
    }
    assert_eq!(ring.statistics().used_bytes, 0);
    source.release(block).unwrap();
}
