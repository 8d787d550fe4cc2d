//! Sends requests to an engine in this process, each when it is due, and notes what became of them.
//!
//! The thread that calls sends, and does nothing else until the last request is out; answers are
//! awaited on two threads of a runtime that lives as long as the pass. Dropping it gives up what has
//! not been answered.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use vecmill_engine::{
    Engine, Fault, Input, Prompt, Request, RequestError, Timings, TokenizeRequest,
};

use super::error::AbError;
use crate::traffic::{Arrival, Traffic};

/// What the inputs' tokens are taken from: which ones they are makes no difference to the time.
const TEXT: &str = "the mill by the river turned slowly in the heat of a long afternoon while two men \
    carried sacks of grain over the bridge and a boy counted them for his father";

/// How long devices may take to finish what they had begun when the rest was given up.
const REST: Duration = Duration::from_secs(120);

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// With its vectors.
    Answered,
    /// The engine had no room for it.
    Refused,
    /// A device failed at it.
    Failed,
    /// It was given up.
    Unanswered,
}

/// A request that was sent. Times are in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// When it was due.
    pub at: f64,
    /// How much later it was sent.
    pub late: f64,
    /// From when it was due until it was answered or given up.
    pub latency: f64,
    /// How long it waited for a device; all the time if it got none.
    pub waiting: f64,
    /// Tokens of all its inputs.
    pub tokens: usize,
    /// How it ended.
    pub fate: Fate,
}

impl Sent {
    /// When it was answered or given up.
    pub fn answered(&self) -> f64 {
        self.at + self.latency
    }
}

/// Number of the request, when the response came, and the response.
type Response = (usize, Instant, Result<Timings, RequestError>);

/// Sends requests to one engine.
#[derive(Debug)]
pub(super) struct Generator<'a> {
    pub(super) engine: &'a Engine,
    ids: Vec<u32>,
}

/// The requests of one pass on their way.
struct Flight<'a> {
    engine: &'a Engine,
    runtime: Runtime,
    sender: Sender<Response>,
    answers: Receiver<Response>,
}

impl<'a> Generator<'a> {
    /// For an engine and the words of its model.
    pub(super) fn new(engine: &'a Engine) -> Result<Self, AbError> {
        let request = TokenizeRequest {
            texts: vec![TEXT.to_owned()],
            prompt: Prompt::None,
            ..TokenizeRequest::default()
        };
        let tokens = engine.tokenize_blocking(request)?;
        let tokens = (0..).map_while(|n| tokens.token(0, n));
        Ok(Self { engine, ids: tokens.map(|token| token.id).collect() })
    }

    /// Sends each request when it is due, counted from `start`, and waits for the answers: for at
    /// most `drain` after the last request.
    pub(super) fn send(
        &self,
        traffic: &Traffic,
        start: Instant,
        drain: Duration,
    ) -> Result<Vec<Sent>, AbError> {
        let requests = traffic.arrivals.iter().map(|arrival| self.request(arrival));
        self.send_all(traffic, requests, start, Some(drain))
    }

    /// Sends requests that are all due at once, and waits for all answers. They are made before:
    /// that may take longer than a device takes for them.
    pub(super) fn send_at_once(
        &self,
        traffic: &Traffic,
        requests: Vec<Request>,
        start: Instant,
    ) -> Result<Vec<Sent>, AbError> {
        self.send_all(traffic, requests.into_iter(), start, None)
    }

    fn send_all(
        &self,
        traffic: &Traffic,
        requests: impl Iterator<Item = Request>,
        start: Instant,
        drain: Option<Duration>,
    ) -> Result<Vec<Sent>, AbError> {
        let flight = Flight::new(self.engine)?;
        let mut sent = Vec::with_capacity(traffic.arrivals.len());
        for ((index, arrival), request) in traffic.arrivals.iter().enumerate().zip(requests) {
            let due = start + Duration::from_secs_f64(arrival.at);
            wait_until(due);
            let late = Instant::now().saturating_duration_since(due).as_secs_f64();
            flight.send(index, request);
            let (at, tokens) = (arrival.at, arrival.tokens());
            sent.push(Sent {
                at,
                late,
                latency: 0.0,
                waiting: 0.0,
                tokens,
                fate: Fate::Unanswered,
            });
        }
        let last = Instant::now();
        let Flight { runtime, answers, sender, .. } = flight;
        drop(sender);
        let limit = drain.map(|drain| last + drain);
        let outcome = collect(&answers, start, limit, &mut sent);
        runtime.shutdown_background();
        outcome?;
        self.settle()?;
        Ok(sent)
    }

