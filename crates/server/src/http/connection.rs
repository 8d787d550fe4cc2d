//! One connection: driving it, and each request and its reply as far as HTTP itself is concerned.
//!
//! A request may be answered before its body has been read: most refusals are. What then becomes of
//! the rest is decided here, for all of them: it is read and dropped if it is short and comes soon,
//! and the connection goes on; otherwise the reply says `connection: close`, and the stream reads on
//! for a while after it, so that a client that is still sending sees the reply rather than a broken
//! connection.
//!
//! What the stream below hyper and the exchanges above it know of each other is a [`Talk`].

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::pace::Pace;
use super::rest;
use super::stream::Stream;
use super::talk::{Exchange, Talk};
use crate::app::App;
use crate::room::Room;

/// The largest head of a request, in bytes, its address included; a larger one is told 431.
const MAX_HEAD: usize = 16 << 10;

/// The most headers of a request.
const MAX_HEADERS: usize = 100;

/// How much is read at once, in bytes. hyper keeps a buffer of this size for each connection.
const READ_BUFFER: usize = 16 << 10;

/// How long a stopping server waits for the rest of a head.
const HEAD_GRACE: Duration = Duration::from_secs(1);

/// Answers one connection's requests until it ends, or until the server stops and the request in
/// progress is answered. A connection that has its last reply then ends at once, one that may be
/// about to send a request after [`HEAD_GRACE`].
pub(super) async fn drive(
    stream: TcpStream,
    router: Router,
    app: Arc<App>,
    mut stopping: watch::Receiver<Option<Instant>>,
) {
    // Small replies should leave at once; a failure only makes them slower.
    let _ = stream.set_nodelay(true);
    let pace = Pace { patience: app.settings.write_timeout };
    let idle = app.settings.idle_timeout;
    let talk = Arc::new(Talk::new(app));
    let stream = Stream::new(stream, pace, Arc::clone(&talk));
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request| answer(router.clone(), Arc::clone(&talk), request));
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(idle)
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_HEAD)
            .max_buf_size(READ_BUFFER)
            .serve_connection(TokioIo::new(stream), service)
    );
    let stopped = async { drop(stopping.wait_for(Option::is_some).await) };
    tokio::select! {
        biased; // what has come already is looked at before the stop is
        ended = connection.as_mut() => return told(ended),
        () = stopped => {}
    }
    if talk.is_idle() {
        return;
    }
    if !talk.is_open() {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return told(ended),
            () = talk.begins_after(talk.number()) => {}
            () = sleep(HEAD_GRACE) => return,
        }
    }
    connection.as_mut().graceful_shutdown();
    told(connection.await);
}

fn told(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Answers one request.
async fn answer(
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
    let (body, rest) = rest::shared(incoming, asks, Arc::clone(&exchange));
    let mut response = router.call(Request::from_parts(head, body)).await?;
    // Who was too slow once is not waited for again, and a stop waits for nobody.
    let late = response.status() == StatusCode::REQUEST_TIMEOUT || talk.app.is_stopping();
    if late && !rest.has_ended() || !rest.read_out(talk.app.settings.payload_limit).await {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        talk.leaves_unread();
    }
    let room = response.extensions_mut().remove::<Room>();
    let keep = Kept { _exchange: exchange, _room: room };
    Ok(response.map(|body| Body::new(KeepingBody { body, keep })))
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
