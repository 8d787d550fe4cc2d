//! Recordings replayed on a simulated device: what each way of managing memory must do with them.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use vecmill_memory::recording::Event;
use vecmill_memory::{GiveBack, PoolSettings};
use vecmill_testing::simulated::SimulatedDevice;

use super::*;

const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;
const SECOND: u64 = 1_000_000_000;

/// Numbers that look random and are the same each time: Marsaglia's xorshift64*.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33
    }

    /// A number in a range, small ones as likely per octave as large ones.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        let octaves = u64::from((high / low).max(1).ilog2()) + 1;
        let low = low << (self.next() % octaves);
        (low + self.next() % low).min(high)
    }
}

const MILLISECOND: u64 = 1_000_000;

/// Bursts of batches on three streams: batches, and their smallest and largest megabytes. Short
/// texts first, then longer ones, as an index is built, and questions in between.
const BURSTS: [(u64, u64, u64); 7] =
    [(40, 4, 16), (60, 6, 40), (30, 4, 12), (70, 12, 90), (30, 4, 12), (40, 40, 120), (30, 4, 16)];

/// What a server with three streams does in 20 seconds: up to two batches in flight on each.
fn sample() -> Recording {
    let mut numbers = Numbers(20_250_807);
    let (mut events, mut id, mut now) = (Vec::new(), 0, 0);
    for (batches, low, high) in BURSTS {
        let mut free = [[now; 2]; 3];
        for _ in 0..batches {
            id += 1;
            now += numbers.between(2, 40) * MILLISECOND;
            let stream = (numbers.next() % 3) as usize;
            let bytes = numbers.between(low << 10, high << 10) * 1000;
            let work = 8 * MILLISECOND + bytes * 5 / 2; // 400 megabytes take a second
            let begin = free[stream][0].max(now);
            let end = free[stream][1].max(begin) + work; // streams work in order
            free[stream] = [free[stream][1], end];
            let (stream, bytes) = (stream as u32, bytes as usize);
            events.push(Event { nanoseconds: begin, what: What::Lease { id, stream, bytes } });
            events.push(Event { nanoseconds: end, what: What::Return { id } });
        }
        now = free.iter().fold(now, |now, ends| now.max(ends[1]));
        now += numbers.between(300, 1500) * MILLISECOND;
    }
    events.sort_by_key(|event| event.nanoseconds);
    Recording { events, lost: 0 }
}

fn sample_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/recordings/sample.csv")
}

/// What the pool, the naive one and none made of `recording`, and the devices with `bytes` of memory
/// that each had for itself.
fn all_three(recording: &Recording, bytes: usize) -> (Comparison, [SimulatedDevice; 3]) {
    let devices = [(); 3].map(|()| SimulatedDevice::new(bytes));
    let pool = pool(&devices[0], bytes);
    let mut pool = pooled(&pool, &devices[0]);
    let mut naive = Naive::new(devices[1].clone());
    let mut direct = PerTensor::new(devices[2].clone());
    let options = Options { budget: Some(bytes), ..Options::default() };
    let comparison = compare(recording, &mut [&mut pool, &mut naive, &mut direct], &options);
    (comparison, devices)
}

/// A pool that gives back what it has not needed for a second.
fn pool(device: &SimulatedDevice, budget: usize) -> WatchedPool<SimulatedDevice> {
    let give_back = GiveBack::After(Duration::from_secs(1));
    let settings = PoolSettings { give_back, ..PoolSettings::default() };
    WatchedPool::new(device.clone(), budget, settings)
}

fn pooled<'p>(
    pool: &'p WatchedPool<SimulatedDevice>,
    device: &SimulatedDevice,
) -> Pooled<'p, SimulatedDevice> {
    let device = device.clone();
    Pooled::new(pool, move |_| device.stream())
}

fn through(recording: &Recording, manager: &mut dyn Manager) -> Report {
    replay(recording, manager, &Options::default())
}

/// A recording of leases (begin, end and bytes), named by their place in the list.
fn recording(leases: &[(u64, u64, usize)]) -> Recording {
    let mut events = Vec::new();
    for (id, &(begin, end, bytes)) in (0..).zip(leases) {
        let lease = What::Lease { id, stream: 0, bytes };
        events.push(Event { nanoseconds: begin, what: lease });
        events.push(Event { nanoseconds: end, what: What::Return { id } });
    }
    events.sort_by_key(|event| event.nanoseconds);
    Recording { events, lost: 0 }
}

/// Makes the committed sample anew: `cargo test -p vecmill-bench replay -- --ignored`.
#[test]
#[ignore = "writes testdata/recordings/sample.csv"]
fn write_sample() {
    sample().write(std::fs::File::create(sample_path()).unwrap()).unwrap();
}

#[test]
fn the_committed_sample_is_what_the_generator_makes() {
    let text = std::fs::read(sample_path()).unwrap();
    let recording = Recording::read(&text[..]).unwrap();
    assert!(recording == sample(), "run the ignored test `write_sample`");
}

