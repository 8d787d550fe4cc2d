//! Accepting connections, driving each in a task, and letting them finish.
//!
//! All tasks live in one set that [`serve`] owns: when it returns, or is dropped, none is left.

use std::io;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::Settings;
use crate::stream::TimedStream;

/// How long to pause when the system has no more file descriptors to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a connection may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    connections: usize,
    idle: Duration,
    write: Duration,
    grace: Duration,
}

impl Limits {
    pub(crate) fn of(settings: &Settings) -> Self {
        Self {
            connections: settings.max_connections,
            idle: settings.idle_timeout,
            write: settings.write_timeout,
            grace: settings.shutdown_grace,
        }
    }
}

/// Serves until `shutdown` is done and then as long as open requests take, within the grace period.
pub(crate) async fn serve(
    listener: TcpListener,
    router: &Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = pin!(shutdown);
    let mut connections = JoinSet::new();
    let (stop, stopping) = watch::channel(());
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < limits.connections => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(drive(stream, router.clone(), limits, stopping.clone()));
                }
                Err(error) => pause_after(&error).await,
            },
        }
    }
    drop(listener);
    drop(stop); // tells every connection
    tracing::info!(connections = connections.len(), "stopping: finishing accepted requests");
    let finished = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.grace, finished).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests were cut off: grace is over");
        connections.shutdown().await;
    }
}

/// A client that left while it waited is no reason to pause; a lack of descriptors is.
async fn pause_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if !matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    ) {
        tracing::error!(%error, "a connection could not be accepted");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Answers one connection's requests until it ends, or until the server stops and the request in
/// progress is answered.
async fn drive(
    stream: TcpStream,
    router: Router,
    limits: Limits,
    mut stopping: watch::Receiver<()>,
) {
    // Small replies should leave at once; a failure only makes them slower.
    let _ = stream.set_nodelay(true);
    let stream = TokioIo::new(TimedStream::new(stream, limits.write));
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.idle)
            .serve_connection(stream, TowerToHyperService::new(router))
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
