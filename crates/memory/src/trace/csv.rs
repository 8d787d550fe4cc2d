//! Traces as text: comma-separated values that a spreadsheet reads and a short script writes.
//!
//! - [`Trace::read`] takes nothing on trust: each line is checked for what it says and against the
//!   lines before it, so that whatever it returns can be replayed.
//! - [`Trace::write`] writes what `read` accepts.
//!
//! The choice behind it: columns are found by their names in the first line, so that a trace of
//! another program, which has more of them or in another order, is good as it is.
//! `docs/memory-trace.md` describes the format.

use std::collections::HashSet;
use std::io::{self, BufRead, Read, Write};

use super::{Event, Trace, What};

/// Longest line in bytes, without its end.
const MAX_LINE: usize = 4 << 10;

/// Most events in a trace.
const MAX_EVENTS: usize = 50_000_000;

/// Longest piece of input that an error repeats, in characters.
const MAX_QUOTE: usize = 40;

const COLUMNS: [&str; 5] = ["nanoseconds", "event", "id", "stream", "bytes"];

/// How a comment starts that says how many events were lost.
const LOST: &str = "# lost ";

/// Why a text is no trace. Lines count from 1.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// It could not be read.
    #[error("the trace can't be read: {0}")]
    Read(#[from] io::Error),
    /// It ended before the line that names the columns.
    #[error(
        "the trace is empty: its first line should name the columns, for example `nanoseconds,event,id,stream,bytes`"
    )]
    Empty,
    /// The line that names the columns lacks one or has it twice.
    #[error(
        "line {line}: expected column `{column}` once, found {count} in {found:?}: the first line should name the columns nanoseconds, event, id, stream and bytes, in any order"
    )]
    Header {
        /// The line.
        line: u64,
        /// The column that is missing or ambiguous.
        column: &'static str,
        /// How many columns have that name.
        count: usize,
        /// The start of the line.
        found: String,
    },
    /// A line is longer than any that a trace needs.
    #[error("line {line}: expected at most {MAX_LINE} bytes, found more: is this a trace?")]
    LongLine {
        /// The line.
        line: u64,
    },
    /// A line is not UTF-8.
    #[error("line {line}: expected text, found bytes that aren't UTF-8: is this a trace?")]
    NotText {
        /// The line.
        line: u64,
    },
    /// There are more events than can be replayed.
    #[error("line {line}: expected at most {limit} events, found more: cut the trace into parts")]
    TooManyEvents {
        /// The line of the first event too many.
        line: u64,
        /// The most that there may be.
        limit: usize,
    },
    /// A field that should hold a number doesn't.
    #[error("line {line}: expected a whole number in column `{column}`, found {found:?}")]
    NotANumber {
        /// The line.
        line: u64,
        /// The column.
        column: &'static str,
        /// What it holds; empty when the line ends before it.
        found: String,
    },
    /// An event of a kind that doesn't exist.
    #[error("line {line}: expected `lease`, `return` or `refuse`, found {found:?}")]
    UnknownEvent {
        /// The line.
        line: u64,
        /// What it holds instead.
        found: String,
    },
    /// Something is returned that isn't leased.
    #[error(
        "line {line}: expected the id of a lease that is out, found {id}, which was never leased or was returned before"
    )]
    UnknownLease {
        /// The line.
        line: u64,
        /// The lease.
        id: u64,
    },
    /// The id of a lease is given to another one before it is returned.
    #[error("line {line}: expected a new lease's id, found {id}, which is still leased")]
    LeaseReused {
        /// The line.
        line: u64,
        /// The lease.
        id: u64,
    },
    /// An event lies before the one above it.
    #[error(
        "line {line}: expected {before} nanoseconds or later, found {found}: sort the trace by time"
    )]
    TimeGoesBack {
        /// The line.
        line: u64,
        /// When the event above happened.
        before: u64,
        /// When this one did.
        found: u64,
    },
}

impl Trace {
    /// Reads a trace from text.
    ///
    /// # Errors
    /// [`TraceError`] with the first line that is wrong, what was expected and what was found.
    ///
    /// ```
    /// use vecmill_memory::trace::Trace;
    ///
    /// let text = "nanoseconds,event,id,stream,bytes\n10,lease,1,0,4096\n20,return,1,,\n";
    /// let trace = Trace::read(text.as_bytes())?;
    /// assert_eq!(trace.events.len(), 2);
    /// # Ok::<(), vecmill_memory::trace::TraceError>(())
    /// ```
    pub fn read(input: impl BufRead) -> Result<Self, TraceError> {
        read_at_most(input, MAX_EVENTS)
    }

