//! What is left of a request's body when its reply is there.
//!
//! Handler and exchange share the body: the one reads what it wants, the other then drops what is
//! left, if that is short and comes soon.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

use super::talk::Exchange;

/// How long the rest of a body may take that nobody wants.
const REST_PATIENCE: Duration = Duration::from_secs(2);

/// A request's body for its handler, and what that leaves of it.
pub(super) fn shared(incoming: Incoming, asks: bool, exchange: Arc<Exchange>) -> (Body, Rest) {
    let progress = Arc::new(Mutex::new(Progress { incoming, asks, ended: false, exchange }));
    (Body::new(Rest(Arc::clone(&progress))), Rest(progress))
}

/// A request's body, which its handler reads and, when that has ended, the exchange.
pub(super) struct Rest(Arc<Mutex<Progress>>);

struct Progress {
    incoming: Incoming,
    /// The client waits to be told that it shall send.
    asks: bool,
    ended: bool,
    exchange: Arc<Exchange>,
}

impl Rest {
    fn with<T>(&self, look: impl FnOnce(&mut Progress) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn has_ended(&self) -> bool {
        self.with(|body| body.ended || body.incoming.is_end_stream())
    }

    /// Reads what is left, if it is at most `limit` bytes; whether nothing is left.
    pub(super) async fn read_out(self, limit: usize) -> bool {
        let limit = limit as u64;
        if self.has_ended() {
            return true;
        }
        // A client that was not told to send may send, or not: only a new connection is clear.
        if self.with(|body| body.asks || body.incoming.size_hint().lower() > limit) {
            return false;
        }
        let mut body = Body::new(self);
        let read = async {
            let mut left = limit;
            while let Some(frame) =
                std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
            {
                let Ok(frame) = frame else { return false };
                let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
                let Some(rest) = left.checked_sub(bytes) else { return false };
                left = rest;
            }
            true
        };
        tokio::time::timeout(REST_PATIENCE, read).await.unwrap_or(false)
    }
}

impl HttpBody for Rest {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.with(|body| {
            if body.ended {
                return Poll::Ready(None);
            }
            body.asks = false;
            let frame = ready!(Pin::new(&mut body.incoming).poll_frame(cx));
            body.ended = !matches!(frame, Some(Ok(_)));
            if frame.is_none() {
                body.exchange.accept();
            }
            Poll::Ready(frame)
        })
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended()
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|body| body.incoming.size_hint())
    }
}
