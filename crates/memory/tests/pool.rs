//! The pool against a model of itself, on a simulated device that judges every use of memory.
#![expect(clippy::panic, reason = "helpers of tests speak by panicking")]

use std::time::Duration;

use proptest::prelude::*;
use vecmill_memory::{GiveBack, HostSource, Lease, LeaseError, Pool, PoolSettings, Remedy, Source};
use vecmill_testing::simulated::{SimulatedDevice, SimulatedStream};

const MIB: usize = 1 << 20;
const MILLISECOND: u64 = 1_000_000;

#[derive(Debug, Clone)]
enum Step {
    Lease { bytes: usize, stream: usize },
    Launch { lease: usize, milliseconds: u64 },
    Return { lease: usize },
    Trim,
    Maintain,
    Advance { milliseconds: u64 },
    NeighbourTakes(usize),
    NeighbourGives(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1usize..40 * MIB, 0usize..3).prop_map(|(bytes, stream)| Step::Lease { bytes, stream }),
        6 => (0usize..16, 1u64..50)
            .prop_map(|(lease, milliseconds)| Step::Launch { lease, milliseconds }),
        5 => (0usize..16).prop_map(|lease| Step::Return { lease }),
        1 => Just(Step::Trim),
        2 => Just(Step::Maintain),
        3 => (1u64..2000).prop_map(|milliseconds| Step::Advance { milliseconds }),
        1 => (1usize..100 * MIB).prop_map(Step::NeighbourTakes),
        1 => (1usize..100 * MIB).prop_map(Step::NeighbourGives),
    ];
    prop::collection::vec(step, 1..120)
}

/// Leases that are out must not share an address.
fn assert_apart(leases: &[Lease<'_, SimulatedDevice>]) {
    let mut ranges: Vec<_> = leases
        .iter()
        .map(|lease| (lease.block().address(), lease.block().address() + lease.bytes() as u64))
        .collect();
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "overlap: {ranges:?}");
}

struct Scene {
    device: SimulatedDevice,
    streams: [SimulatedStream; 3],
    pool: Pool<SimulatedDevice>,
    budget: usize,
}

impl Scene {
    fn new(in_place: bool) -> Self {
        let device = SimulatedDevice::new(150 * MIB).instant().in_place(in_place);
        let streams = [device.stream(), device.stream(), device.stream()];
        let budget = 100 * MIB;
        let settings = PoolSettings {
            give_back: GiveBack::After(Duration::from_secs(2)),
            ..PoolSettings::default()
        };
        let pool = Pool::with_settings(device.clone(), budget, settings);
        Self { device, streams, pool, budget }
    }

