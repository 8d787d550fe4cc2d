//! What an engine counts, in OpenMetrics format.
//!
//! Names have the prefix `vecmill_`, base units, a `device` label where a device did the work, and a `model`
//! label where models differ: that of a model which is loaded, and gone with it.
//! What happens is counted as it happens; `memory` is read from the pools,
//! `scheduling` from the scheduler, `states` from the devices' sensors, when metrics are asked for.

mod memory;
mod scheduling;
mod states;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text::encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use vecmill_backend_cuda::GpuState;
use vecmill_scheduler::DeviceStatistics;

use crate::error::{Fault, RequestError};
use crate::experiment::{Experiment, Turn};
use crate::request::Reply;
use memory::Memory;
use scheduling::Scheduling;
use states::States;

pub(crate) use memory::PoolSample;

const PREFIX: &str = "vecmill";

/// How requests end.
const REQUEST_OUTCOMES: [&str; 5] = ["ok", "invalid", "busy", "failed", "given_up"];

/// How a request ended. Without a model where there is none of the name that was asked for: names that
/// callers make up are no labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    outcome: &'static str,
    model: Arc<str>,
}

/// Who did the work, and with what.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct WorkLabels {
    pub(crate) device: Arc<str>,
    pub(crate) model: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BatchLabels {
    device: Arc<str>,
    outcome: &'static str,
    model: Arc<str>,
}

type Work<M> = Family<WorkLabels, M>;

/// The metrics of one engine.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    request: Histogram,
    pub(crate) tokenization: Histogram,
    queue: Work<Histogram>,
    queue_inputs: Gauge,
    queue_tokens: Gauge,
    inputs: Work<Counter>,
    tokens: Work<Counter>,
    truncated: Counter,
    batches: Family<BatchLabels, Counter>,
    batch: Work<Histogram>,
    batch_tokens: Work<Histogram>,
    batch_ratio: Work<Histogram>,
    experiment: Option<Arc<Experiment>>,
}

/// 100 µs to 50 s in steps of two.
pub(crate) fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(1e-4, 2.0, 20))
}

/// 8 to 65,536 tokens in steps of two.
fn tokens() -> Histogram {
    Histogram::new(exponential_buckets(8.0, 2.0, 14))
}

/// Around 1, and far above it: a batch that stood still is ten or a hundred times late.
fn ratios() -> Histogram {
    Histogram::new([
        0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 300.0,
        1000.0,
    ])
}

