//! The loop that each connection runs.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use super::answers::Request;
use super::connection::Connection;
use super::{GRACE, Window};

/// What connections need to know.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) host: Arc<str>,
    pub(super) requests: Arc<[Request]>,
    pub(super) window: Window,
}

/// What came back between the window's start and end.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Nanoseconds from the first byte sent to the last received, of each request.
    pub(super) latencies: Vec<u64>,
    pub(super) texts: u64,
    pub(super) tokens: u64,
    /// Texts by the second in which they were answered.
    pub(super) by_second: Vec<u64>,
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
}

impl Tally {
    pub(super) fn add(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        self.texts += other.texts;
        self.tokens += other.tokens;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        let seconds = self.by_second.len().max(other.by_second.len());
        self.by_second.resize(seconds, 0);
        for (all, own) in self.by_second.iter_mut().zip(other.by_second) {
            *all += own;
        }
    }

    fn answered(&mut self, window: Window, sent: Instant, texts: usize, tokens: u64) {
        let now = Instant::now();
        if now < window.start || now >= window.end {
            return;
        }
        self.latencies.push(u64::try_from((now - sent).as_nanos()).unwrap_or(u64::MAX));
        self.texts += texts as u64;
        self.tokens += tokens;
        let second = usize::try_from((now - window.start).as_secs()).unwrap_or(0);
        self.by_second.resize(self.by_second.len().max(second + 1), 0);
        self.by_second[second] += texts as u64;
    }

    /// Errors count whenever they happen.
    fn failed(&mut self, error: String) {
        self.errors += 1;
        self.first_error.get_or_insert(error);
    }
}

impl Client {
    /// Runs a connection for each of `starts`, the places in the list of requests where they begin.
    pub(super) fn run(&self, starts: Vec<usize>) -> io::Result<Tally> {
        Builder::new_current_thread().enable_all().build()?.block_on(async {
            let mut connections = JoinSet::new();
            for start in starts {
                connections.spawn(self.clone().repeat(start));
            }
            let mut all = Tally::default();
            while let Some(tally) = connections.join_next().await {
                all.add(tally.map_err(io::Error::other)??);
            }
            Ok(all)
        })
    }

    async fn repeat(self, start: usize) -> io::Result<Tally> {
        let give_up = (self.window.end + GRACE).into();
        let mut connection = Connection::open(&self.host).await?;
        let mut tally = Tally::default();
        for request in self.requests.iter().cycle().skip(start) {
            let sent = Instant::now();
            if sent >= self.window.end {
                break;
            }
            let reply = timeout_at(give_up, connection.exchange(&request.bytes)).await;
            let reply = reply.map_err(io::Error::from).flatten();
            match reply.map(|reply| request.check(reply.status, reply.body)) {
                Ok(Ok(tokens)) => tally.answered(self.window, sent, request.texts(), tokens),
                Ok(Err(error)) => tally.failed(error),
                Err(error) => {
                    tally.failed(error.to_string());
                    connection = Connection::open(&self.host).await?;
                }
            }
        }
        Ok(tally)
    }
}