#[test]
fn the_naive_pool_grows_and_never_shrinks() {
    let (comparison, devices) = all_three(&sample(), 4 * GIB);
    let naive = &comparison.reports[1];
    assert!(naive.series.bins.is_sorted_by_key(|bin| bin.held_bytes));
    assert_eq!(naive.end_held_bytes, naive.peak_held_bytes);
    assert!(naive.peak_held_bytes > 2 * naive.peak_requested_bytes);
    assert_eq!(naive.refusals, 0);
    assert!(devices[1].violations().is_empty());
}

#[test]
fn without_a_pool_only_what_is_leased_is_held_and_nothing_is_warm() {
    let (comparison, devices) = all_three(&sample(), 4 * GIB);
    let direct = &comparison.reports[2];
    assert!(direct.series.bins.iter().all(|bin| bin.held_bytes == bin.leased_bytes));
    assert!(direct.peak_held_bytes - direct.peak_requested_bytes <= 6 * 2 * MIB, "rounding only");
    assert_eq!((direct.end_held_bytes, direct.max_external_fragmentation), (0, 0.0));
    assert_eq!((direct.leases, direct.warm_leases), (300, 0));
    assert_eq!(devices[2].taken_bytes(), 0);
    assert!(devices[2].violations().is_empty());
}

#[test]
fn the_pool_stays_in_its_budget_and_gives_back() {
    let (comparison, devices) = all_three(&sample(), GIB);
    let [pool, naive, _] = &comparison.reports[..] else { panic!("three managers, three reports") };
    assert_eq!((pool.refusals, pool.leases), (0, 300));
    assert!(pool.peak_held_bytes <= GIB);
    assert!(pool.end_held_bytes < pool.peak_held_bytes / 2);
    assert!(pool.mean_held_bytes < naive.mean_held_bytes);
    assert!(pool.warm_leases > 150);
    assert!(devices[0].violations().is_empty());
    assert!(naive.refusals > 0, "the naive pool has filled the device with what is too small");
    assert!(naive.refusals_with_room > 0);
}

#[test]
fn the_pool_gives_back_while_nothing_happens() {
    let leases: Vec<_> = (0..6).map(|at| (at, 100 + at, 64 * MIB)).collect();
    let mut recording = recording(&leases);
    let end = Event { nanoseconds: 60 * SECOND, what: What::Refuse { stream: 0, bytes: 1 } };
    recording.events.push(end);
    let device = SimulatedDevice::new(GIB);
    let report = through(&recording, &mut pooled(&pool(&device, GIB), &device));
    assert!(report.peak_held_bytes >= 6 * 64 * MIB);
    assert_eq!(report.end_held_bytes, 0);
    assert_eq!(device.taken_bytes(), 0);
}

#[test]
fn a_refused_lease_is_counted_and_its_return_passed_over() {
    let leases = [(0, 1, 12 * MIB), (0, 1, 12 * MIB), (2, 5, 20 * MIB), (3, 4, 12 * MIB)];
    let naive = through(&recording(&leases), &mut Naive::new(SimulatedDevice::new(24 * MIB)));
    assert_eq!((naive.leases, naive.refusals, naive.refusals_with_room), (3, 1, 1));
    assert_eq!((naive.peak_requested_bytes, naive.end_held_bytes), (24 * MIB, 24 * MIB));
    let direct = through(&recording(&leases), &mut PerTensor::new(SimulatedDevice::new(24 * MIB)));
    assert_eq!((direct.leases, direct.refusals, direct.refusals_with_room), (3, 1, 0));
    let device = SimulatedDevice::new(24 * MIB);
    let pool = pool(&device, 24 * MIB);
    let pool = through(&recording(&leases), &mut pooled(&pool, &device));
    assert_eq!((pool.leases, pool.refusals), (3, 1), "20 MiB beside nothing, then no room for 12");
}

#[test]
fn means_are_over_time_and_ratios_over_what_was_asked_for() {
    // 4 MiB held for 3 seconds of 8, and 2 for one more.
    let leases = [(5 * SECOND, 8 * SECOND, 3 * MIB), (9 * SECOND, 10 * SECOND, 2 * MIB)];
    let mut events = recording(&leases);
    let end = Event { nanoseconds: 13 * SECOND, what: What::Refuse { stream: 0, bytes: 1 } };
    events.events.push(end);
    let report = through(&events, &mut PerTensor::new(SimulatedDevice::new(GIB).instant()));
    let close = |found: f64, expected: f64| (found - expected).abs() < 1e-9 * expected;
    assert!(close(report.mean_held_bytes, (4 * 3 + 2) as f64 / 8.0 * MIB as f64));
    assert!(close(report.mean_internal_fragmentation, (4.0 / 3.0 * 3.0 + 1.0) / 4.0));
    assert!(close(report.peak_internal_fragmentation, 4.0 / 3.0));
    assert!(close(report.utilisation_loss(), 0.25));
    assert_eq!(report.leases, 2, "a refusal that was recorded is passed over");
    let naive = through(&events, &mut Naive::new(SimulatedDevice::new(GIB)));
    assert_eq!((naive.leases, naive.warm_leases, naive.warm_ratio()), (2, 1, 0.5));
}

