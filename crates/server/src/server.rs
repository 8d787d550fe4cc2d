//! A bound, then running, server.

use std::fmt;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;

use tokio::sync::watch;

use crate::app::App;
use crate::http;
use crate::routes;
use crate::slot::Slot;
use crate::{ModelSlot, ServeError, Settings, Stopped};

/// A server whose port is bound. Connections are accepted by the system from now on and answered
/// once [`run`](Self::run) is polled.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    slot: Slot,
    settings: Settings,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Checks the settings and binds the address; port 0 takes a free one. The slot is where the
    /// model goes once it is loaded.
    ///
    /// # Errors
    /// [`ServeError::Setting`] for a setting that makes no sense, [`ServeError::Bind`] when the
    /// address is taken or not this machine's.
    pub fn bind(
        address: impl ToSocketAddrs + fmt::Display,
        settings: Settings,
    ) -> Result<(Self, ModelSlot), ServeError> {
        settings.check()?;
        let bind = || {
            let listener = TcpListener::bind(&address)?;
            listener.set_nonblocking(true)?;
            let local = listener.local_addr()?;
            Ok((listener, local))
        };
        let (listener, local) =
            bind().map_err(|source| ServeError::Bind { address: address.to_string(), source })?;
        let slot = Slot::default();
        let loader = slot.loader();
        Ok((Self { listener, address: local, slot, settings }, loader))
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
        let app = Arc::new(App::new(self.slot, self.settings, stopping));
        let router = routes::router(&app)?;
        let memory = &app.memory;
        tracing::info!(
            address = %self.address,
            request_memory_bytes = memory.for_requests(),
            connections = memory.connections(),
            "listening"
        );
        Ok(http::serve(listener, &router, &app, stop, shutdown, now).await)
    }
}
