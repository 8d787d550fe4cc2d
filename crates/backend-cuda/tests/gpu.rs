//! What only a device can show. Each test has the device for itself, because some of them compare
//! its free memory before and after.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test says what must hold by panicking")]

// Of the same program, so that they have the device for themselves, too.
#[path = "gpu/gemm.rs"]
mod gemm;
#[path = "gpu/parts.rs"]
mod parts;
#[path = "gpu/sensors.rs"]
mod sensors;
#[path = "gpu/staging.rs"]
mod staging;

use std::sync::{Mutex, MutexGuard, PoisonError};

use vecmill_backend_cuda::{
    CudaBlock, CudaSource, CudaStream, DeviceSpan, Gpu, MappedBlock, MappedSource, PlainSource,
    StreamOrderedSource,
};
use vecmill_memory::{Cause, Source};

const MIB: usize = 1 << 20;
const GRANULE: usize = 2 * MIB;

/// What the driver may take for itself meanwhile: page tables, code that it loads at first use.
const DRIVERS_OWN: usize = 16 * MIB;

/// The first device, used by one test at a time.
fn device() -> (MutexGuard<'static, ()>, Gpu) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    (guard, Gpu::open(0).unwrap())
}

fn free(device: &Gpu) -> usize {
    device.memory_info().unwrap().free
}

/// Free memory went from `before` down by `bytes`.
fn assert_taken(device: &Gpu, before: usize, bytes: usize) {
    let taken = before.saturating_sub(free(device));
    assert!((bytes..bytes + DRIVERS_OWN).contains(&taken), "{taken} bytes in place of {bytes}");
}

/// As much is created and mapped as is unmapped and released.
fn assert_all_undone(source: &MappedSource) {
    assert_eq!(count(source, "create"), count(source, "release"));
    assert_eq!(count(source, "address_reserve"), count(source, "address_free"));
}

fn word(stream: &CudaStream, span: DeviceSpan<'_>) -> u32 {
    let mut bytes = [0; 4];
    stream.copy_to_host(span, &mut bytes).unwrap();
    u32::from_ne_bytes(bytes)
}

/// All words of the span, which should be the same.
fn uniform(stream: &CudaStream, span: DeviceSpan<'_>) -> u32 {
    let mut bytes = vec![0; span.bytes()];
    stream.copy_to_host(span, &mut bytes).unwrap();
    let (words, []) = bytes.as_chunks::<4>() else { panic!("not words") };
    assert!(words.iter().all(|word| *word == words[0]));
    u32::from_ne_bytes(words[0])
}

