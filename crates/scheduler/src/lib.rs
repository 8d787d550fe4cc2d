//! What waits, what runs next, and how long it will take: a state machine that is handed jobs and
//! measured times, and knows nothing of threads, clocks or devices.
//!
//! - [`Queue`] admits inputs up to a capacity, keeps their jobs in order of arrival and forms
//!   batches by a budget of tokens.
//! - [`budget_for`] chooses that budget by the memory that a device has ready.
//! - [`Speed`] learns `seconds = A + B · tokens` from every batch that a device has run.
//!
//! The choice behind it: all decisions are plain functions of what the caller reports, so that they
//! are tested without threads or sleeping, and replayed from a trace.
//!
//! ```
//! use vecmill_scheduler::{Job, Queue};
//!
//! # fn main() -> Result<(), vecmill_scheduler::Full> {
//! let mut queue = Queue::new(100);
//! queue.admit(3)?;
//! queue.push([Job { tokens: 60, payload: 'a' }, Job { tokens: 60, payload: 'b' }]);
//! queue.push([Job { tokens: 60, payload: 'c' }]);
//! let batch = queue.next_batch(128, |_| true);
//! assert_eq!(batch.iter().map(|job| job.payload).collect::<String>(), "ab");
//! # Ok(())
//! # }
//! ```

mod budget;
mod queue;
mod speed;

pub use budget::budget_for;
pub use queue::{Full, Job, Queue};
pub use speed::Speed;
