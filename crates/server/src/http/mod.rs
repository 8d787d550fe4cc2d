//! HTTP below the routes: listening, starting and stopping ([`server`]); a connection and what is
//! asked and answered on it ([`connection`]); what becomes of a body that nobody reads ([`rest`]); how
//! slow a client may be ([`pace`], [`stream`]).

mod connection;
pub(crate) mod pace;
mod rest;
mod server;
mod stream;

pub use server::{Server, Stopped};
