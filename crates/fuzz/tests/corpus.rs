//! The corpus of every target, and mutations of it: the same at each run unless others are asked for.
#![allow(clippy::unwrap_used, reason = "tests say what must hold by panicking")]

use std::env;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fastrand::Rng;
use vecmill_fuzz::TARGETS;

/// Mutations of each target's corpus, seconds of work; `FUZZ_MUTATIONS` asks for more, `FUZZ_SEED` for
/// others, `FUZZ_TARGET` for those of one target.
const MUTATIONS: usize = 2_000;
/// Of the target that goes over a socket and through a model.
const SLOW_MUTATIONS: usize = 400;

/// What parsers trip over.
const PIECES: [&[u8]; 16] = [
    b"\0",
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"\\ud800",
    b"\xff\xfe",
    "İ\u{301}".as_bytes(),
    b"\n",
];

#[test]
fn no_input_of_the_corpus_or_near_it_breaks_a_promise() {
    let asked = |name: &str| env::var(name).ok();
    let number = |name: &str| asked(name).map(|number| number.parse::<usize>().unwrap());
    for &(name, target) in TARGETS {
        if asked("FUZZ_TARGET").is_some_and(|one| one != name) {
            continue;
        }
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name} has a corpus");
        let mut random = Rng::with_seed(number("FUZZ_SEED").unwrap_or(13) as u64);
        let usual = if name == "requests" { SLOW_MUTATIONS } else { MUTATIONS };
        let count = number("FUZZ_MUTATIONS").unwrap_or(usual);
        let mutated = (0..count).map(|_| mutated(&corpus, &mut random));
        for input in corpus.iter().cloned().chain(mutated) {
            let outcome = catch_unwind(AssertUnwindSafe(|| target(&input)));
            assert!(outcome.is_ok(), "{name}: {:?}", String::from_utf8_lossy(&input));
        }
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
    let mut files: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path()).collect();
    files.sort_unstable();
    files.iter().filter_map(|file| fs::read(file).ok()).collect()
}

/// An input near one of the corpus: some bytes changed, left out, doubled, or taken from another.
fn mutated(corpus: &[Vec<u8>], random: &mut Rng) -> Vec<u8> {
    let mut input = corpus[random.usize(..corpus.len())].clone();
    for _ in 0..random.usize(1..=4) {
        let at = random.usize(..=input.len());
        let end = (at + random.usize(..=16)).min(input.len());
        match random.u8(..6) {
            0 if at < input.len() => input[at] = random.u8(..),
            1 => drop(input.drain(at..end)),
            2 => {
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            3 => {
                let other = &corpus[random.usize(..corpus.len())];
                let from = random.usize(..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            4 => input.truncate(at),
            _ => {
                let piece = PIECES[random.usize(..PIECES.len())];
                input.splice(at..end, piece.iter().copied());
            }
        }
    }
    input
}
