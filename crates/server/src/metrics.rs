//! The server's own metrics. Labels name the route's pattern, never the address as sent.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::room::RequestMemory;

/// Upper bounds in seconds: from one short text on a GPU to a bulk request on a CPU.
const DURATION_BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

/// The server's own metrics.
#[derive(Debug)]
pub(crate) struct HttpMetrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Histogram>,
    in_flight: Gauge,
    slow_readers: Counter,
    memory: Gauge,
    memory_peak: Gauge,
    memory_limit: Gauge,
}

/// Shows how many lines of the log were lost.
#[derive(Debug)]
struct LostLines(Arc<AtomicU64>);

impl Collector for LostLines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let lost = ConstCounter::new(self.0.load(Ordering::Relaxed));
        let help = "Lines of the log that could not be written, or that nobody read in time";
        let name = "vecmill_log_lines_lost";
        lost.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: Arc<str>,
    method: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: Arc<str>,
}

impl HttpMetrics {
    pub(crate) fn new(lost_log_lines: Arc<AtomicU64>) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(LostLines(lost_log_lines)));
        let http = registry.sub_registry_with_prefix("vecmill_http");
        let requests = Family::default();
        http.register("requests", "Requests that ended", requests.clone());
        let durations =
            Family::new_with_constructor((|| Histogram::new(DURATION_BUCKETS)) as fn() -> _);
        let help = "Time from a request's head to its reply's head";
        http.register("request_duration_seconds", help, durations.clone());
        let in_flight = Gauge::default();
        http.register("requests_in_flight", "Requests at work", in_flight.clone());
        let slow_readers = Counter::default();
        let help = "Connections ended because their client took a reply too slowly";
        http.register("slow_readers", help, slow_readers.clone());
        let memory = <[Gauge; 3]>::default();
        let [held, peak, limit] = &memory;
        let help = "Memory that requests hold, from their bodies to their replies";
        http.register("request_memory_bytes", help, held.clone());
        let help = "The most memory that requests held at one time";
        http.register("request_memory_peak_bytes", help, peak.clone());
        let help = "The most memory that requests may hold";
        http.register("request_memory_limit_bytes", help, limit.clone());
        let [memory, memory_peak, memory_limit] = memory;
        Self {
            registry,
            requests,
            durations,
            in_flight,
            slow_readers,
            memory,
            memory_peak,
            memory_limit,
        }
    }

    /// Counts a request that begins.
    pub(crate) fn began(&self) {
        self.in_flight.inc();
    }

    /// Counts and times a request that began and has ended.
    pub(crate) fn ended(&self, route: &Arc<str>, method: &'static str, status: u16, seconds: f64) {
        self.in_flight.dec();
        let route = || Arc::clone(route);
        self.durations.get_or_create(&RouteLabels { route: route() }).observe(seconds);
        self.requests.get_or_create(&RequestLabels { route: route(), method, status }).inc();
    }

    /// Counts a connection that was ended because its client took a reply too slowly.
    pub(crate) fn slow_reader(&self) {
        self.slow_readers.inc();
    }

    /// Appends the metrics and the closing `# EOF`.
    pub(crate) fn write_last(&self, memory: &RequestMemory, out: &mut String) -> fmt::Result {
        let signed = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.memory.set(signed(memory.held()));
        self.memory_peak.set(signed(memory.peak()));
        self.memory_limit.set(signed(memory.for_requests()));
        encode_registry(out, &self.registry)?;
        encode_eof(out)
    }
}
