//! Reading a request: its body, the fields in it, and the headers that say on which terms it waits.

pub(crate) mod body;
pub(crate) mod fields;
pub(crate) mod known;
mod malformed;
pub(crate) mod object;
pub(crate) mod options;
pub(crate) mod terms;
pub(crate) mod token_ids;
