//! Everything of vecmill that reads what others wrote, as functions of arbitrary bytes.
//!
//! - [`requests`] goes through a real server with a real engine, over a socket.
//! - [`model_json`], [`weights`], [`pickles`] and [`tokenizer_file`] open a model's folder of which one
//!   file is the input; [`recordings`] reads recordings of memory, [`traffic`] traces of requests.
//! - [`same_ids`] compares what vecmill makes of a text with the `tokenizers` crate.
//!
//! Each panics where vecmill breaks a promise, and returns otherwise. `fuzz/` runs them under
//! libFuzzer (`just fuzz`); this crate's test runs the corpus kept there and some thousand mutations
//! of it, with nothing but a stable toolchain.
#![allow(clippy::unwrap_used, reason = "the harness says what must hold by panicking")]
#![allow(clippy::panic, reason = "a finding is a panic")]

mod folder;
mod http;
mod text;

use std::fmt::Display;

pub use folder::{model_json, pickles, tokenizer_file, weights};
pub use http::requests;
pub use text::same_ids;

/// Longest message that any input may cause, in bytes.
const MESSAGE_LIMIT: usize = 2_000;

/// A target by its name in `fuzz/`.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("requests", requests),
    ("model_json", model_json),
    ("weights", weights),
    ("pickles", pickles),
    ("tokenizer_file", tokenizer_file),
    ("recordings", recordings),
    ("traffic", traffic),
    ("same_ids", same_ids),
];

/// Recordings of memory: refused shortly, or written and read again as they were.
pub fn recordings(data: &[u8]) {
    match vecmill_memory::recording::Recording::read(data) {
        Ok(recording) => {
            let mut text = Vec::new();
            recording.write(&mut text).unwrap();
            assert_eq!(vecmill_memory::recording::Recording::read(&*text).unwrap(), recording);
        }
        Err(error) => short(&error),
    }
}

/// Traces of requests: read, or refused shortly.
pub fn traffic(data: &[u8]) {
    if let Err(error) = vecmill_lab::traffic::Traffic::read(data) {
        short(&error);
    }
}

/// Refusals are read by people.
fn short(error: &dyn Display) {
    let words = error.to_string();
    assert!(words.len() <= MESSAGE_LIMIT, "a message of {} bytes", words.len());
    assert!(!words.trim_end().ends_with(':'), "a message without an end: {words}");
}
