//! Traces of requests as CSV: a line for each, with the second at which it is due and the tokens of
//! its inputs.
//!
//! ```text
//! seconds,tokens
//! 0.000000,38
//! 0.012500,12 40 7
//! ```

use std::fmt::Write as _;
use std::io::{self, BufRead, Read, Write};

use super::{Arrival, Traffic};

const HEAD: &str = "seconds,tokens";

/// The longest line, in bytes: a quarter of a million inputs.
const LONGEST_LINE: usize = 1 << 20;

/// The latest second, three years, and the most tokens of an input: more than that is a mistake.
const LATEST: f64 = 1e8;
const MOST_TOKENS: usize = 1_000_000;

/// Characters of a wrong line that are shown.
const SHOWN: usize = 60;

/// Why a trace can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// It can't be read.
    #[error("it can't be read: {0}")]
    Read(#[from] io::Error),
    /// A line is not as it should be.
    #[error("line {line}: expected {expected}, found '{found}'")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What would be right.
        expected: &'static str,
        /// What it says.
        found: String,
    },
    /// It has no requests.
    #[error("it has no requests: expected lines like 0.0125,12 40 7 below the first, {HEAD}")]
    Empty,
}

impl Traffic {
    /// Reads a trace.
    ///
    /// # Errors
    /// When it can't be read, or a line is wrong: the error has its number.
    pub fn read(mut input: impl BufRead) -> Result<Self, TraceError> {
        let mut arrivals: Vec<Arrival> = Vec::new();
        let mut bytes = Vec::new();
        for line in 1.. {
            bytes.clear();
            if input.by_ref().take(LONGEST_LINE as u64 + 1).read_until(b'\n', &mut bytes)? == 0 {
                break;
            }
            let text = String::from_utf8_lossy(&bytes);
            let found = || text.trim_end().chars().take(SHOWN).collect();
            let wrong = |expected| TraceError::Line { line, expected, found: found() };
            if bytes.len() > LONGEST_LINE {
                return Err(wrong("at most a mebibyte"));
            }
            if line == 1 {
                if text.trim() != HEAD {
                    return Err(wrong(HEAD));
                }
            } else if !text.trim().is_empty() {
                let request = request(&text).map_err(wrong)?;
                if arrivals.last().is_some_and(|last| last.at > request.at) {
                    return Err(wrong("a time that is not before that of the line above"));
                }
                arrivals.push(request);
            }
        }
        if arrivals.is_empty() { Err(TraceError::Empty) } else { Ok(Self { arrivals }) }
    }

    /// Writes these requests as a trace.
    ///
    /// # Errors
    /// Whatever `output` fails at.
    pub fn write(&self, mut output: impl Write) -> io::Result<()> {
        writeln!(output, "{HEAD}")?;
        let mut line = String::new();
        for request in &self.arrivals {
            line.clear();
            let _ = write!(line, "{:.6},", request.at); // writing to a string does not fail
            for (index, length) in request.lengths.iter().enumerate() {
                let _ = write!(line, "{}{length}", if index == 0 { "" } else { " " });
            }
            writeln!(output, "{line}")?;
        }
        output.flush()
    }
}

fn request(text: &str) -> Result<Arrival, &'static str> {
    let (at, lengths) = text.split_once(',').ok_or("seconds, a comma and lengths")?;
    let at: f64 = at.trim().parse().map_err(|_| "a number of seconds before the comma")?;
    if !(0.0..=LATEST).contains(&at) {
        return Err("from 0 to 100,000,000 seconds before the comma");
    }
    let length = |text: &str| text.parse().ok().filter(|length| (1..=MOST_TOKENS).contains(length));
    match lengths.split_whitespace().map(length).collect::<Option<Vec<usize>>>() {
        Some(lengths) if !lengths.is_empty() => Ok(Arrival { at, lengths }),
        _ => Err("numbers of tokens, 1 to 1,000,000, with spaces between them, behind the comma"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::Mix;

    #[test]
    fn what_was_written_is_read_again() {
        let mix = Mix { large: 0.3, longest: 200, seed: 1 };
        let traffic = Traffic::poisson(mix, 0, 50.0, 2.0);
        let mut text = Vec::new();
        traffic.write(&mut text).unwrap();
        let read = Traffic::read(text.as_slice()).unwrap();
        assert_eq!(read.arrivals.len(), traffic.arrivals.len());
        for (read, written) in read.arrivals.iter().zip(&traffic.arrivals) {
            assert_eq!(read.lengths, written.lengths);
            assert!((read.at - written.at).abs() <= 5e-7);
        }
    }

    #[test]
    fn wrong_lines_are_named() {
        for (text, line) in [
            ("time,tokens\n0,1\n", 1),
            ("seconds,tokens\n0,1\n1;2\n", 3),
            ("seconds,tokens\n\nsoon,2\n", 3),
            ("seconds,tokens\n-1,2\n", 2),
            ("seconds,tokens\nNaN,2\n", 2),
            ("seconds,tokens\n0,\n", 2),
            ("seconds,tokens\n1e300,2\n", 2),
            ("seconds,tokens\n0,4 0\n", 2),
            ("seconds,tokens\n0,99999999999999999999\n", 2),
            ("seconds,tokens\n0,9999999\n", 2),
            ("seconds,tokens\n0,4 five\n", 2),
            ("seconds,tokens\n2,1\n1,1\n", 3),
        ] {
            let error = Traffic::read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("line {line}: expected ")), "{text:?}: {error}");
        }
        let odd: [&[u8]; 2] =
            [b"seconds,tokens\n0,1\n0,\xff\n", b"seconds,tokens\r\n0,1\r\n0,\0\r\n"];
        for text in odd {
            let error = Traffic::read(text).unwrap_err().to_string();
            assert!(error.starts_with("line 3: expected numbers"), "{error}");
        }
        let endless = io::repeat(b'1').take(1 << 30);
        let error = Traffic::read(io::BufReader::new(endless)).unwrap_err().to_string();
        assert!(error.starts_with("line 1: expected at most") && error.len() < 200, "{error}");
        let empty = Traffic::read("seconds,tokens\n".as_bytes()).unwrap_err();
        assert!(matches!(empty, TraceError::Empty));
    }
}
