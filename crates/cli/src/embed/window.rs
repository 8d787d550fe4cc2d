//! Texts in flight: enough to fill batches, few enough to bound memory, answered in order.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::task::JoinHandle;
use vecmill_engine::{Embedding, Engine, Reply, Request, RequestError};

use crate::embed::input::Record;

/// The most texts in flight: several full batches of short ones.
const TEXTS: usize = 8192;

/// The most bytes of text in flight, unless one text alone has more.
const BYTES: u64 = 64 << 20;

/// The longest pause before a busy engine is asked again.
const PATIENCE: Duration = Duration::from_millis(100);

/// What became of one text.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) index: u64,
    pub(crate) number: u64,
    pub(crate) size: u64,
    pub(crate) outcome: Result<Embedding, String>,
}

/// Texts in flight, the oldest first.
#[derive(Debug)]
pub(crate) struct Window {
    texts: VecDeque<Text>,
    bytes: u64,
    capacity: usize,
}

#[derive(Debug)]
struct Text {
    index: u64,
    number: u64,
    size: u64,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Running(JoinHandle<Result<Reply, RequestError>>),
    Failed(String),
}

impl Window {
    /// An empty window that asks no more of `engine` than it lets wait.
    pub(crate) fn new(engine: &Engine) -> Self {
        let capacity = engine.info().queue_capacity.clamp(1, TEXTS);
        Self { texts: VecDeque::new(), bytes: 0, capacity }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Whether one more text may be in flight.
    pub(crate) fn has_room(&self) -> bool {
        self.texts.len() < self.capacity && (self.bytes < BYTES || self.texts.is_empty())
    }

    /// Sends a text off, as `request` with that text.
    pub(crate) fn push(&mut self, engine: &Engine, request: &Request, record: Record) {
        let Record { index, number, size, text } = record;
        let work = match text {
            Ok(text) => {
                let request = Request { inputs: vec![text.into()], ..request.clone() };
                Work::Running(tokio::spawn(embed(engine.clone(), request)))
            }
            Err(reason) => Work::Failed(reason),
        };
        self.bytes += size;
        self.texts.push_back(Text { index, number, size, work });
    }

    /// Waits for the oldest text; `None` if there is none. It stays if the wait is given up.
    pub(crate) async fn next(&mut self) -> Option<Done> {
        let outcome = match &mut self.texts.front_mut()?.work {
            Work::Failed(reason) => Err(std::mem::take(reason)),
            Work::Running(task) => match task.await {
                Ok(Ok(reply)) => vector(reply),
                Ok(Err(error)) => Err(reason(&error)),
                Err(_) => Err("vecmill failed at this text in a bug; please report".to_owned()),
            },
        };
        let Text { index, number, size, .. } = self.texts.pop_front()?;
        self.bytes -= size;
        Some(Done { index, number, size, outcome })
    }
}

/// Embeds, however busy the engine is with texts whose place it has not cleared yet.
async fn embed(engine: Engine, request: Request) -> Result<Reply, RequestError> {
    loop {
        match engine.embed(request.clone()).await {
            Err(RequestError::Busy { retry_after, .. }) => {
                tokio::time::sleep(retry_after.min(PATIENCE)).await;
            }
            outcome => return outcome,
        }
    }
}

fn vector(mut reply: Reply) -> Result<Embedding, String> {
    reply.embeddings.pop().ok_or_else(|| "the engine gave no vector".to_owned())
}

/// The reason without the place in the request: each text has a request of its own.
fn reason(error: &RequestError) -> String {
    match error {
        RequestError::EmptyInput { .. } => "empty: there is nothing to embed".to_owned(),
        RequestError::TooManyTokens { tokens, limit, .. } => {
            format!("{tokens} tokens, but the model takes {limit}: shorten it or allow truncation")
        }
        RequestError::Tokenizer { reason, .. } => format!("can't be tokenised: {reason}"),
        RequestError::NoEmbedding { token, .. } => {
            format!("it has a token (id {token}) that the model has no embedding for")
        }
        RequestError::NotFinite { .. } => {
            "the model's vector for it has an element that is not a finite number".to_owned()
        }
        other => other.to_string(),
    }
}
