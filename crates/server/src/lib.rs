//! The HTTP server of vecmill: the contracts of several servers' APIs over an engine.
//!
//! The parts, in the order in which a request meets them:
//!
//! - `http`: [`Server`] listens; a connection is driven within limits of time and pace.
//! - `routes` leads to handlers, through what every request passes: metrics and access log, keys, and
//!   the `room` that counts what it holds of the memory, from the first byte of a body to the last of
//!   the reply. `app` is what handlers share.
//! - `dialects`: a file for each server's contract. It reads a body by means of `json`, hands it to
//!   the [`Engine`](vecmill_engine::Engine), writes the reply by means of `reply`, and words what
//!   `failure` says.
//! - Beside that way: `loading`, `probes` for who polls, `browsers`, and `admin` for the operator: the
//!   devices and their memory. It is there only if the settings say so.
//!
//! The choice behind it: the port answers before the model is loaded. Until [`Loading`] is told
//! how loading ended, `/health` says alive, `/ready` says not yet, and requests for vectors get a
//! 503 that says when to come back. Vectors are awaited inside the task of their connection, so a
//! client that goes away takes its work with it.
//!
//! ```no_run
//! use vecmill_engine::Engine;
//! use vecmill_server::{Server, Settings};
//!
//! # fn load() -> Result<Engine, vecmill_engine::StartError> { Engine::builder().start() }
//! # async fn interrupted() {}
//! # async fn interrupted_again() {}
//! # async fn serve() -> Result<(), vecmill_server::ServeError> {
//! let (server, slot) = Server::bind("127.0.0.1:8080", Settings::default())?;
//! println!("listening on {}", server.local_addr());
//! // Loading blocks, so it gets a thread of its own while the server already answers.
//! std::thread::spawn(move || match load() {
//!     Ok(engine) => slot.ready(engine),
//!     Err(error) => slot.failed(error.to_string()),
//! });
//! // Returns when every accepted request is answered, or no more time is left for that.
//! let stopped = server.run(interrupted(), interrupted_again()).await?;
//! println!("{} requests were cut off", stopped.cut_off);
//! # Ok(())
//! # }
//! ```

mod admin;
mod app;
mod browsers;
mod dialects;
mod error;
mod failure;
mod http;
mod invisible;
mod json;
mod key;
mod loading;
mod metrics;
mod probes;
mod reply;
mod room;
mod routes;
mod settings;
mod token_inputs;

pub use error::ServeError;
pub use http::{Server, Stopped};
pub use invisible::Invisible;
pub use key::{ApiKey, ApiKeyError, WrongCharacter};
pub use loading::Loading;
pub use settings::Settings;
pub use token_inputs::{TokenInputs, TokenInputsError};
