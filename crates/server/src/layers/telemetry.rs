//! What the server tells about requests: metrics, one log line each, and an id.
//!
//! Labels and log lines name the route's pattern, never the address as sent; no line has text, keys
//! or vectors. A request whose client left before the reply counts with status 499.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::room::RequestMemory;
use crate::failure::Failure;

/// The header that carries a request's id, from the client if it sent one, and back.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken from a client.
const MAX_ID: usize = 128;

/// The status of a request whose client did not wait for the reply.
const CLIENT_LEFT: u16 = 499;

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

/// A request being served; its end is recorded when this is dropped, however it ends.
struct InFlight {
    metrics: Arc<HttpMetrics>,
    route: Arc<str>,
    method: &'static str,
    id: HeaderValue,
    status: u16,
    /// What went wrong, if that is the server's fault.
    incident: Option<String>,
    start: Instant,
}

impl InFlight {
    fn new(metrics: Arc<HttpMetrics>, request: &Request) -> Self {
        metrics.in_flight.inc();
        let matched = request.extensions().get::<MatchedPath>();
        Self {
            metrics,
            route: matched.map_or("unmatched", MatchedPath::as_str).into(),
            method: known(request.method()),
            id: request_id(request.headers().get(REQUEST_ID)),
            status: CLIENT_LEFT,
            incident: None,
            start: Instant::now(),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let elapsed = self.start.elapsed().as_secs_f64();
        let (route, method, status) = (Arc::clone(&self.route), self.method, self.status);
        let metrics = &self.metrics;
        metrics.in_flight.dec();
        metrics.durations.get_or_create(&RouteLabels { route }).observe(elapsed);
        let route = Arc::clone(&self.route);
        metrics.requests.get_or_create(&RequestLabels { route, method, status }).inc();
        let (route, id) = (&*self.route, self.id.to_str().unwrap_or_default());
        if let Some(incident) = &self.incident {
            tracing::error!(method, route, status, seconds = elapsed, id, incident, "request");
        } else if matches!(route, "/health" | "/ping" | "/ready" | "/metrics") {
            tracing::debug!(method, route, status, seconds = elapsed, id, "request");
        } else {
            tracing::info!(method, route, status, seconds = elapsed, id, "request");
        }
    }
}

/// The layer that counts, times and logs a request, and gives its reply the id.
pub(crate) async fn track(
    State(metrics): State<Arc<HttpMetrics>>,
    request: Request,
    next: Next,
) -> Response {
    let mut in_flight = InFlight::new(metrics, &request);
    let mut response = next.run(request).await;
    in_flight.status = response.status().as_u16();
    let failure = response.extensions().get::<Failure>();
    in_flight.incident = failure.filter(|failure| failure.is_incident()).map(Failure::to_string);
    response.headers_mut().insert(REQUEST_ID, in_flight.id.clone());
    response
}

/// Methods as a bounded set of labels: a client can make names up.
fn known(method: &Method) -> &'static str {
    const KNOWN: [(Method, &str); 7] = [
        (Method::GET, "GET"),
        (Method::POST, "POST"),
        (Method::HEAD, "HEAD"),
        (Method::OPTIONS, "OPTIONS"),
        (Method::PUT, "PUT"),
        (Method::PATCH, "PATCH"),
        (Method::DELETE, "DELETE"),
    ];
    KNOWN.iter().find(|(known, _)| known == method).map_or("other", |(_, name)| name)
}

/// The client's id if it is harmless to repeat, else a new one.
fn request_id(sent: Option<&HeaderValue>) -> HeaderValue {
    static REQUESTS: AtomicU64 = AtomicU64::new(0);
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0));
    let harmless = |id: &&HeaderValue| {
        (1..=MAX_ID).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    sent.filter(harmless).cloned().unwrap_or_else(|| {
        let id = format!("{:016x}-{:x}", *PROCESS, REQUESTS.fetch_add(1, Ordering::Relaxed));
        HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("unknown"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_echoed_only_when_harmless() {
        let harmless = HeaderValue::from_static("abc-123");
        assert_eq!(request_id(Some(&harmless)), harmless);
        let long = HeaderValue::from_str(&"x".repeat(MAX_ID + 1)).unwrap();
        for bad in ["", "two words"].map(HeaderValue::from_static).iter().chain([&long]) {
            assert_ne!(request_id(Some(bad)), *bad);
        }
        assert_ne!(request_id(None), request_id(None));
    }

    #[test]
    fn made_up_methods_share_a_label() {
        assert_eq!(known(&Method::POST), "POST");
        assert_eq!(known(&Method::from_bytes(b"BREW").unwrap()), "other");
    }
}
