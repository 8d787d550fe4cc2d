//! What waits, who runs what next, and how long it will take: a state machine that is handed the time,
//! requests and measured batches, and knows nothing of threads, clocks or devices' innards.
//!
//! - [`Scheduler`] admits inputs up to a capacity, keeps what waits, deals batches out to devices that
//!   ask, and takes out devices that fail or don't move.
//! - [`Speed`] learns a device's `seconds = A + B · tokens + C · Σ length²` from every batch.
//! - [`policy`] decides who gets which work; the default is whoever finishes it first.
//! - `backlog` keeps what waits and forms batches of it; `deal` answers a device that asks, by how the
//!   devices stand (`snapshot`); [`budget_for`] goes by the memory that it has ready.
//! - A `class` is work that may share batches, such as one model's; `share` says whose turn it is. All
//!   that is said of speeds and policies is said of each class apart.
//! - `device` is what is known of each device.
//!
//! The choice behind it: all decisions are plain functions of what the caller reports, so that they
//! are tested without threads or sleeping, and simulated a million requests in a second.
//!
//! ```
//! use std::time::Duration;
//! use vecmill_scheduler::{
//!     ClassId, DeviceSettings, Job, JobBatch, JobTerms, Next, Scheduler, Settings, Size, Speed, policy,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = DeviceSettings { batch_tokens: 128, in_flight: 2, speed: Speed::new() };
//! let policy = policy::by_name("earliest-finish")?;
//! let mut scheduler = Scheduler::new(Settings::default(), policy, [device]);
//! let mut now = Duration::ZERO;
//! let class = ClassId::default(); // all work is of one, unless others are added
//! scheduler.admit(now, class, 3, None)?;
//! scheduler.push(now, class, JobTerms::default(), ['a', 'b', 'c'].map(|text| Job::new(30, text)));
//!
//! let mut batch = JobBatch::new();
//! assert_eq!(scheduler.next_batch(now, 0, None, |_| true, &mut batch), Next::Batch);
//! assert_eq!(batch.jobs.iter().map(|job| job.payload).collect::<String>(), "abc");
//!
//! let took = Duration::from_millis(2); // to run it
//! now += took;
//! scheduler.ran(now, 0, class, batch.size(), took);
//! scheduler.release(3); // answered
//! # Ok(())
//! # }
//! ```

mod backlog;
mod class;
mod deal;
mod device;
mod job;
pub mod policy;
mod scheduler;
mod share;
mod snapshot;
mod speed;

pub use backlog::{Dropped, JobBatch};
pub use class::{ClassId, ClassStatistics};
pub use deal::{Next, Warm, budget_for};
pub use device::{DeviceSettings, DeviceStatistics, Health};
pub use job::{Job, JobTerms, Priority, Size};
pub use scheduler::{Failed, Full, Refused, Scheduler, Settings};
pub use speed::{Coefficients, Speed};
