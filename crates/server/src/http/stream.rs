//! A connection below HTTP: a client must take what is written to it, and is let go gently.
//!
//! hyper limits how long a request's head may take; nothing limits how slowly a client reads its
//! reply, which may be tens of megabytes that are held for it. Here a write fails, which ends the
//! connection, when it makes no progress for too long, or when all writes of one reply together
//! have waited longer than the least rate allows. Only time in which the client keeps the server
//! waiting counts, so a reply that is made slowly is not its reader's fault.
//!
//! A connection that ends while its client still sends is closed for writing first, and what comes
//! is read and dropped for a while: closed at once, the system would throw away the reply too.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::pace::Pace;
use super::talk::Talk;

/// How long a client may send nothing before a closed connection is dropped.
const QUIET: Duration = Duration::from_secs(1);

/// How long a closed connection lasts at most.
const FAREWELL: Duration = Duration::from_secs(30);

/// The most bytes that are read and dropped.
const DISCARD: usize = 32 << 20;

/// A TCP stream with a least pace of writing and a gentle end.
#[derive(Debug)]
pub(super) struct Stream {
    stream: TcpStream,
    talk: Arc<Talk>,
    pace: Pace,
    writing: Writing,
    ending: Option<Ending>,
    /// When the pending operation has taken too long.
    deadline: Pin<Box<Sleep>>,
}

/// How writing the reply to a request goes.
#[derive(Debug, Default)]
struct Writing {
    /// The request's number on this connection.
    number: usize,
    written: u64,
    waited: Duration,
    /// Since when a write has been pending.
    pending: Option<Instant>,
}

impl Writing {
    /// How long the next write may be pending.
    fn left(&self, pace: Pace) -> Duration {
        pace.allowed(self.written).saturating_sub(self.waited).min(pace.patience)
    }
}

#[derive(Debug)]
struct Ending {
    latest: Instant,
    discarded: usize,
}

impl Stream {
    pub(super) fn new(stream: TcpStream, pace: Pace, talk: Arc<Talk>) -> Self {
        let deadline = Box::pin(tokio::time::sleep(pace.patience));
        Self { stream, talk, pace, writing: Writing::default(), ending: None, deadline }
    }

    /// Passes a write's outcome on, and fails one that was pending for too long.
    fn timed<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
        written: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        let writing = &mut self.writing;
        let number = self.talk.number();
        if writing.number != number {
            *writing = Writing { number, pending: writing.pending, ..Writing::default() };
        }
        if let Poll::Ready(outcome) = outcome {
            if let Some(since) = writing.pending.take() {
                writing.waited += since.elapsed();
            }
            writing.written += outcome.as_ref().map_or(0, |it| written(it) as u64);
            return Poll::Ready(outcome);
        }
        if writing.pending.is_none() {
            let now = Instant::now();
            writing.pending = Some(now);
            self.deadline.as_mut().reset(now + writing.left(self.pace));
        }
        ready!(self.deadline.as_mut().poll(cx));
        self.talk.reader_was_slow();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Reads and drops what still comes, until nothing does.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let ending = self.ending.get_or_insert_with(|| {
            let now = Instant::now();
            self.deadline.as_mut().reset(now + QUIET);
            Ending { latest: now + FAREWELL, discarded: 0 }
        });
        let mut buffer = [0; 4096];
        while ending.discarded < DISCARD {
            let mut buffer = ReadBuf::new(&mut buffer);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    ending.discarded += buffer.filled().len();
                    let quiet = Instant::now() + QUIET;
                    self.deadline.as_mut().reset(quiet.min(ending.latest));
                }
                Poll::Ready(_) => break,
                Poll::Pending => return self.deadline.as_mut().poll(cx),
            }
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        if buffer.filled().len() > before {
            self.talk.received();
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.timed(cx, outcome, |&written| written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.timed(cx, outcome, |&written| written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.timed(cx, outcome, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ending.is_none() {
            let outcome = Pin::new(&mut self.stream).poll_shutdown(cx);
            let outcome = ready!(self.timed(cx, outcome, |()| 0));
            if outcome.is_err() || !self.talk.has_unread() {
                return Poll::Ready(outcome);
            }
        }
        self.poll_discard(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_takes_a_little_now_and_then_runs_out_of_time() {
        let pace = Pace { patience: Duration::from_secs(30) };
        let seconds = |writing: &Writing| writing.left(pace).as_secs();
        // A byte every 29 seconds never waits too long for one write, but soon for all of them.
        let mut writing = Writing::default();
        assert_eq!(seconds(&writing), 30);
        writing = Writing { written: 1, waited: Duration::from_secs(29), ..writing };
        assert_eq!(seconds(&writing), 1);
        writing = Writing { written: 2, waited: Duration::from_secs(58), ..writing };
        assert_eq!(seconds(&writing), 0);
        // One that keeps the least rate may go on for ever, and still must not stop.
        writing = Writing { written: 600 << 16, waited: Duration::from_secs(600), ..writing };
        assert_eq!(seconds(&writing), 30);
        writing = Writing { written: 600 << 16, ..Writing::default() };
        assert_eq!(seconds(&writing), 30);
    }
}
