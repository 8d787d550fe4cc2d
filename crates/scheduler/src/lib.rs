//! What waits, who runs what next, and how long it will take: a state machine that is handed the time,
//! requests and measured batches, and knows nothing of threads, clocks or devices' innards.
//!
//! - [`Scheduler`] admits inputs up to a capacity, keeps what waits, deals batches out to devices that
//!   ask, and takes out devices that fail or don't move.
//! - [`Speed`] learns a device's `seconds = A + B · tokens + C · Σ length²` from every batch.
//! - [`policy`] decides who gets which work; the default is whoever finishes it first.
//! - `forming` keeps the queues and forms batches; [`budget_for`] and [`knee`] choose their budget of
//!   tokens by the memory that a device has ready and by its speed.
//! - `device` and `health` are what is known of each device; `admission` is what is refused at once.
//!
//! The choice behind it: all decisions are plain functions of what the caller reports, so that they
//! are tested without threads or sleeping, and simulated a million requests in a second.
//!
//! ```
//! use std::time::Duration;
//! use vecmill_scheduler::{Batch, DeviceSettings, Job, Next, Scheduler, Settings, Size, Speed, Terms, policy};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = DeviceSettings { batch_tokens: 128, in_flight: 2, speed: Speed::new() };
//! let policy = policy::by_name("earliest-finish")?;
//! let mut scheduler = Scheduler::new(Settings::default(), policy, [device]);
//! let mut now = Duration::ZERO;
//! scheduler.admit(now, 3, None)?;
//! scheduler.push(now, Terms::default(), ['a', 'b', 'c'].map(|text| Job::new(30, text)));
//!
//! let mut batch = Batch::new();
//! assert_eq!(scheduler.next_batch(now, 0, 0, |_| true, &mut batch), Next::Batch);
//! assert_eq!(batch.jobs.iter().map(|job| job.payload).collect::<String>(), "abc");
//!
//! let took = Duration::from_millis(2); // to run it
//! now += took;
//! scheduler.ran(now, 0, batch.size(), took);
//! scheduler.release(3); // answered
//! # Ok(())
//! # }
//! ```

mod admission;
mod budget;
mod device;
mod forming;
mod health;
mod job;
pub mod policy;
mod scheduler;
mod speed;
mod statistics;

pub use admission::{Full, Refused};
pub use budget::{budget_for, knee};
pub use device::DeviceSettings;
pub use forming::{Batch, Dropped};
pub use health::Health;
pub use job::{Job, Priority, Size, Terms};
pub use scheduler::{Failed, Next, Scheduler, Settings};
pub use speed::{Coefficients, Speed};
pub use statistics::DeviceStatistics;
