//! The HTTP server of vecmill: OpenAI's and TEI's contracts over an engine.
//!
//! The parts, in the order in which a request meets them:
//!
//! - [`Server`] listens and drives connections, within limits of time and pace; `connections`,
//!   `exchange` (a request that is answered before its body was read) and `stream`.
//! - `room` counts the memory that requests hold, from the first byte of a body to the last of the
//!   reply.
//! - `routes` leads to handlers, through what holds for all of them: metrics and access log, JSON
//!   for every error, panics, browsers' origins, keys, and the limit on what is held at once.
//! - `api` has the contracts: `openai` and `tei` each parse, call the same few lines of shared
//!   work, and write the reply.
//! - `admin` is for the operator: the devices' memory. It is there only if the settings say so.
//! - The work is done by an [`Engine`](vecmill_engine::Engine).
//!
//! The choice behind it: the port answers before the model is loaded. Until [`ModelSlot`] is told
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
mod dialects;
mod error;
mod failure;
mod http;
mod invisible;
mod json;
mod layers;
mod reply;
mod routes;
mod server;
mod settings;
mod slot;
mod token_inputs;

pub use error::ServeError;
pub use http::Stopped;
pub use invisible::Invisible;
pub use layers::key::{ApiKey, ApiKeyError, WrongCharacter};
pub use server::Server;
pub use settings::Settings;
pub use slot::ModelSlot;
pub use token_inputs::{TokenInputs, TokenInputsError};
