//! A bound, then running, server.

use std::fmt;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

use crate::connections::{self, Limits};
use crate::routes;
use crate::slot::Slot;
use crate::{ModelSlot, ServeError, Settings};

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
    /// accepted, for at most [`Settings::shutdown_grace`], and returns. The engine runs on.
    ///
    /// Must be called on a tokio runtime with I/O and time.
    ///
    /// # Errors
    /// [`ServeError::Listen`] when the socket can't be handed to the runtime.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let limits = Limits::of(&self.settings);
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let router = routes::router(self.slot, self.settings)?;
        tracing::info!(address = %self.address, "listening");
        connections::serve(listener, &router, limits, shutdown).await;
        Ok(())
    }
}
