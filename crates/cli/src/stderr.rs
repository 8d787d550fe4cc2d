//! Standard error: the log, what the commands say, progress bars and panics.
//!
//! Whoever says something puts it into a queue and goes on; one thread writes. A reader that is slow,
//! has stopped reading or is gone, and a disk without room, cost lines, which are counted, and
//! nothing else. All of it takes this way: a second one that can block or fail would decide over what
//! it is only to tell about.
//!
//! The choice behind it: `tracing-appender` has such a queue, but bounds lines rather than bytes,
//! doesn't count the lines that can't be written, and prints to standard error when it can't end.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::patient::Patient;

/// The most bytes that wait to be written: some thousands of lines.
const MOST_BYTES: usize = 1 << 20;

/// What a text takes beside its bytes.
const EACH: usize = size_of::<Text>();

/// How long the end of the process waits for what was said last.
const FAREWELL: Duration = Duration::from_secs(2);

static STDERR: LazyLock<Queue> = LazyLock::new(|| Queue::new(Patient(io::stderr())));

/// Says something: whole lines, which are counted if they are lost. Never waits.
pub(crate) fn say(text: impl Into<Vec<u8>>) {
    STDERR.put(Text { bytes: text.into(), counts: true });
}

/// Waits until a slow reader has read most of what was said: for a command that nobody depends on,
/// before it says what it was asked for.
pub(crate) fn await_room() {
    STDERR.await_room();
}

/// Shows a picture that the next one replaces. Never waits; nobody misses one that is lost.
pub(crate) fn show(picture: Vec<u8>) {
    STDERR.put(Text { bytes: picture, counts: false });
}

/// How many lines were lost until now, for whoever wants to look.
pub(crate) fn lost() -> Arc<AtomicU64> {
    Arc::clone(&STDERR.shared.lost)
}

/// Waits until everything is written, for at most so long.
pub(crate) fn wait(patience: Duration) {
    STDERR.wait(patience);
}

/// Waits for what was said last, at the end of the process.
pub(crate) fn finish() {
    wait(FAREWELL);
}

struct Text {
    bytes: Vec<u8>,
    /// Whether a loss is one.
    counts: bool,
}

impl Text {
    fn size(&self) -> usize {
        self.bytes.len().saturating_add(EACH)
    }
}

/// Texts that wait for the one thread that writes.
struct Queue {
    shared: Arc<Shared>,
    /// Writes where there is no thread: the system had none to give, and that has to be said.
    alone: Option<Mutex<Writer>>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// A text has come, or has been written.
    changed: Condvar,
    lost: Arc<AtomicU64>,
}

#[derive(Default)]
struct Waiting {
    texts: VecDeque<Text>,
    /// Their sizes, and that of the text that is being written.
    bytes: usize,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, text: &Text) {
        self.lost.fetch_add(u64::from(text.counts), Ordering::Relaxed);
    }

    /// Writes what comes, for as long as the process runs.
    fn write(&self, mut writer: Writer) {
        let mut told = 0;
        loop {
            let none = |waiting: &mut Waiting| waiting.texts.is_empty();
            let waiting = self.changed.wait_while(self.waiting(), none);
            let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
            let Some(text) = waiting.texts.pop_front() else { continue };
            drop(waiting);
            let written = writer.write(&text.bytes);
            if !written {
                self.lose(&text);
            }
            let mut waiting = self.waiting();
            waiting.bytes -= text.size();
            let idle = waiting.texts.is_empty();
            drop(waiting);
            self.changed.notify_all();
            let lost = self.lost.load(Ordering::Relaxed);
            // Said once there is room again, not for each line.
            if written && idle && lost > told {
                tracing::warn!(lines = lost - told, "lines of the log were lost before this one");
                told = lost;
            }
        }
    }
}

impl Queue {
    fn new(out: impl Write + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let writer = Arc::new(Mutex::new(Some(Writer { out: Box::new(out), torn: false })));
        let take = {
            let (shared, writer) = (Arc::clone(&shared), Arc::clone(&writer));
            move || {
                let writer = writer.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(writer) = writer {
                    shared.write(writer);
                }
            }
        };
        let alone = match std::thread::Builder::new().name("stderr".to_owned()).spawn(take) {
            Ok(_) => None,
            Err(_) => writer.lock().unwrap_or_else(PoisonError::into_inner).take().map(Mutex::new),
        };
        Self { shared, alone }
    }

