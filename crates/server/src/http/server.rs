//! A server: its port, accepting connections, driving each in a task, and letting them finish.
//!
//! All tasks live in one set that [`serve`] owns: when it returns, or is dropped, none is left.
//!
//! A request is accepted when it has come whole. At a stop, what was accepted is answered, for as
//! long as the grace period lasts. Connections on which no request has begun are closed, as
//! [`drive`] says. A body that is still coming may take [`body_grace`]; then its request is refused.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::{fmt, io};

use axum::Router;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::app::App;
use crate::http::connection::drive;
use crate::loading::Served;
use crate::{Loading, ServeError, Settings, routes};

/// How long to pause when the system has no more file descriptors to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The longest that a stopping server waits for the rest of a body.
const BODY_GRACE: Duration = Duration::from_secs(5);

/// How long a server that has `grace` to stop waits for the rest of a body: some time must be left
/// for the work.
fn body_grace(grace: Duration) -> Duration {
    BODY_GRACE.min(grace / 2)
}

/// A server whose port is bound. Connections are accepted by the system from now on and answered
/// once [`run`](Self::run) is polled.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    served: Served,
    settings: Settings,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Checks the settings and binds the address; port 0 takes a free one. Whoever loads the
    /// model tells how that ended to what comes beside the server.
    ///
    /// # Errors
    /// [`ServeError::Setting`] for a setting that makes no sense, [`ServeError::Bind`] when the
    /// address is taken or not this machine's.
    pub fn bind(
        address: impl ToSocketAddrs + fmt::Display,
        settings: Settings,
    ) -> Result<(Self, Loading), ServeError> {
        settings.check()?;
        let bind = || {
            let listener = TcpListener::bind(&address)?;
            listener.set_nonblocking(true)?;
            let local = listener.local_addr()?;
            Ok((listener, local))
        };
        let (listener, local) =
            bind().map_err(|source| ServeError::Bind { address: address.to_string(), source })?;
        let served = Served::default();
        let loading = served.loading();
        Ok((Self { listener, address: local, served, settings }, loading))
    }

    /// The bound address, with the port that the system chose if it was to choose one.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` is done, then stops listening, finishes the requests that were
    /// accepted, for at most [`Settings::shutdown_grace`] and until `now` is done, and returns. The
    /// engine runs on.
    ///
    /// Must be called on a tokio runtime with I/O and time.
    ///
    /// # Errors
    /// [`ServeError::Listen`] when the socket can't be handed to the runtime.
    pub async fn run(
        self,
        shutdown: impl Future<Output = ()>,
        now: impl Future<Output = ()>,
    ) -> Result<Stopped, ServeError> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let (stop, stopping) = watch::channel(None);
        let app = Arc::new(App::new(self.served, self.settings, stopping));
        let router = routes::router(&app)?;
        let memory = &app.memory;
        tracing::info!(
            address = %self.address,
            request_memory_bytes = memory.for_requests(),
            connections = memory.connections(),
            "listening"
        );
        Ok(serve(listener, &router, &app, stop, shutdown, now).await)
    }
}

/// How a server stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Stopped {
    /// Requests that were accepted and not answered to the end, because the time for stopping was
    /// over. 0 when nothing was lost.
    pub cut_off: usize,
}

/// Tells the parts of a server that it stops: until when bodies may come, once that is settled.
type Stop = watch::Sender<Option<Instant>>;

/// Serves until `shutdown` is done, and then as long as open requests take, within the grace
/// period and until `now` is done.
async fn serve(
    listener: tokio::net::TcpListener,
    router: &Router,
    app: &Arc<App>,
    stop: Stop,
    shutdown: impl Future<Output = ()>,
    now: impl Future<Output = ()>,
) -> Stopped {
    let mut shutdown = pin!(shutdown);
    let mut connections = JoinSet::new();
    let most = app.memory.connections();
    let start = |connections: &mut JoinSet<()>, stream| {
        connections.spawn(drive(stream, router.clone(), Arc::clone(app), stop.subscribe()));
    };
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < most => match accepted {
                Ok((stream, _)) => start(&mut connections, stream),
                Err(error) => pause_after(&error).await,
            },
        }
    }
    // Clients that the system has let in already know nothing of the stop.
    while connections.len() < most
        && let Ok(Ok((stream, _))) = timeout(Duration::ZERO, listener.accept()).await
    {
        start(&mut connections, stream);
    }
    drop(listener);
    let grace = app.settings.shutdown_grace;
    stop.send_replace(Some(Instant::now() + body_grace(grace)));
    let accepted = || app.accepted.load(Ordering::Acquire);
    tracing::info!(
        requests = accepted(),
        connections = connections.len(),
        "stopping: finishing accepted requests"
    );
    let finished = async { while connections.join_next().await.is_some() {} };
    let cut_off = tokio::select! {
        biased;
        () = finished => 0,
        () = now => accepted(),
        () = sleep(grace) => accepted(),
    };
    connections.shutdown().await;
    if cut_off > 0 {
        tracing::warn!(requests = cut_off, "requests were cut off: the time to stop is over");
    }
    Stopped { cut_off }
}

/// A client that left while it waited is no reason to pause; a lack of descriptors is.
async fn pause_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if !matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    ) {
        tracing::error!(%error, "a connection could not be accepted");
        sleep(ACCEPT_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_leave_time_for_the_work() {
        assert_eq!(body_grace(Duration::from_secs(30)), BODY_GRACE);
        assert_eq!(body_grace(Duration::from_secs(2)), Duration::from_secs(1));
        assert_eq!(body_grace(Duration::ZERO), Duration::ZERO);
    }
}
