//! Parts of a device: disjoint, and given back.

use vecmill_backend_cuda::{Gpu, PlainSource, Unavailable};
use vecmill_memory::Source;

use super::{GRANULE, device, uniform};

fn multiprocessors(part: &Gpu) -> u32 {
    part.info().multiprocessors
}

#[test]
#[ignore = "needs a CUDA device"]
fn parts_share_a_device_without_overlap_and_come_back() {
    let (_guard, whole) = device();
    let all = multiprocessors(&whole);
    let small = Gpu::open_part(0, 16).unwrap();
    let large = Gpu::open_part(0, 32).unwrap();
    let rest = Gpu::open_part(0, all - 48).unwrap();
    assert_eq!([&small, &large, &rest].map(multiprocessors), [16, 32, all - 48]);
    assert_eq!(large.name(), "cuda:0/sms=32");
    let refused = Gpu::open_part(0, 1).unwrap_err();
    assert!(matches!(refused, Unavailable::NoPart { wanted: 1, left: 0, .. }), "{refused}");
    drop(large);
    assert_eq!(multiprocessors(&Gpu::open_part(0, 20).unwrap()), 24, "in groups of eight");
    drop((small, rest));
    assert_eq!(multiprocessors(&Gpu::open_part(0, all).unwrap()), all);
    let refused = Gpu::open_part(0, all + 1).unwrap_err();
    assert!(matches!(refused, Unavailable::NoPart { .. }), "{refused}");
}

#[test]
#[ignore = "needs a CUDA device"]
fn parts_work_side_by_side() {
    let (_guard, _whole) = device();
    let open = |wanted| {
        let part = Gpu::open_part(0, wanted).unwrap();
        (PlainSource::new(&part), part.stream().unwrap())
    };
    let parts = [open(16), open(32)];
    let blocks = parts.each_ref().map(|(source, _)| source.allocate(GRANULE).unwrap());
    for (value, ((_, stream), block)) in (7..).zip(parts.iter().zip(&blocks)) {
        stream.fill_u32(block.span(0..GRANULE).unwrap(), value).unwrap();
    }
    for (value, ((source, stream), block)) in (7..).zip(parts.iter().zip(blocks)) {
        assert_eq!(uniform(stream, block.span(0..GRANULE).unwrap()), value);
        source.release(block).unwrap();
    }
}
