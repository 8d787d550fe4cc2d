//! What happened in a pool, event by event: written down while it runs, kept in files, replayed.
//!
//! - [`Recording`] is a list of [`Event`]s in order of time.
//! - [`Recording::read`] and [`Recording::write`] have it as comma-separated values, which a spreadsheet
//!   reads and a short script writes; `docs/memory-recording.md` describes the format. Reading takes nothing
//!   on trust: each line is checked for what it says and against the lines before it, so that whatever
//!   comes of it can be replayed.
//!
//! The choice behind it: an event says what was asked for and when it came back, not where the pool
//! put it. So the same recording runs through any way of managing memory, and they can be compared.
//! Columns are found by their names in the first line, so that a recording of another program, which
//! has more of them or in another order, is good as it is. Each line is split by itself: it has a
//! number, whatever the quotation marks are that others lack.

use std::collections::HashSet;
use std::io::{self, BufRead, Read, Write};

use csv_core::ReadRecordResult;

/// Longest line in bytes, without its end.
const MAX_LINE: usize = 4 << 10;

/// Most events in a recording.
const MAX_EVENTS: usize = 50_000_000;

/// Longest piece of input that an error repeats, in characters.
const MAX_QUOTE: usize = 40;

const COLUMNS: [&str; 5] = ["nanoseconds", "event", "id", "stream", "bytes"];

/// How a comment starts that says how many events were lost.
const LOST: &str = "# lost ";

/// Events in order of time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recording {
    /// The events, earliest first.
    pub events: Vec<Event>,
    /// Events that were overwritten before they were read, where a ring buffer held them.
    pub lost: u64,
}

impl Recording {
    /// The time from the first event to the last.
    pub fn nanoseconds(&self) -> u64 {
        let first = self.events.first().map_or(0, |event| event.nanoseconds);
        let last = self.events.last().map_or(0, |event| event.nanoseconds);
        last.saturating_sub(first)
    }

    /// Reads a recording from text.
    ///
    /// # Errors
    /// [`RecordingError`] with the first line that is wrong, what was expected and what was found.
    ///
    /// ```
    /// use vecmill_memory::recording::Recording;
    ///
    /// let text = "nanoseconds,event,id,stream,bytes\n10,lease,1,0,4096\n20,return,1,,\n";
    /// let recording = Recording::read(text.as_bytes())?;
    /// assert_eq!(recording.events.len(), 2);
    /// # Ok::<(), vecmill_memory::recording::RecordingError>(())
    /// ```
    pub fn read(input: impl BufRead) -> Result<Self, RecordingError> {
        read_at_most(input, MAX_EVENTS)
    }

    /// Writes the recording as text that [`read`](Self::read) accepts.
    ///
    /// # Errors
    /// Those of `output`.
    pub fn write(&self, mut output: impl Write) -> io::Result<()> {
        if self.lost > 0 {
            writeln!(output, "{LOST}{}", self.lost)?;
        }
        writeln!(output, "{}", COLUMNS.join(","))?;
        for Event { nanoseconds, what } in &self.events {
            match what {
                What::Lease { id, stream, bytes } => {
                    writeln!(output, "{nanoseconds},lease,{id},{stream},{bytes}")?;
                }
                What::Return { id } => writeln!(output, "{nanoseconds},return,{id},,")?,
                What::Refuse { stream, bytes } => {
                    writeln!(output, "{nanoseconds},refuse,,{stream},{bytes}")?;
                }
            }
        }
        output.flush()
    }
}

/// One thing that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// When, counted from any fixed moment.
    pub nanoseconds: u64,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// Memory was leased.
    Lease {
        /// Names the lease until it is returned.
        id: u64,
        /// Whose work it is for: leases of one stream are used in order.
        stream: u32,
        /// Bytes asked for.
        bytes: usize,
    },
    /// A lease came back.
    Return {
        /// The lease.
        id: u64,
    },
    /// Memory was asked for and not given.
    Refuse {
        /// For whose work.
        stream: u32,
        /// Bytes asked for.
        bytes: usize,
    },
}

/// Why a text is no recording.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// It could not be read.
    #[error("the recording can't be read: {0}")]
    Read(#[from] io::Error),
    /// It ended before the line that names the columns.
    #[error(
        "the recording is empty: its first line should name the columns, for example `nanoseconds,event,id,stream,bytes`"
    )]
    Empty,
    /// A line is not as it should be.
    #[error("line {line}: expected {expected}, found {found}")]
    Line {
        /// Its number, from 1.
        line: u64,
        /// What would be right.
        expected: String,
        /// What it says, and what to do where that is not plain.
        found: String,
    },
}

/// What was expected of a line, and what was found.
type Wrong = (String, String);

fn read_at_most(input: impl BufRead, limit: usize) -> Result<Recording, RecordingError> {
    let mut lines = Lines { input, number: 0, buffer: Vec::new() };
    let (mut fields, mut columns, mut live) = (Fields::new(), None, HashSet::new());
    let mut recording = Recording::default();
    while let Some((line, text)) = lines.next()? {
        if let Some(lost) = text.strip_prefix(LOST) {
            recording.lost = recording.lost.saturating_add(lost.parse().unwrap_or(0));
        }
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let wrong = |(expected, found)| RecordingError::Line { line, expected, found };
        fields.split(text);
        let Some(columns) = &columns else {
            columns = Some(Columns::named_in(&fields, text).map_err(wrong)?);
            continue;
        };
        if recording.events.len() == limit {
            let found = "more: cut the recording into parts".to_owned();
            return Err(wrong((format!("at most {limit} events"), found)));
        }
        let event = columns.event(&fields).map_err(wrong)?;
        let before = recording.events.last().map_or(0, |event| event.nanoseconds);
        follows(before, event, &mut live).map_err(wrong)?;
        recording.events.push(event);
    }
    if columns.is_none() { Err(RecordingError::Empty) } else { Ok(recording) }
}