impl Metrics {
    /// Of an engine, and of the experiment in it if there is one.
    pub(crate) fn new(experiment: Option<Arc<Experiment>>) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix(PREFIX),
            requests: Family::default(),
            request: seconds(),
            tokenization: seconds(),
            queue: Family::new_with_constructor(seconds),
            queue_inputs: Gauge::default(),
            queue_tokens: Gauge::default(),
            inputs: Family::default(),
            tokens: Family::default(),
            truncated: Counter::default(),
            batches: Family::default(),
            batch: Family::new_with_constructor(seconds),
            batch_tokens: Family::new_with_constructor(tokens),
            batch_ratio: Family::new_with_constructor(ratios),
            experiment,
        };
        metrics.register_work();
        if let Some(experiment) = &metrics.experiment {
            experiment.register(&mut metrics.registry);
        }
        metrics
    }

    #[rustfmt::skip] // one metric, one line
    fn register_work(&mut self) {
        let r = &mut self.registry;
        r.register("requests", "Requests answered, by outcome: ok, invalid, busy, failed or given_up (the caller went away)", self.requests.clone());
        r.register_with_unit("request_duration", "From a request's call to its answer", Unit::Seconds, self.request.clone());
        r.register_with_unit("tokenization_duration", "Tokenising up to 32 inputs of a request", Unit::Seconds, self.tokenization.clone());
        r.register_with_unit("queue_duration", "From an input's tokenising to its start on a device", Unit::Seconds, self.queue.clone());
        r.register("queue_inputs", "Inputs that wait for a device", self.queue_inputs.clone());
        r.register("queue_tokens", "Tokens that wait for a device", self.queue_tokens.clone());
        r.register("inputs", "Inputs embedded", self.inputs.clone());
        r.register("tokens", "Tokens embedded", self.tokens.clone());
        r.register("inputs_truncated", "Inputs cut to the model's limit", self.truncated.clone());
        r.register("batches", "Batches run, by outcome: ok, split (in halves, for want of memory), retried (the device failed, and it runs once more) or failed", self.batches.clone());
        r.register_with_unit("batch_duration", "A batch's time on the device: from its start, or from the end of the batch before if that is later, to its vectors on the host", Unit::Seconds, self.batch.clone());
        r.register("batch_time_ratio", "A batch's time on the device divided by the time that was predicted for it: 10 is ten times as long. Batches without a prediction are left out", self.batch_ratio.clone());
        r.register("batch_size_tokens", "Tokens of a batch", self.batch_tokens.clone());
    }

    /// Whose turn it is now, if policies take turns.
    pub(crate) fn turn(&self) -> Option<Turn> {
        self.experiment.as_ref().map(|experiment| experiment.turn())
    }

    /// Counts a request that was asked on a turn, and answered after so long.
    pub(crate) fn answered(
        &self,
        model: Arc<str>,
        took: Duration,
        asked: Option<Turn>,
        result: &Result<Reply, RequestError>,
    ) {
        if let (Some(experiment), Some(turn), Ok(reply)) = (&self.experiment, asked, result) {
            experiment.answered(turn, reply, took);
        }
        let outcome = match result {
            Ok(_) => "ok",
            Err(RequestError::GivenUp) => "given_up",
            Err(error) => match error.fault() {
                Fault::Caller => "invalid",
                Fault::Load => "busy",
                Fault::Server => "failed",
            },
        };
        self.requests.get_or_create(&RequestLabels { outcome, model }).inc();
        self.request.observe(took.as_secs_f64());
    }

    /// Counts a batch that a device has run.
    pub(crate) fn batch(&self, labels: &WorkLabels, ran: &Ran) {
        let outcome = ran.outcome.name();
        let WorkLabels { device, model } = labels.clone();
        let by_outcome = BatchLabels { device, outcome, model };
        self.batches.get_or_create(&by_outcome).inc();
        if ran.outcome == Outcome::Ok {
            self.inputs.get_or_create(labels).inc_by(ran.inputs);
            self.tokens.get_or_create(labels).inc_by(ran.tokens);
            self.truncated.inc_by(ran.truncated);
            self.batch.get_or_create(labels).observe(ran.seconds);
            #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2⁵²")]
            self.batch_tokens.get_or_create(labels).observe(ran.tokens as f64);
        }
    }

    /// Notes how long a batch took of what was predicted.
    pub(crate) fn predicted(&self, labels: &WorkLabels, took: f64, predicted: f64) {
        if predicted > 0.0 {
            self.batch_ratio.get_or_create(labels).observe(took / predicted);
        }
    }

    /// Notes how long an input has waited for the device that it runs on.
    pub(crate) fn waited(&self, labels: &WorkLabels, seconds: f64) {
        self.queue.get_or_create(labels).observe(seconds);
    }

    /// Counts a model no more that has gone from these devices.
    pub(crate) fn forget(&self, model: &str, devices: &[String]) {
        for outcome in REQUEST_OUTCOMES {
            self.requests.remove(&RequestLabels { outcome, model: model.into() });
        }
        for device in devices {
            let labels = WorkLabels { device: device.as_str().into(), model: model.into() };
            let WorkLabels { device, model } = &labels;
            for outcome in Outcome::ALL.map(Outcome::name) {
                let (device, model) = (Arc::clone(device), Arc::clone(model));
                self.batches.remove(&BatchLabels { device, outcome, model });
            }
            self.queue.remove(&labels);
            self.inputs.remove(&labels);
            self.tokens.remove(&labels);
            self.batch.remove(&labels);
            self.batch_tokens.remove(&labels);
            self.batch_ratio.remove(&labels);
        }
    }

    /// Writes all metrics, without the closing `# EOF`.
    pub(crate) fn write(
        &self,
        out: &mut String,
        backlog: (usize, usize),
        scheduling: Vec<(String, DeviceStatistics)>,
        states: Vec<(String, GpuState)>,
        memory: Vec<(String, PoolSample)>,
    ) -> fmt::Result {
        self.queue_inputs.set(signed(backlog.0));
        self.queue_tokens.set(signed(backlog.1));
        encode_registry(out, &self.registry)?;
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(Scheduling(scheduling)));
        if !states.is_empty() {
            registry.register_collector(Box::new(States(states)));
        }
        registry.register_collector(Box::new(Memory(memory)));
        encode_registry(out, &registry)
    }
}

/// How a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With vectors.
    Ok,
    /// As two smaller ones.
    Split,
    /// With an error, to be run once more.
    Retried,
    /// With an error.
    Failed,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Ok, Self::Split, Self::Retried, Self::Failed];

    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Split => "split",
            Self::Retried => "retried",
            Self::Failed => "failed",
        }
    }
}

/// What became of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ran {
    pub(crate) outcome: Outcome,
    pub(crate) inputs: u64,
    pub(crate) tokens: u64,
    pub(crate) truncated: u64,
    pub(crate) seconds: f64,
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