fn count(source: &impl Source, kind: &str) -> u64 {
    source.calls().into_iter().find(|(name, _)| *name == kind).unwrap().1
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_device_says_what_it_is() {
    let (_guard, device) = device();
    let info = device.info();
    assert_eq!((info.ordinal, device.name()), (0, "cuda:0"));
    assert!(info.compute_capability.0 >= 5);
    assert!(info.driver >= (12, 0));
    let memory = device.memory_info().unwrap();
    assert!(memory.free <= memory.total && memory.total > 0);
    let listed = vecmill_backend_cuda::devices().unwrap();
    assert_eq!(listed[0].uuid, info.uuid);
}

#[test]
#[ignore = "needs a CUDA device"]
fn growing_keeps_address_and_contents_and_takes_only_the_difference() {
    let (_guard, device) = device();
    let (source, stream) = (MappedSource::new(&device).unwrap(), device.stream().unwrap());
    let mut block = source.allocate(100 * MIB).unwrap();
    let address = block.address();
    assert_eq!(address % 256, 0);
    assert_eq!(count(&source, "create"), 2, "64 and 36 MiB");
    stream.fill_u32(block.span(0..100 * MIB).unwrap(), 1).unwrap();
    // While the device is at it.
    source.resize(&mut block, 130 * MIB).unwrap();
    stream.fill_u32(block.span(100 * MIB..130 * MIB).unwrap(), 2).unwrap();
    assert_eq!(count(&source, "create"), 3);
    assert_eq!((block.address(), block.bytes()), (address, 130 * MIB));
    assert_eq!(uniform(&stream, block.span(0..100 * MIB).unwrap()), 1);
    assert_eq!(uniform(&stream, block.span(100 * MIB..130 * MIB).unwrap()), 2);
    source.release(block).unwrap();
}

#[test]
#[ignore = "needs a CUDA device"]
fn shrinking_gives_memory_back_and_keeps_what_whole_chunks_have() {
    let (_guard, device) = device();
    let (source, stream) = (MappedSource::new(&device).unwrap(), device.stream().unwrap());
    let mut block = source.allocate(200 * MIB).unwrap();
    let address = block.address();
    stream.fill_u32(block.span(0..200 * MIB).unwrap(), 7).unwrap();
    stream.synchronize().unwrap();
    let before = free(&device) + 130 * MIB;
    source.resize(&mut block, 70 * MIB).unwrap();
    assert_taken(&device, before, 0);
    assert_eq!((block.address(), block.bytes()), (address, 70 * MIB));
    assert!(block.span(0..70 * MIB + 4).is_err());
    assert_eq!(uniform(&stream, block.span(0..64 * MIB).unwrap()), 7);
    // The rest is new, and the device can use it.
    stream.fill_u32(block.span(64 * MIB..70 * MIB).unwrap(), 8).unwrap();
    assert_eq!(uniform(&stream, block.span(64 * MIB..70 * MIB).unwrap()), 8);
    source.resize(&mut block, 0).unwrap();
    source.resize(&mut block, GRANULE).unwrap();
    assert_eq!(block.address(), address);
    source.release(block).unwrap();
}

#[test]
#[ignore = "needs a CUDA device"]
fn releasing_and_dropping_give_all_memory_back() {
    let (_guard, device) = device();
    let source = MappedSource::new(&device).unwrap();
    let plain = PlainSource::new(&device);
    let stream = device.stream().unwrap();
    source.release(source.allocate(GRANULE).unwrap()).unwrap();
    plain.release(plain.allocate(GRANULE).unwrap()).unwrap();
    let before = free(&device);
    for _ in 0..3 {
        let (released, dropped) = (source.allocate(300 * MIB), source.allocate(300 * MIB));
        let (released, dropped) = (released.unwrap(), dropped.unwrap());
        assert_taken(&device, before, 600 * MIB);
        source.release(released).unwrap();
        // Work that is under way is no trouble.
        stream.fill_u32(dropped.span(0..300 * MIB).unwrap(), 3).unwrap();
        drop(dropped);
        device.synchronize().unwrap();
        assert_taken(&device, before, 0);

        let (released, dropped) = (plain.allocate(300 * MIB), plain.allocate(300 * MIB));
        plain.release(released.unwrap()).unwrap();
        drop(dropped.unwrap());
        assert_taken(&device, before, 0);
    }
    assert_all_undone(&source);
    assert_eq!(count(&source, "map"), count(&source, "unmap"));
}

/// Resizes a block at random and checks the first and last word of each 2 MiB each time. `lossy`
/// is how many 2 MiB at the end a cut may lose.
fn resize_at_random(device: &Gpu, source: &MappedSource, steps: usize, lossy: usize) {
    let stream = device.stream().unwrap();
    let ends = |block: &MappedBlock, granule: usize| -> [u32; 2] {
        let start = granule * GRANULE;
        [start, start + GRANULE - 4].map(|at| word(&stream, block.span(at..at + 4).unwrap()))
    };
    let mut block = source.allocate(GRANULE).unwrap();
    let address = block.address();
    let mut expected: Vec<u32> = Vec::new();
    let (mut random, mut next) = (88_172_645_463_325_252_u64, 0);
    for _ in 0..steps {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let granules = 1 + usize::try_from(random % 96).unwrap();
        source.resize(&mut block, granules * GRANULE).unwrap();
        assert_eq!((block.address(), block.bytes()), (address, granules * GRANULE));
        if granules < expected.len() {
            expected.truncate(granules.saturating_sub(lossy));
        }
        for granule in expected.len()..granules {
            next += 1;
            expected.push(next);
            let span = block.span(granule * GRANULE..(granule + 1) * GRANULE).unwrap();
            stream.fill_u32(span, next).unwrap();
        }
        for (granule, value) in expected.iter().enumerate() {
            assert_eq!(ends(&block, granule), [*value; 2], "granule {granule} of {granules}");
        }
    }
    source.release(block).unwrap();
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_thousand_resizes_keep_what_they_should() {
    let (_guard, device) = device();
    let source = MappedSource::new(&device).unwrap();
    source.release(source.allocate(GRANULE).unwrap()).unwrap();
    let before = free(&device);
    resize_at_random(&device, &source.clone().with_largest_chunk(GRANULE), 500, 0);
    resize_at_random(&device, &source, 500, 31);
    assert_all_undone(&source);
    assert_taken(&device, before, 0);
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_stream_waits_for_an_event_of_another() {
    let (_guard, device) = device();
    let source = CudaSource::new(&device).unwrap();
    let (first, second) = (device.stream().unwrap(), device.stream().unwrap());
    assert!(first == first.clone() && first != second);
    let block = source.allocate(512 * MIB).unwrap();
    let mut event = source.event().unwrap();
    assert!(source.has_passed(&event).unwrap(), "never recorded");
    source.wait_on_host(&event).unwrap();
    for value in 1..=200 {
        first.fill_u32(block.span(0..512 * MIB).unwrap(), value).unwrap();
    }
    source.record(&mut event, &first).unwrap();
    source.wait(&second, &event).unwrap();
    assert_eq!(word(&second, block.span(512 * MIB - 4..512 * MIB).unwrap()), 200);
    assert!(source.has_passed(&event).unwrap(), "the second stream is behind it");
    assert!(first.is_idle().unwrap() && second.is_idle().unwrap());
    source.release(block).unwrap();
}

#[test]
#[ignore = "needs a CUDA device"]
fn asking_for_too_much_is_exhausted_and_takes_nothing() {
    let (_guard, device) = device();
    let source = MappedSource::new(&device).unwrap();
    let plain = PlainSource::new(&device);
    let mut block = source.allocate(GRANULE).unwrap();
    plain.release(plain.allocate(GRANULE).unwrap()).unwrap();
    let before = free(&device);
    let too_much = (device.info().total_memory + GRANULE).next_multiple_of(GRANULE);
    let refused = [
        source.allocate(too_much).unwrap_err(),
        source.resize(&mut block, device.info().total_memory / GRANULE * GRANULE).unwrap_err(),
        source.resize(&mut block, too_much + GRANULE).unwrap_err(),
        plain.allocate(too_much).unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.cause, Cause::Exhausted, "{error}");
        assert_eq!(error.source_name, "cuda:0");
    }
    assert_taken(&device, before, 0);
    assert_eq!(block.bytes(), GRANULE);
    assert_eq!(source.resize(&mut block, MIB).unwrap_err().cause, Cause::Failed);
    let stream = device.stream().unwrap();
    stream.fill_u32(block.span(0..GRANULE).unwrap(), 5).unwrap();
    assert_eq!(uniform(&stream, block.span(0..GRANULE).unwrap()), 5);
    assert_eq!(source.available(), Some(free(&device)));
    source.release(block).unwrap();
    // One that was not created has nothing to release.
    assert_eq!(count(&source, "create") - 2, count(&source, "release"));
}

#[test]
#[ignore = "needs a CUDA device"]
fn pinned_memory_is_never_seen_half_copied() {
    let (_guard, device) = device();
    let source = CudaSource::new(&device).unwrap();
    let (first, second) = (device.stream().unwrap(), device.stream().unwrap());
    let block = source.allocate(64 * MIB).unwrap();
    let mut up = device.pinned(64 * MIB).unwrap();
    let mut down = device.pinned(64 * MIB).unwrap();
    assert!(up.as_slice().unwrap().iter().all(|&byte| byte == 0));
    for round in 1..=8_u8 {
        // Waits for the copy of the round before.
        up.as_mut_slice().unwrap().fill(round);
        let whole = block.span(0..64 * MIB).unwrap();
        first.copy_from_pinned(&mut up, 0..64 * MIB, whole).unwrap();
        let mut event = source.event().unwrap();
        source.record(&mut event, &first).unwrap();
        source.wait(&second, &event).unwrap();
        second.copy_to_pinned(whole, &mut down, 0..64 * MIB).unwrap();
        assert!(down.as_slice().unwrap().iter().all(|&byte| byte == round));
    }
    // Two streams in turn with one buffer: the second copy is behind the first.
    first.fill_u32(block.span(0..4).unwrap(), 17).unwrap();
    first.copy_to_pinned(block.span(0..4).unwrap(), &mut down, 0..4).unwrap();
    second.copy_from_pinned(&mut down, 0..4, block.span(8..12).unwrap()).unwrap();
    assert_eq!(word(&second, block.span(8..12).unwrap()), 17);

    let part = block.span(0..8).unwrap();
    assert_eq!(first.copy_to_pinned(part, &mut down, 0..4).unwrap_err().cause, Cause::Failed);
    let end = 64 * MIB;
    let beyond = first.copy_to_pinned(part, &mut down, end - 4..end + 4);
    assert_eq!(beyond.unwrap_err().cause, Cause::Failed);
    assert!(first.fill_u32(block.span(1..5).unwrap(), 0).is_err(), "not aligned");
    assert!(device.pinned(0).is_err());
    source.release(block).unwrap();
}

#[test]
#[ignore = "needs a CUDA device"]
fn host_memory_is_copied_there_and_back() {
    let (_guard, device) = device();
    let (source, stream) = (CudaSource::new(&device).unwrap(), device.stream().unwrap());
    let block = source.allocate(GRANULE).unwrap();
    let there: Vec<u8> = (0..=255).cycle().take(100_003).collect();
    let span = block.span(13..13 + there.len()).unwrap();
    stream.copy_from_host(&there, span).unwrap();
    let mut back = vec![0; there.len()];
    stream.copy_to_host(span, &mut back).unwrap();
    assert!(there == back);
    assert!(stream.copy_to_host(span, &mut back[1..]).is_err(), "another length");
    source.release(block).unwrap();
}

#[test]
#[ignore = "needs a CUDA device"]
fn any_thread_may_use_a_device() {
    let (_guard, device) = device();
    let source = CudaSource::new(&device).unwrap();
    let fill = |value: u32| {
        let stream = device.stream().unwrap();
        let block = source.allocate(GRANULE).unwrap();
        stream.fill_u32(block.span(0..GRANULE).unwrap(), value).unwrap();
        assert_eq!(uniform(&stream, block.span(0..GRANULE).unwrap()), value);
        block
    };
    let blocks: Vec<CudaBlock> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|value| scope.spawn(move || fill(value))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for block in blocks {
        source.release(block).unwrap();
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_context_is_made_anew_after_the_last_use() {
    let (_guard, first) = device();
    first.stream().unwrap().synchronize().unwrap();
    drop(first);
    // On the same thread, to which the old context is still bound.
    let again = Gpu::open(0).unwrap();
    again.stream().unwrap().synchronize().unwrap();
    let source = CudaSource::new(&again).unwrap();
    source.release(source.allocate(GRANULE).unwrap()).unwrap();
}

#[test]
#[ignore = "needs a CUDA device"]
fn the_drivers_pool_keeps_what_its_threshold_says() {
    let (_guard, device) = device();
    for (threshold, keeps) in [(0, false), (u64::MAX, true)] {
        let source = StreamOrderedSource::new(&device, threshold).unwrap();
        let stream = device.stream().unwrap();
        let bytes = 64 * MIB;
        let block = source.allocate(bytes).unwrap();
        assert!(source.used_bytes().unwrap() >= bytes as u64);
        stream.fill_u32(block.span(0..bytes).unwrap(), 9).unwrap();
        assert_eq!(uniform(&stream, block.span(0..bytes).unwrap()), 9);
        source.release(block).unwrap();
        device.synchronize().unwrap();
        assert_eq!(source.used_bytes().unwrap(), 0);
        assert_eq!(source.reserved_bytes().unwrap() > 0, keeps, "threshold {threshold}");

        let block = source.allocate_in(&stream, bytes).unwrap();
        stream.fill_u32(block.span(0..bytes).unwrap(), 4).unwrap();
        source.release_in(&stream, block).unwrap();
        drop(source.allocate(bytes).unwrap());
        stream.synchronize().unwrap();
        device.synchronize().unwrap();
        assert_eq!(source.used_bytes().unwrap(), 0);
        assert!(!source.resizes_in_place());
        assert_eq!(count(&source, "allocate_async"), 3);
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_held_stream_waits_and_timed_events_measure() {
    let (_guard, device) = device();
    let stream = device.stream().unwrap();
    let (mut start, mut end) = (device.timed_event().unwrap(), device.timed_event().unwrap());
    let held = stream.hold().unwrap();
    stream.record(&mut start).unwrap();
    stream.record(&mut end).unwrap();
    assert!(!end.has_passed().unwrap());
    drop(held);
    end.synchronize().unwrap();
    assert!(end.time_since(&start).unwrap().as_millis() < 100, "the hold is not measured");
    let untimed = device.event().unwrap();
    assert!(untimed.time_since(&start).is_err());
}
