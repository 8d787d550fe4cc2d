//! Every figure is there, with its help, unit and value.

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::registry::Registry;
use vecmill_encoder::PlanStatistics;
use vecmill_memory::{HostSource, Pool};

use super::*;

const MIB: usize = 1 << 20;

fn written(pool: &Pool<HostSource>, plans: PlanStatistics) -> String {
    let memory = PoolSample { pool: pool.statistics(), plans, first_uses: 0 };
    let mut registry = Registry::with_prefix("vecmill");
    registry.register_collector(Box::new(Memory(vec![("cpu".into(), memory)])));
    let mut text = String::new();
    encode_registry(&mut text, &registry).unwrap();
    text
}

/// The value of a series, by its name and its labels beside the device's.
fn value(text: &str, name: &str, labels: &str) -> f64 {
    let comma = if labels.is_empty() { "" } else { "," };
    let series = format!("vecmill_memory_{name}{{device=\"cpu\"{comma}{labels}}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&series));
    line.unwrap_or_else(|| panic!("no {series}in\n{text}")).parse().unwrap()
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "a few mebibytes")]
fn every_figure_has_its_value() {
    let pool = Pool::new(HostSource, 64 * MIB);
    let weights = pool.reserve(10 * MIB).unwrap();
    pool.note_driver(7 * MIB);
    drop(pool.lease(8 * MIB, &()).unwrap());
    let lease = pool.lease(3 * MIB, &()).unwrap();
    let second = pool.lease(2 * MIB, &()).unwrap();
    drop(second);
    assert!(pool.lease(60 * MIB, &()).is_err());
    let plans = PlanStatistics { plans: 1, hits: 1, misses: 2, evictions: 1 };
    let text = written(&pool, plans);
    let bytes = |name: &str| value(&text, &format!("{name}_bytes"), "");
    let mib = |mib: usize| (mib * MIB) as f64;
    assert_eq!(bytes("budget"), mib(64));
    assert_eq!((bytes("reserved"), bytes("driver")), (mib(10), mib(7)));
    assert_eq!((bytes("held"), bytes("held_peak")), (mib(10), mib(10)));
    assert_eq!((bytes("leased"), bytes("requested"), bytes("stranded")), (mib(8), mib(3), mib(5)));
    assert_eq!((bytes("requested_peak"), bytes("free")), (mib(8), mib(2)));
    assert_eq!(value(&text, "largest_free_bytes", "kind=\"mapped\""), mib(2));
    assert_eq!(value(&text, "largest_free_bytes", "kind=\"mappable\""), mib(64 - 10 - 8));
    assert_eq!(value(&text, "slabs", ""), 2.0);
    assert_eq!(value(&text, "external_fragmentation_ratio", ""), 0.0);
    assert_eq!(value(&text, "internal_fragmentation_ratio", ""), 8.0 / 3.0);
    assert_eq!(value(&text, "utilisation_loss_ratio", ""), 1.0 - 0.8);
    assert_eq!(value(&text, "warm_ratio", ""), 1.0 / 3.0);
    let leases = |outcome| value(&text, "leases_total", &format!("outcome=\"{outcome}\""));
    assert_eq!(["warm", "grown", "refused"].map(leases), [1.0, 2.0, 1.0]);
    assert_eq!(leases("waited"), 0.0);
    for never in ["refusals_with_room_total", "plan_overruns_total", "source_failures_total"] {
        assert_eq!(value(&text, never, ""), 0.0);
    }
    assert_eq!(value(&text, "plans_cached", ""), 1.0);
    let plan_cache = |what: &str| value(&text, &format!("plan_cache_{what}_total"), "");
    assert_eq!(["hits", "misses", "evictions"].map(plan_cache), [1.0, 2.0, 1.0]);
    assert!(value(&text, "driver_calls_total", "call=\"map\"") >= 2.0);
    drop((lease, weights));
    pool.trim();
    let text = written(&pool, plans);
    assert_eq!(value(&text, "trims_total", ""), 1.0);
    assert_eq!(value(&text, "slabs_given_back_total", ""), 2.0);
    assert_eq!(value(&text, "given_back_bytes_total", ""), mib(10));
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "a few leases")]
fn the_histogram_counts_what_the_pool_timed() {
    let pool = Pool::new(HostSource, 64 * MIB);
    for _ in 0..64 {
        drop(pool.lease(MIB, &()).unwrap());
    }
    let timed: u64 = pool.statistics().latency.iter().map(|bucket| bucket.leases).sum();
    assert_eq!(timed, 4, "one in sixteen");
    let text = written(&pool, PlanStatistics::default());
    assert_eq!(value(&text, "lease_duration_seconds_count", ""), timed as f64);
    let last = "vecmill_memory_lease_duration_seconds_bucket{le=\"+Inf\",device=\"cpu\"} 4\n";
    assert!(text.contains(last));
    let sum = pool.statistics().latency_nanoseconds as f64 / 1e9;
    assert_eq!(value(&text, "lease_duration_seconds_sum", ""), sum);
    let buckets = text
        .lines()
        .filter(|line| line.contains("_bucket{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap());
    assert!(buckets.is_sorted());
}

#[test]
fn each_metric_is_described_once_with_its_unit() {
    let text = written(&Pool::new(HostSource, MIB), PlanStatistics::default());
    let mut described = Vec::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(help.ends_with('.') && help.len() > 10, "{line}");
            described.push(name);
        } else if let Some(unit) = line.strip_prefix("# UNIT ") {
            let (name, unit) = unit.split_once(' ').unwrap();
            assert!(name.ends_with(unit), "{line}");
        }
    }
    for name in [
        "budget_bytes",
        "held_bytes",
        "held_peak_bytes",
        "leased_bytes",
        "requested_bytes",
        "requested_peak_bytes",
        "free_bytes",
        "largest_free_bytes",
        "stranded_bytes",
        "reserved_bytes",
        "slabs",
        "external_fragmentation_ratio",
        "internal_fragmentation_ratio",
        "utilisation_loss_ratio",
        "lease_duration_seconds",
        "leases",
        "driver_calls",
        "trims",
        "slabs_given_back",
        "given_back_bytes",
        "predicted_bytes",
        "wanted_bytes",
        "prediction_error_ratio",
        "warm_ratio",
        "refusals_with_room",
        "plan_overruns",
        "source_failures",
        "plans_cached",
        "plan_cache_hits",
        "plan_cache_misses",
        "plan_cache_evictions",
        "driver_bytes",
    ] {
        let name = format!("vecmill_memory_{name}");
        let count = described.iter().filter(|&&described| described == name).count();
        assert_eq!(count, 1, "{name}");
    }
    assert!(described.contains(&"vecmill_first_uses_after_start"), "{described:?}");
    let all = described.len();
    assert_eq!(all, 33, "a metric that this test does not know: {described:?}");
}
