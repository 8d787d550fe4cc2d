//! One request and its reply on a connection, as far as HTTP itself is concerned.
//!
//! A request may be answered before its body has been read: most refusals are. What then becomes
//! of the rest is decided here, for all of them: it is read and dropped if it is short and comes
//! soon, and the connection goes on; otherwise the reply says `connection: close`, and the stream
//! reads on for a while after it, so that a client that is still sending sees the reply rather than
//! a broken connection.
//!
//! [`Talk`] is what the parts of one connection know of it: the stream below hyper, the exchanges
//! above, and the task that drives both.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::sync::Notify;

use crate::app::App;
use crate::layers::room::Room;

/// How long the rest of a body may take that nobody wants.
const REST_PATIENCE: Duration = Duration::from_secs(2);

/// What has happened on a connection.
#[derive(Debug)]
pub(crate) struct Talk {
    app: Arc<App>,
    /// Requests whose head was read.
    begun: AtomicUsize,
    /// Those of them whose reply is not written yet.
    open: AtomicUsize,
    /// Part of a head was read.
    head_begun: AtomicBool,
    /// A request was answered whose body was not read to its end.
    unread: AtomicBool,
    next: Notify,
}

impl Talk {
    pub(crate) fn new(app: Arc<App>) -> Self {
        Self {
            app,
            begun: 0.into(),
            open: 0.into(),
            head_begun: false.into(),
            unread: false.into(),
            next: Notify::new(),
        }
    }

    /// The number of the current request, or of the last one.
    pub(crate) fn number(&self) -> usize {
        self.begun.load(Ordering::Acquire)
    }

    /// Whether a request is being answered.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
    }

    /// Whether the client has its reply and has sent nothing more.
    pub(crate) fn is_idle(&self) -> bool {
        self.number() > 0 && !self.is_open() && !self.head_begun.load(Ordering::Acquire)
    }

    /// Whether the client may be sending what nobody reads.
    pub(crate) fn has_unread(&self) -> bool {
        self.unread.load(Ordering::Acquire) || self.head_begun.load(Ordering::Acquire)
    }

    /// Notes that bytes have come.
    pub(crate) fn received(&self) {
        if !self.is_open() {
            self.head_begun.store(true, Ordering::Release);
        }
    }

    /// Notes that the client took its reply too slowly.
    pub(crate) fn reader_was_slow(&self) {
        self.app.metrics.slow_reader();
    }

    /// Returns when the request after that of this number begins.
    pub(crate) async fn begins_after(&self, number: usize) {
        while self.number() == number {
            self.next.notified().await;
        }
    }

    fn begin(self: &Arc<Self>) -> Exchange {
        self.head_begun.store(false, Ordering::Release);
        self.begun.fetch_add(1, Ordering::AcqRel);
        self.open.fetch_add(1, Ordering::AcqRel);
        self.next.notify_one();
        Exchange { talk: Arc::clone(self), accepted: false.into() }
    }
}

/// A request that is being answered, until its reply is written or its connection is gone.
#[derive(Debug)]
struct Exchange {
    talk: Arc<Talk>,
    /// The whole request has come.
    accepted: AtomicBool,
}

impl Exchange {
    /// Notes that the whole request has come: from now on it is owed its reply.
    fn accept(&self) {
        if !self.accepted.swap(true, Ordering::AcqRel) {
            self.talk.app.accepted.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.talk.open.fetch_sub(1, Ordering::AcqRel);
        if *self.accepted.get_mut() {
            self.talk.app.accepted.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Answers one request.
pub(crate) async fn answer(
    router: TowerToHyperService<Router>,
    talk: Arc<Talk>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let exchange = Arc::new(talk.begin());
    let asks = request.headers().contains_key(header::EXPECT);
    let (head, incoming) = request.into_parts();
    if incoming.is_end_stream() {
        exchange.accept();
    }
    let progress = Progress { incoming, asks, ended: false, exchange: Arc::clone(&exchange) };
    let body = Shared(Arc::new(Mutex::new(progress)));
    let rest = Shared(Arc::clone(&body.0));
    let mut response = router.call(Request::from_parts(head, Body::new(body))).await?;
    // Who was too slow once is not waited for again, and a stop waits for nobody.
    let late = response.status() == StatusCode::REQUEST_TIMEOUT || talk.app.is_stopping();
    if late && !rest.has_ended() || !rest.read_out(talk.app.settings.payload_limit).await {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        talk.unread.store(true, Ordering::Release);
    }
    let room = response.extensions_mut().remove::<Room>();
    let keep = Kept { _exchange: exchange, _room: room };
    Ok(response.map(|body| Body::new(KeepingBody { body, keep })))
}

/// A request's body, which its handler reads and, when that has ended, the exchange.
struct Shared(Arc<Mutex<Progress>>);

struct Progress {
    incoming: Incoming,
    /// The client waits to be told that it shall send.
    asks: bool,
    ended: bool,
    exchange: Arc<Exchange>,
}

impl Shared {
    fn with<T>(&self, look: impl FnOnce(&mut Progress) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn has_ended(&self) -> bool {
        self.with(|body| body.ended || body.incoming.is_end_stream())
    }

    /// Reads what is left, if it is at most `limit` bytes; whether nothing is left.
    async fn read_out(self, limit: usize) -> bool {
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

impl HttpBody for Shared {
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

/// What lasts until a reply is written.
#[derive(Clone)]
struct Kept {
    _exchange: Arc<Exchange>,
    _room: Option<Room>,
}

/// A reply of which each part keeps what must last until it is written: hyper drops the body
/// itself when it has taken its last part, long before the client has.
struct KeepingBody {
    body: Body,
    keep: Kept,
}

struct KeepingBytes {
    bytes: Bytes,
    _keep: Kept,
}

impl AsRef<[u8]> for KeepingBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl HttpBody for KeepingBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let keep = |bytes| Bytes::from_owner(KeepingBytes { bytes, _keep: self.keep.clone() });
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(keep))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
