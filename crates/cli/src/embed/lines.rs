//! Lines of UTF-8, one at a time, of bounded length.

use std::io::{self, BufRead};

/// The most bytes that a line may have.
pub(crate) const LIMIT: usize = 16 << 20;

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Its number, from 1.
    pub(crate) number: u64,
    /// Bytes that it took of the input, its ending included.
    pub(crate) size: u64,
    /// The line without its ending, or what is wrong with it.
    pub(crate) text: Result<String, String>,
}

/// Lines ending in `\n` or `\r\n`, the last one perhaps in neither. A byte order mark in front of
/// the first is skipped.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    reader: R,
    limit: usize,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// The lines of `reader`.
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, limit: LIMIT, number: 0 }
    }

    /// The next line; `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Line>> {
        let mut bytes = Vec::new();
        let mut size = 0;
        loop {
            let chunk = match self.reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                chunk => chunk?,
            };
            let end = chunk.iter().position(|&byte| byte == b'\n');
            let part = &chunk[..end.map_or(chunk.len(), |end| end + 1)];
            // Of a line that is too long no more is kept than shows that; the ending is no part of it.
            if bytes.len() <= self.limit + 2 {
                bytes.extend_from_slice(part);
            }
            let length = part.len();
            self.reader.consume(length);
            size += length as u64;
            if end.is_some() || length == 0 {
                break;
            }
        }
        if size == 0 {
            return Ok(None);
        }
        self.number += 1;
        Ok(Some(Line { number: self.number, size, text: self.text(bytes) }))
    }

    fn text(&self, mut bytes: Vec<u8>) -> Result<String, String> {
        if bytes.ends_with(b"\n") {
            bytes.pop();
            if bytes.ends_with(b"\r") {
                bytes.pop();
            }
        }
        if self.number == 1 && bytes.starts_with(b"\xEF\xBB\xBF") {
            bytes.drain(..3);
        }
        if bytes.len() > self.limit {
            return Err(format!("longer than {} bytes: split it", self.limit));
        }
        String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to() + 1;
            format!("not valid UTF-8 at byte {at}: convert the input")
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    /// The texts of `input`, read through a buffer so small that lines span several fillings.
    fn texts(input: &[u8], limit: usize) -> Vec<Result<String, String>> {
        let mut lines = Lines { limit, ..Lines::new(BufReader::with_capacity(3, input)) };
        let mut texts = Vec::new();
        let mut size = 0;
        while let Some(line) = lines.next().unwrap() {
            size += line.size;
            texts.push(line.text);
            assert_eq!(line.number, texts.len() as u64);
        }
        assert_eq!(size, input.len() as u64);
        texts
    }

    fn valid(input: &[u8]) -> Vec<String> {
        texts(input, LIMIT).into_iter().map(Result::unwrap).collect()
    }

    #[test]
    fn endings_are_no_part_of_lines() {
        assert_eq!(valid(b"one\ntwo\r\nthree"), ["one", "two", "three"]);
        assert_eq!(valid(b"\n\r\n\n"), ["", "", ""]);
        assert_eq!(valid(b"a\rb\r\r\n\r"), ["a\rb\r", "\r"]);
        assert_eq!(valid(b""), [""; 0]);
    }

    #[test]
    fn a_byte_order_mark_is_skipped_once() {
        assert_eq!(valid("\u{feff}one\n\u{feff}two\n".as_bytes()), ["one", "\u{feff}two"]);
    }

    #[test]
    fn a_line_that_is_not_utf8_does_not_end_the_input() {
        let texts = texts(b"fine\nb\xFFd\nfine\n", LIMIT);
        assert!(texts[0].is_ok() && texts[2].is_ok());
        assert_eq!(texts[1], Err("not valid UTF-8 at byte 2: convert the input".to_owned()));
    }

    #[test]
    fn lines_up_to_the_limit_pass_whatever_their_ending() {
        for ending in ["", "\n", "\r\n"] {
            for length in 1..20 {
                let line = "x".repeat(length) + ending;
                let passes = texts(line.as_bytes(), 10)[0].is_ok();
                assert_eq!(passes, length <= 10, "{line:?}");
            }
        }
    }

    #[test]
    fn what_follows_a_line_that_is_too_long_is_read() {
        let input = format!("{}\nshort\n", "x".repeat(1000));
        let texts = texts(input.as_bytes(), 10);
        assert!(texts[0].is_err());
        assert_eq!(texts[1], Ok("short".to_owned()));
    }
}