#[test]
fn a_replay_gives_the_same_figures_each_time() {
    let runs = [(); 2].map(|()| all_three(&sample(), 2 * GIB).0);
    for (first, second) in runs[0].reports.iter().zip(&runs[1].reports) {
        assert_eq!(first.series, second.series);
        assert_eq!(first.driver_calls, second.driver_calls);
        assert_eq!(first.map, second.map);
    }
    assert_eq!(runs[0].svg(), runs[1].svg());
}

#[test]
fn hostile_recordings_come_to_an_end() {
    let far = u64::MAX - 1;
    let leases = [(0, far, usize::MAX), (1, far, MIB), (2, 3, usize::MAX / 2), (far, far, 0)];
    let (comparison, _) = all_three(&recording(&leases), GIB);
    for report in &comparison.reports {
        assert_eq!((report.leases, report.refusals), (2, 2), "{}", report.name);
    }
    assert!(!comparison.svg().contains("NaN") && !comparison.svg().contains("inf"));
    let lease = |id| Event { nanoseconds: 9, what: What::Lease { id, stream: 0, bytes: MIB } };
    let mut wrong = Recording { events: vec![lease(1), lease(1)], lost: 0 };
    wrong.events.push(Event { nanoseconds: 2, what: What::Return { id: 7 } });
    let report = through(&wrong, &mut Naive::new(SimulatedDevice::new(GIB)));
    assert_eq!(report.leases, 1, "what no recorder writes is passed over");
}

#[test]
fn a_recording_without_events_has_a_report_and_a_picture() {
    let (comparison, _) = all_three(&Recording::default(), GIB);
    assert_eq!(comparison.reports[0].warm_ratio(), 1.0);
    assert!(comparison.svg().ends_with("</svg>\n") && !comparison.svg().contains("NaN"));
}

#[test]
fn the_table_has_a_column_for_each_manager() {
    let (comparison, _) = all_three(&sample(), 4 * GIB);
    let table = comparison.table();
    let mut lines = table.lines();
    let names: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(names, ["pool", "naive", "direct"]);
    assert_eq!(lines.next().unwrap().split_whitespace().collect::<Vec<_>>()[2..], ["300"; 3]);
    let width = table.lines().next().unwrap().chars().count();
    assert!(table.lines().all(|line| line.chars().count() == width), "columns are aligned");
}

#[test]
fn a_picture_of_a_long_recording_stays_small() {
    let mut numbers = Numbers(7);
    let leases: Vec<_> = (0..10_000)
        .map(|index| {
            let begin = index * MILLISECOND;
            let bytes = numbers.between(4, 120) as usize * MIB;
            (begin, begin + numbers.between(1, 9) * MILLISECOND, bytes)
        })
        .collect();
    let (comparison, _) = all_three(&recording(&leases), 4 * GIB);
    let svg = comparison.svg();
    assert!(svg.len() < 1_000_000, "{} bytes", svg.len());
    assert!(comparison.reports.iter().all(|report| !report.map.complete));
    assert!(svg.contains("around the moment when most was asked for"));
}

/// Recordings of up to 40 leases that overlap at will.
fn recordings() -> impl Strategy<Value = Recording> {
    let lease = (0..50u64, 1..20u64, 1..100usize);
    prop::collection::vec(lease, 1..40).prop_map(|leases| {
        let scaled = |(begin, length, size): &(u64, u64, usize)| {
            let begin = begin * 40 * MILLISECOND;
            (begin, begin + length * 15 * MILLISECOND, size * MIB - 7)
        };
        recording(&leases.iter().map(scaled).collect::<Vec<_>>())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn leases_never_overlap_and_devices_are_not_overdrawn(recording in recordings(), mib in 32..1024usize) {
        let (comparison, devices) = all_three(&recording, mib * MIB);
        for (report, device) in comparison.reports.iter().zip(&devices) {
            prop_assert!(report.peak_held_bytes <= mib * MIB);
            prop_assert!(device.violations().is_empty());
            prop_assert_eq!((report.leases + report.refusals) * 2, recording.events.len() as u64);
            let leased: Vec<_> =
                report.map.pieces.iter().filter(|piece| piece.lease.is_some()).collect();
            for (index, one) in leased.iter().enumerate() {
                for other in &leased[..index] {
                    let apart = one.to <= other.from
                        || other.to <= one.from
                        || one.address + one.bytes as u64 <= other.address
                        || other.address + other.bytes as u64 <= one.address;
                    prop_assert!(apart, "{:?} and {:?} in {}", one, other, report.name);
                }
            }
        }
    }
}