    fn put(&self, text: Text) {
        if let Some(writer) = &self.alone {
            if !writer.lock().unwrap_or_else(PoisonError::into_inner).write(&text.bytes) {
                self.shared.lose(&text);
            }
            return;
        }
        let mut waiting = self.shared.waiting();
        if waiting.bytes.saturating_add(text.size()) > MOST_BYTES {
            drop(waiting);
            self.shared.lose(&text);
        } else {
            waiting.bytes += text.size();
            waiting.texts.push_back(text);
            drop(waiting);
            self.shared.changed.notify_all();
        }
    }

    fn await_room(&self) {
        let full = |waiting: &mut Waiting| waiting.bytes > MOST_BYTES / 2;
        drop(self.shared.changed.wait_while(self.shared.waiting(), full));
    }

    /// Waits until everything is written; for at most so long.
    fn wait(&self, patience: Duration) {
        let left = |waiting: &mut Waiting| waiting.bytes > 0;
        drop(self.shared.changed.wait_timeout_while(self.shared.waiting(), patience, left));
    }
}

/// Writes texts whole, or says that it could not.
struct Writer {
    out: Box<dyn Write + Send>,
    /// Whether the last text ends in the middle.
    torn: bool,
}

impl Writer {
    fn write(&mut self, text: &[u8]) -> bool {
        if self.torn && self.out.write_all(b"\n").is_err() {
            return false;
        }
        self.torn = false;
        let mut left = text;
        while !left.is_empty() {
            match self.out.write(left) {
                Ok(written @ 1..) => left = left.get(written..).unwrap_or_default(),
                Ok(0) | Err(_) => {
                    self.torn = left.len() < text.len();
                    return false;
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Somebody who reads when told to, and is told what was read.
    struct Reader {
        may: Receiver<io::Result<usize>>,
        read: Sender<Vec<u8>>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let most = self.may.recv().unwrap_or(Ok(usize::MAX))?;
            let read = &bytes[..most.min(bytes.len())];
            let _ = self.read.send(read.to_vec());
            Ok(read.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn queue() -> (Queue, Sender<io::Result<usize>>, Receiver<Vec<u8>>) {
        let ((allow, may), (read, heard)) = (channel(), channel());
        (Queue::new(Reader { may, read }), allow, heard)
    }

    fn line(text: &str) -> Text {
        Text { bytes: text.into(), counts: true }
    }

    fn lost(queue: &Queue) -> u64 {
        queue.shared.lost.load(Ordering::Relaxed)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_no_time() {
        let (queue, allow, heard) = queue();
        let large = "x".repeat(MOST_BYTES / 4);
        for _ in 0..10 {
            queue.put(line(&large));
        }
        assert_eq!(lost(&queue), 7);
        queue.put(Text { counts: false, ..line(&large) });
        assert_eq!(lost(&queue), 7, "nobody misses a picture");
        queue.wait(Duration::ZERO);
        drop(allow); // now it reads
        queue.wait(LONG);
        assert_eq!(heard.try_iter().map(|text| text.len()).sum::<usize>(), 3 * large.len());
        queue.put(line("a\n"));
        queue.wait(LONG);
        assert_eq!(heard.try_recv().unwrap(), b"a\n");
    }

    #[test]
    fn lines_that_can_t_be_written_are_counted_and_leave_no_halves() {
        let (queue, allow, heard) = queue();
        let full = || Err(io::ErrorKind::StorageFull.into());
        for answer in [full(), Ok(2), full(), full(), Ok(1), Ok(9)] {
            allow.send(answer).unwrap();
        }
        for text in ["one\n", "two\n", "three\n", "four\n"] {
            queue.put(line(text));
        }
        queue.wait(LONG);
        assert_eq!(lost(&queue), 3);
        let heard: Vec<Vec<u8>> = heard.try_iter().collect();
        assert_eq!(heard.concat(), b"tw\nfour\n");
    }

    #[test]
    fn a_command_may_wait_for_room() {
        let (queue, allow, heard) = queue();
        let large = "x".repeat(MOST_BYTES / 4);
        drop(allow);
        for _ in 0..20 {
            queue.await_room();
            queue.put(line(&large));
        }
        queue.wait(LONG);
        assert_eq!((lost(&queue), heard.try_iter().count()), (0, 20));
    }
}