    fn run(&self, steps: &[Step]) {
        let mut leases: Vec<(Lease<'_, SimulatedDevice>, usize)> = Vec::new();
        for step in steps {
            match *step {
                Step::Lease { bytes, stream } => {
                    match self.pool.lease(bytes, &self.streams[stream]) {
                        Ok(lease) => {
                            assert!(lease.bytes() >= bytes);
                            leases.push((lease, stream));
                        }
                        Err(error) => self.check_refusal(&error, leases.len()),
                    }
                }
                Step::Launch { lease, milliseconds } if !leases.is_empty() => {
                    let (lease, stream) = &leases[lease % leases.len()];
                    let (stream, duration) = (&self.streams[*stream], milliseconds * MILLISECOND);
                    self.device.launch(stream, lease.block(), 0..lease.bytes(), duration);
                }
                Step::Return { lease } if !leases.is_empty() => {
                    drop(leases.swap_remove(lease % leases.len()));
                }
                Step::Trim => drop(self.pool.trim()),
                Step::Maintain => drop(self.pool.maintain()),
                Step::Advance { milliseconds } => self.device.advance(milliseconds * MILLISECOND),
                Step::NeighbourTakes(bytes) => drop(self.device.neighbour_takes(bytes)),
                Step::NeighbourGives(bytes) => self.device.neighbour_gives(bytes),
                Step::Launch { .. } | Step::Return { .. } => {}
            }
            let out: Vec<_> = leases.into_iter().collect();
            self.check(&out);
            leases = out;
        }
    }

    fn check(&self, leases: &[(Lease<'_, SimulatedDevice>, usize)]) {
        let now = self.pool.statistics();
        let leased: usize = leases.iter().map(|(lease, _)| lease.bytes()).sum();
        assert!(now.leased_bytes >= leased);
        assert!(now.requested_bytes >= leases.iter().map(|(lease, _)| lease.planned_bytes()).sum());
        assert_eq!(now.held_bytes, self.device.taken_bytes());
        assert!(now.held_bytes <= self.budget && now.peak_held_bytes <= self.budget);
        assert_eq!(now.leased_bytes + now.idle_bytes, now.held_bytes);
        assert_eq!(now.refused_with_room, 0);
        assert!(self.device.violations().is_empty(), "{:?}", self.device.violations());
    }

    fn check_refusal(&self, error: &LeaseError, out: usize) {
        match error.remedy() {
            Remedy::Wait => assert!(out > 0 || self.in_flight(), "nobody to wait for: {error}"),
            Remedy::Split => {}
            Remedy::Reject => panic!("nothing was wrong, but: {error}"),
        }
    }

    /// Whether the device still works on something that was returned.
    fn in_flight(&self) -> bool {
        self.streams.iter().any(|stream| self.device.stream_time(stream) > self.device.now())
    }
}

proptest! {
    #[test]
    fn leases_never_overlap_and_every_byte_is_accounted_for(steps in steps(), in_place: bool) {
        let scene = Scene::new(in_place);
        scene.run(&steps);
        for stream in &scene.streams {
            scene.device.synchronize(stream);
        }
        scene.pool.trim();
        prop_assert_eq!(scene.device.taken_bytes(), 0, "all is given back");
        prop_assert_eq!(scene.pool.statistics().held_bytes, 0);
    }
}

#[test]
fn overlap_would_be_noticed() {
    let scene = Scene::new(true);
    let one = scene.pool.lease(MIB, &scene.streams[0]).unwrap();
    let two = scene.pool.lease(MIB, &scene.streams[0]).unwrap();
    assert_apart(&[one, two]);
}

/// Devices' threads share pools, and a batch may end on another thread than the one it began on.
#[test]
fn pools_are_shared_and_leases_are_sent() {
    fn shared<T: Send + Sync>() {}
    fn sent<T: Send>() {}
    shared::<Pool<HostSource>>();
    sent::<Lease<'_, HostSource>>();
    shared::<vecmill_memory::Statistics>();
    shared::<LeaseError>();
}

#[test]
fn a_returned_slab_serves_the_next_lease() {
    let pool = Pool::new(HostSource, 64 * MIB);
    drop(pool.lease(5 * MIB, &()).unwrap());
    drop(pool.lease(5 * MIB, &()).unwrap());
    drop(pool.lease(4 * MIB, &()).unwrap());
    let now = pool.statistics();
    assert_eq!((now.leases.grown, now.leases.warm, now.held_bytes), (1, 2, 6 * MIB));
    assert_eq!(now.warm_ratio(), Some(2.0 / 3.0));
}

#[test]
fn a_larger_slab_takes_the_place_of_a_smaller_one() {
    let pool = Pool::new(HostSource, 1 << 30);
    for size in [1, 30, 3, 60, 7, 100, 2, 99] {
        drop(pool.lease(size * MIB, &()).unwrap());
    }
    let held = pool.statistics().held_bytes;
    assert!((100 * MIB..=104 * MIB).contains(&held), "one batch at a time holds {held} bytes");
    assert_eq!(pool.statistics().leases.grown, 4, "small batches run in the large slab");
}

#[test]
fn a_slab_grows_where_it_is() {
    let scene = Scene::new(true);
    let first = scene.pool.lease(4 * MIB, &scene.streams[0]).unwrap();
    let address = first.block().address();
    drop(first);
    let grown = scene.pool.lease(50 * MIB, &scene.streams[0]).unwrap();
    assert_eq!(grown.block().address(), address);
    let now = scene.pool.statistics();
    assert_eq!((now.held_bytes, now.peak_held_bytes), (50 * MIB, 50 * MIB), "no more than needed");
}

#[test]
fn what_can_never_fit_is_told_apart_from_what_must_wait() {
    let pool = Pool::new(HostSource, 16 * MIB);
    let _weights = pool.reserve(4 * MIB).unwrap();
    assert_eq!(pool.lease(13 * MIB, &()).unwrap_err().remedy(), Remedy::Split);
    let held = pool.lease(10 * MIB, &()).unwrap();
    assert_eq!(pool.lease(10 * MIB, &()).unwrap_err().remedy(), Remedy::Wait);
    drop(held);
    assert!(pool.lease(10 * MIB, &()).is_ok());
    assert!(matches!(pool.reserve(15 * MIB), Err(LeaseError::TooLarge { .. })));
    assert_eq!(pool.lease(usize::MAX, &()).unwrap_err().remedy(), Remedy::Split);
    assert!(pool.region(usize::MAX).is_err());
    assert_eq!(pool.statistics().leases.refused, 3);
}

#[test]
fn weights_have_a_region_of_their_own() {
    let scene = Scene::new(true);
    let region = scene.pool.region(5 * MIB).unwrap();
    let now = scene.pool.statistics();
    assert_eq!((now.reserved_bytes, now.held_bytes, now.slabs), (6 * MIB, 0, 0));
    assert_eq!(scene.device.taken_bytes(), 6 * MIB);
    drop(region);
    assert_eq!((scene.device.taken_bytes(), scene.pool.statistics().reserved_bytes), (0, 0));
}

#[test]
fn another_streams_work_is_waited_for_on_the_device_not_on_the_host() {
    let scene = Scene::new(true);
    let [one, two, _] = &scene.streams;
    let mut lease = scene.pool.lease(4 * MIB, one).unwrap();
    scene.device.launch(one, lease.block(), 0..lease.bytes(), 30 * MILLISECOND);
    lease.record().unwrap();
    drop(lease);
    let before = scene.device.now();
    let lease = scene.pool.lease(4 * MIB, two).unwrap();
    assert_eq!(scene.device.now(), before, "the host goes on");
    let runs = scene.device.launch(two, lease.block(), 0..lease.bytes(), MILLISECOND);
    assert_eq!(runs.start, before + 30 * MILLISECOND, "the device waits");
    assert!(scene.device.violations().is_empty());
    assert_eq!(scene.pool.statistics().slabs, 1);
}

#[test]
fn memory_in_use_is_not_given_back() {
    let scene = Scene::new(true);
    let lease = scene.pool.lease(8 * MIB, &scene.streams[0]).unwrap();
    scene.device.launch(&scene.streams[0], lease.block(), 0..lease.bytes(), 10 * MILLISECOND);
    drop(lease);
    assert_eq!(scene.pool.trim(), 0);
    scene.device.advance(10 * MILLISECOND);
    assert_eq!(scene.pool.trim(), 8 * MIB);
    assert!(scene.device.violations().is_empty());
}

#[test]
fn a_pool_that_ends_waits_for_its_device() {
    let scene = Scene::new(true);
    let lease = scene.pool.lease(8 * MIB, &scene.streams[0]).unwrap();
    scene.device.launch(&scene.streams[0], lease.block(), 0..lease.bytes(), 10 * MILLISECOND);
    drop(lease);
    let device = scene.device.clone();
    drop(scene);
    assert_eq!(device.taken_bytes(), 0);
    assert!(device.violations().is_empty(), "{:?}", device.violations());
}

#[test]
fn a_panicking_batch_returns_its_slab() {
    let pool = Pool::new(HostSource, 16 * MIB);
    let inner = pool.clone();
    let result = std::thread::spawn(move || {
        let _lease = inner.lease(MIB, &()).unwrap();
        panic!("the batch failed");
    })
    .join();
    assert!(result.is_err());
    assert_eq!(pool.statistics().leased_bytes, 0);
    assert_eq!(pool.trim(), 2 * MIB);
}

#[test]
fn threads_never_share_a_slab() {
    let pool = Pool::new(HostSource, 64 * MIB);
    let rounds = if cfg!(miri) { 5 } else { 500 };
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let pool = pool.clone();
            scope.spawn(move || {
                for _ in 0..rounds {
                    let mut lease = pool.lease(MIB, &()).unwrap();
                    let bytes = lease.block_mut().bytes_mut();
                    bytes[..64].fill(thread);
                    std::thread::yield_now();
                    assert!(bytes[..64].iter().all(|&byte| byte == thread));
                }
            });
        }
    });
    let now = pool.statistics();
    assert!(now.leased_bytes == 0 && now.held_bytes <= 8 * 2 * MIB);
    assert_eq!(now.leases.warm + now.leases.grown, 8 * rounds);
}

