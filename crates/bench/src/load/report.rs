//! A load's figures, as they are kept and as they are printed.

use std::io;

use serde::Serialize;
use vecmill_lab::histogram::{buckets, percentile};
use vecmill_lab::lengths::Lengths;
use vecmill_lab::results::{self, whole};

use super::client::Tally;
use super::server::Stage;
use super::{LoadArguments, Look};

const NANOSECONDS_PER_MS: f64 = 1e6;

/// Upper bounds of the histogram's buckets grow by this factor, from this many milliseconds on.
const BUCKET_RATIO: f64 = 1.25;
const FIRST_BUCKET_MS: f64 = 0.1;

/// What a load measured.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    what: &'static str,
    name: String,
    lengths: Lengths,
    connections: usize,
    texts_per_request: usize,
    generator_threads: usize,
    warm_up_seconds: f64,
    seconds: f64,
    requests: usize,
    embeddings_per_second: f64,
    tokens_per_second: f64,
    mean_tokens: f64,
    /// Embeddings in the slowest and the fastest second.
    slowest_second: u64,
    fastest_second: u64,
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// Upper bounds in milliseconds, and how many requests took that long and longer than the bound
    /// before.
    histogram: Vec<(f64, usize)>,
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
    /// Cores that the server and the generator kept busy.
    server_cores: Option<f64>,
    generator_cores: Option<f64>,
    /// Where the server's time went.
    stages: Vec<Stage>,
}

impl Figures {
    pub(super) fn new(
        arguments: &LoadArguments,
        tally: &mut Tally,
        looks: Option<(Look, Look)>,
    ) -> Self {
        let seconds = arguments.seconds;
        // Whole seconds only: one that is cut short is not slow.
        tally.by_second.resize(whole(seconds).max(1) as usize, 0);
        tally.latencies.sort_unstable();
        let in_ms = |&nanoseconds: &u64| nanoseconds as f64 / NANOSECONDS_PER_MS;
        let latencies: Vec<f64> = tally.latencies.iter().map(in_ms).collect();
        let [p50_ms, p90_ms, p99_ms, max_ms] =
            [0.5, 0.9, 0.99, 1.0].map(|part| percentile(&latencies, part));
        let server = looks.map(|(before, after)| Server::between(&before, &after));
        let Server { server_cores, generator_cores, stages } = server.unwrap_or_default();
        Self {
            what: "load",
            name: arguments.name.clone(),
            lengths: arguments.kind.lengths,
            connections: arguments.connections,
            texts_per_request: arguments.texts,
            generator_threads: arguments.threads,
            warm_up_seconds: arguments.warm_up,
            seconds,
            requests: tally.latencies.len(),
            embeddings_per_second: tally.texts as f64 / seconds,
            tokens_per_second: tally.tokens as f64 / seconds,
            mean_tokens: tally.tokens as f64 / tally.texts.max(1) as f64,
            slowest_second: tally.by_second.iter().copied().min().unwrap_or(0),
            fastest_second: tally.by_second.iter().copied().max().unwrap_or(0),
            p50_ms,
            p90_ms,
            p99_ms,
            max_ms,
            histogram: buckets(&latencies, FIRST_BUCKET_MS, BUCKET_RATIO),
            errors: tally.errors,
            first_error: tally.first_error.take(),
            server_cores,
            generator_cores,
            stages,
        }
    }

    pub(super) fn print(&self) -> io::Result<()> {
        let Self { embeddings_per_second: rate, tokens_per_second: tokens, .. } = self;
        let Self { p50_ms, p90_ms, p99_ms, max_ms, errors, .. } = self;
        let cores = |cores: Option<f64>| cores.map_or("unknown".into(), |n| format!("{n:.1}"));
        results::line(&format!(
            "{} · {} connections × {} texts of {} tokens (mean {:.1})\n\
             {rate:.0} embeddings/s ({}–{} by the second), {tokens:.0} tokens/s, {errors} errors\n\
             latency p50 {p50_ms:.2} ms, p90 {p90_ms:.2}, p99 {p99_ms:.2}, max {max_ms:.2}\n\
             cores busy: server {}, generator {}\n",
            self.name,
            self.connections,
            self.texts_per_request,
            self.lengths,
            self.mean_tokens,
            self.slowest_second,
            self.fastest_second,
            cores(self.server_cores),
            cores(self.generator_cores),
        ))?;
        for Stage { what, count, mean, per_second } in &self.stages {
            results::line(&format!("{what}: {count:.0} of mean {mean:.6}, {per_second:.2} per s"))?;
        }
        Ok(())
    }
}

/// What two looks at the server say.
#[derive(Debug, Default)]
struct Server {
    server_cores: Option<f64>,
    generator_cores: Option<f64>,
    stages: Vec<Stage>,
}

impl Server {
    fn between(before: &Look, after: &Look) -> Self {
        let seconds = (after.at - before.at).as_secs_f64();
        let cores = |before: Option<f64>, after: Option<f64>| Some((after? - before?) / seconds);
        Self {
            server_cores: cores(before.server_processor, after.server_processor),
            generator_cores: cores(before.own_processor, after.own_processor),
            stages: after.metrics.since(&before.metrics, seconds),
        }
    }
}