/// Checks an event against those before it.
fn follows(before: u64, event: Event, live: &mut HashSet<u64>) -> Result<(), Wrong> {
    let Event { nanoseconds: now, what } = event;
    if now < before {
        let expected = format!("{before} nanoseconds or later");
        return Err((expected, format!("{now}: sort the recording by time")));
    }
    match what {
        What::Lease { id, .. } if !live.insert(id) => {
            Err(("a new lease's id".to_owned(), format!("{id}, which is still leased")))
        }
        What::Return { id } if !live.remove(&id) => Err((
            "the id of a lease that is out".to_owned(),
            format!("{id}, which was never leased or was returned before"),
        )),
        _ => Ok(()),
    }
}

/// Where each of [`COLUMNS`] is.
struct Columns([usize; COLUMNS.len()]);

impl Columns {
    /// Those that a line names. `text` is the line.
    fn named_in(names: &Fields, text: &str) -> Result<Self, Wrong> {
        let mut places = [0; COLUMNS.len()];
        for (place, column) in places.iter_mut().zip(COLUMNS) {
            let mut named = (0..names.count).filter(|&index| names.get(index) == column);
            let first = named.next();
            let count = usize::from(first.is_some()) + named.count();
            if count != 1 {
                let text = quote(text);
                return Err((
                    format!("column `{column}` once"),
                    format!(
                        "{count} in {text:?}: the first line should name the columns nanoseconds, event, id, stream and bytes, in any order"
                    ),
                ));
            }
            *place = first.unwrap_or(0);
        }
        Ok(Self(places))
    }

    fn event(&self, fields: &Fields) -> Result<Event, Wrong> {
        let [nanoseconds, event, id, stream, bytes] = self.0.map(|place| fields.get(place));
        let what = match event {
            "lease" => What::Lease {
                id: number("id", id)?,
                stream: number("stream", stream)?,
                bytes: number("bytes", bytes)?,
            },
            "return" => What::Return { id: number("id", id)? },
            "refuse" => {
                What::Refuse { stream: number("stream", stream)?, bytes: number("bytes", bytes)? }
            }
            _ => {
                let expected = "`lease`, `return` or `refuse`".to_owned();
                return Err((expected, format!("{:?}", quote(event))));
            }
        };
        Ok(Event { nanoseconds: number("nanoseconds", nanoseconds)?, what })
    }
}

fn number<N: std::str::FromStr>(column: &str, field: &str) -> Result<N, Wrong> {
    let wrong = |_| (format!("a whole number in column `{column}`"), format!("{:?}", quote(field)));
    field.parse().map_err(wrong)
}

fn quote(text: &str) -> String {
    text.chars().take(MAX_QUOTE).collect()
}

/// The fields of one line.
struct Fields {
    parser: csv_core::Reader,
    text: Box<[u8]>,
    ends: Box<[usize]>,
    count: usize,
}

impl Fields {
    fn new() -> Self {
        Self {
            parser: csv_core::Reader::new(),
            text: vec![0; MAX_LINE].into(),
            ends: vec![0; MAX_LINE + 1].into(),
            count: 0,
        }
    }

    /// Splits a line of at most [`MAX_LINE`] bytes.
    fn split(&mut self, line: &str) {
        let Self { parser, text, ends, count } = self;
        parser.reset();
        let (mut input, mut written) = (line.as_bytes(), 0);
        *count = 0;
        loop {
            // Once all is read, an empty input ends the last field.
            let (result, read, bytes, fields) =
                parser.read_record(input, &mut text[written..], &mut ends[*count..]);
            (input, written, *count) = (&input[read..], written + bytes, *count + fields);
            if result != ReadRecordResult::InputEmpty {
                return;
            }
        }
    }

    /// A field without the blanks around it; empty when the line ends before it.
    fn get(&self, index: usize) -> &str {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        let end = if index < self.count { self.ends[index] } else { start };
        str::from_utf8(self.text.get(start..end).unwrap_or_default()).unwrap_or_default().trim()
    }
}

/// Lines of bounded length, whatever the input is.
struct Lines<R> {
    input: R,
    number: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> Result<Option<(u64, &str)>, RecordingError> {
        self.buffer.clear();
        self.number += 1;
        let line = self.number;
        let wrong = |expected: String, found: &str| {
            let found = format!("{found}: is this a recording?");
            RecordingError::Line { line, expected, found }
        };
        let limit = MAX_LINE + "\r\n".len();
        let read = self.input.by_ref().take(limit as u64).read_until(b'\n', &mut self.buffer)?;
        if read == 0 {
            return Ok(None);
        }
        let text = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if text.len() > MAX_LINE {
            return Err(wrong(format!("at most {MAX_LINE} bytes"), "more"));
        }
        let text = str::from_utf8(text);
        let text = text.map_err(|_| wrong("text".to_owned(), "bytes that aren't UTF-8"))?;
        let text = if line == 1 { text.trim_start_matches('\u{feff}') } else { text };
        Ok(Some((line, text.trim())))
    }
}

#[cfg(test)]
mod tests;