#[test]
fn waiting_ends_when_a_lease_comes_back() {
    let pool = Pool::new(HostSource, 8 * MIB);
    let pool = &pool;
    let lease = pool.lease(8 * MIB, &()).unwrap();
    std::thread::scope(|scope| {
        let patience = Duration::from_secs(60);
        let waiter = scope.spawn(move || pool.lease_waiting(8 * MIB, &(), patience).map(drop));
        while !pool.is_waited_for() {
            std::thread::yield_now();
        }
        drop(lease);
        waiter.join().unwrap().unwrap();
    });
    assert_eq!(pool.statistics().leases.waited, 1);
}

#[test]
fn patience_ends_in_a_busy_error() {
    let pool = Pool::new(HostSource, 8 * MIB);
    let _lease = pool.lease(8 * MIB, &()).unwrap();
    let refused = pool.lease_waiting(8 * MIB, &(), Duration::from_millis(30)).unwrap_err();
    assert!(matches!(refused, LeaseError::Busy { .. }));
    assert_eq!(pool.statistics().leases.refused, 1);
}

#[test]
fn the_trace_tells_what_was_leased_and_refused() {
    use vecmill_memory::recording::What;
    let pool = Pool::new(HostSource, 8 * MIB);
    drop(pool.lease(3 * MIB, &()).unwrap());
    let held = pool.lease(7 * MIB, &()).unwrap();
    pool.lease(4 * MIB, &()).unwrap_err();
    let recording = pool.recording();
    let kinds: Vec<_> = recording
        .events
        .iter()
        .map(|event| match event.what {
            What::Lease { bytes, .. } => ("lease", bytes),
            What::Return { .. } => ("return", 0),
            What::Refuse { bytes, .. } => ("refuse", bytes),
            _ => ("other", 0),
        })
        .collect();
    let expected = [("lease", 3 * MIB), ("return", 0), ("lease", 7 * MIB), ("refuse", 4 * MIB)];
    assert_eq!(kinds, expected);
    drop(held);
}