    /// Writes the trace as text that [`read`](Self::read) accepts.
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

fn read_at_most(input: impl BufRead, limit: usize) -> Result<Trace, TraceError> {
    let mut lines = Lines { input, number: 0, buffer: Vec::new() };
    let mut trace = Trace::default();
    let mut header = None;
    let mut live = HashSet::new();
    while let Some((line, text)) = lines.next()? {
        if let Some(lost) = text.strip_prefix(LOST) {
            trace.lost = trace.lost.saturating_add(lost.parse().unwrap_or(0));
        }
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let Some(columns) = &header else {
            header = Some(Columns::named_in(line, text)?);
            continue;
        };
        if trace.events.len() == limit {
            return Err(TraceError::TooManyEvents { line, limit });
        }
        let event = columns.event(line, text)?;
        let before = trace.events.last().map_or(0, |event| event.nanoseconds);
        follows(line, before, event, &mut live)?;
        trace.events.push(event);
    }
    if header.is_none() { Err(TraceError::Empty) } else { Ok(trace) }
}

/// Checks an event against those before it.
fn follows(
    line: u64,
    before: u64,
    event: Event,
    live: &mut HashSet<u64>,
) -> Result<(), TraceError> {
    if event.nanoseconds < before {
        return Err(TraceError::TimeGoesBack { line, before, found: event.nanoseconds });
    }
    match event.what {
        What::Lease { id, .. } if !live.insert(id) => Err(TraceError::LeaseReused { line, id }),
        What::Return { id } if !live.remove(&id) => Err(TraceError::UnknownLease { line, id }),
        _ => Ok(()),
    }
}

/// Where each of [`COLUMNS`] is.
struct Columns([usize; COLUMNS.len()]);

impl Columns {
    fn named_in(line: u64, text: &str) -> Result<Self, TraceError> {
        let mut places = [0; COLUMNS.len()];
        for (place, column) in places.iter_mut().zip(COLUMNS) {
            let mut count = 0;
            for (index, name) in Fields(Some(text)).enumerate() {
                if name == column {
                    count += 1;
                    *place = index;
                }
            }
            if count != 1 {
                return Err(TraceError::Header { line, column, count, found: quote(text) });
            }
        }
        Ok(Self(places))
    }

    fn event(&self, line: u64, text: &str) -> Result<Event, TraceError> {
        let mut fields = [""; COLUMNS.len()];
        for (index, field) in Fields(Some(text)).enumerate() {
            if let Some(column) = self.0.iter().position(|&place| place == index) {
                fields[column] = field;
            }
        }
        let [nanoseconds, event, id, stream, bytes] = fields;
        let what = match event {
            "lease" => What::Lease {
                id: number(line, "id", id)?,
                stream: number(line, "stream", stream)?,
                bytes: number(line, "bytes", bytes)?,
            },
            "return" => What::Return { id: number(line, "id", id)? },
            "refuse" => What::Refuse {
                stream: number(line, "stream", stream)?,
                bytes: number(line, "bytes", bytes)?,
            },
            _ => return Err(TraceError::UnknownEvent { line, found: quote(event) }),
        };
        Ok(Event { nanoseconds: number(line, "nanoseconds", nanoseconds)?, what })
    }
}

fn number<N: std::str::FromStr>(
    line: u64,
    column: &'static str,
    field: &str,
) -> Result<N, TraceError> {
    field.parse().map_err(|_| TraceError::NotANumber { line, column, found: quote(field) })
}

fn quote(text: &str) -> String {
    text.chars().take(MAX_QUOTE).collect()
}

/// The fields of one line, without the blanks and quotation marks around them. A comma between
/// quotation marks separates nothing.
struct Fields<'a>(Option<&'a str>);

impl<'a> Iterator for Fields<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.0?;
        let mut quoted = false;
        let end = rest.find(|letter| {
            quoted ^= letter == '"';
            letter == ',' && !quoted
        });
        let (field, rest) = match end {
            Some(end) => (&rest[..end], Some(&rest[end + 1..])),
            None => (rest, None),
        };
        self.0 = rest;
        let field = field.trim();
        let inner = field.strip_prefix('"').and_then(|field| field.strip_suffix('"'));
        Some(inner.unwrap_or(field))
    }
}

/// Lines of bounded length, whatever the input is.
struct Lines<R> {
    input: R,
    number: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> Result<Option<(u64, &str)>, TraceError> {
        self.buffer.clear();
        self.number += 1;
        let line = self.number;
        let limit = MAX_LINE + "\r\n".len();
        let read = self.input.by_ref().take(limit as u64).read_until(b'\n', &mut self.buffer)?;
        if read == 0 {
            return Ok(None);
        }
        let text = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if text.len() > MAX_LINE {
            return Err(TraceError::LongLine { line });
        }
        let text = str::from_utf8(text).map_err(|_| TraceError::NotText { line })?;
        let text = if line == 1 { text.trim_start_matches('\u{feff}') } else { text };
        Ok(Some((line, text.trim())))
    }
}

#[cfg(test)]
mod tests;
