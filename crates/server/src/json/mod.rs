//! Reading a request: the fields of its body, and what they ask for.

pub(crate) mod known;
pub(crate) mod malformed;
pub(crate) mod numbers;
pub(crate) mod object;
pub(crate) mod options;
pub(crate) mod prompts;
pub(crate) mod ranking;
pub(crate) mod token_ids;
pub(crate) mod truncation;
