//! HTTP below the routes: listening, starting and stopping ([`server`]); a connection and what is
//! asked and answered on it ([`connection`]); what becomes of a body that nobody reads ([`rest`]); how
//! slow a client may be ([`pace`], [`stream`]); and what these know of each other ([`talk`]).

mod connection;
pub(crate) mod pace;
mod rest;
mod server;
mod stream;
mod talk;

pub use server::{Server, Stopped};
