//! What the operator can see and do: the devices ([`devices`]) and their memory ([`memory`]).
//!
//! The choice behind it: these addresses are off unless [`Settings::admin`](crate::Settings::admin)
//! says otherwise, ask for a key where there are keys, and answer no web pages. They are not limited
//! in number like work is, so that they answer when the server is busiest.

pub(crate) mod ask;
pub(crate) mod devices;
pub(crate) mod memory;
