//! The forward pass as calls on a backend, until each backend has a lowering.

pub(crate) mod backend;
pub(crate) mod encoder;
pub(crate) mod fit;
pub(crate) mod forward;
pub(crate) mod paper;
pub(crate) mod program;
pub(crate) mod warm_up;