    /// Keeps so many tokens on their way until `end`.
    pub(super) fn saturate(
        &self,
        requests: impl Iterator<Item = Arrival>,
        tokens: usize,
        end: Instant,
    ) -> Result<(), AbError> {
        let flight = Flight::new(self.engine)?;
        let mut sizes = Vec::new();
        let mut missing = 0;
        for (index, request) in requests.enumerate() {
            sizes.push(request.tokens());
            missing += request.tokens();
            flight.send(index, self.request(&request));
            while missing >= tokens {
                let left = end.saturating_duration_since(Instant::now());
                let Ok((index, _, answer)) = flight.answers.recv_timeout(left) else { break };
                answer.map_err(AbError::Request)?;
                missing -= sizes[index];
            }
            if Instant::now() >= end {
                break;
            }
        }
        flight.runtime.shutdown_background();
        self.settle()
    }

    /// Waits until no device is at work.
    fn settle(&self) -> Result<(), AbError> {
        let limit = Instant::now() + REST;
        loop {
            let devices = self.engine.scheduling();
            if devices.iter().all(|(_, device)| device.running_batches == 0) {
                return Ok(());
            }
            if Instant::now() > limit {
                return Err(AbError::Restless { seconds: REST.as_secs() });
            }
            thread::park_timeout(Duration::from_millis(1));
        }
    }

    pub(super) fn request(&self, request: &Arrival) -> Request {
        let input = |&length: &usize| {
            Input::Tokens(self.ids.iter().copied().cycle().take(length).collect())
        };
        Request { inputs: request.lengths.iter().map(input).collect(), ..Request::default() }
    }
}

impl<'a> Flight<'a> {
    fn new(engine: &'a Engine) -> Result<Self, AbError> {
        let runtime =
            Builder::new_multi_thread().worker_threads(2).thread_name("answers").build()?;
        let (sender, answers) = mpsc::channel();
        Ok(Self { engine, runtime, sender, answers })
    }

    fn send(&self, index: usize, request: Request) {
        let answer = self.engine.embed(request);
        let sender = self.sender.clone();
        self.runtime.spawn(async move {
            let answer = answer.await.map(|reply| reply.timings);
            // Nobody listens any more to answers that come after the end.
            let _ = sender.send((index, Instant::now(), answer));
        });
    }
}

/// Sleeps until shortly before, as far as the system's timer can be trusted, then spins.
fn wait_until(due: Instant) {
    const TIMER: Duration = Duration::from_micros(100);
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        match left.checked_sub(TIMER) {
            Some(sleep) if !sleep.is_zero() => thread::park_timeout(sleep),
            _ => std::hint::spin_loop(),
        }
    }
}

/// Notes answers until all are there, or until `limit`.
fn collect(
    answers: &Receiver<Response>,
    start: Instant,
    limit: Option<Instant>,
    sent: &mut [Sent],
) -> Result<(), AbError> {
    loop {
        let answer = match limit {
            Some(limit) => answers.recv_timeout(limit.saturating_duration_since(Instant::now())),
            None => answers.recv().map_err(RecvTimeoutError::from),
        };
        let Ok((index, when, answer)) = answer else { break };
        let request = &mut sent[index];
        match answer {
            Ok(timings) => {
                request.latency = (when - start).as_secs_f64() - request.at;
                request.waiting = timings.queue.as_secs_f64();
                request.fate = Fate::Answered;
            }
            Err(error) => {
                request.fate = match error.fault() {
                    Fault::Caller => return Err(error.into()),
                    Fault::Load => Fate::Refused,
                    Fault::Server => Fate::Failed,
                }
            }
        }
    }
    // Whatever got no answer has waited at least until now.
    let now = start.elapsed().as_secs_f64();
    for request in sent.iter_mut().filter(|request| request.fate != Fate::Answered) {
        request.latency = now - request.at;
        request.waiting = request.latency;
    }
    Ok(())
}
