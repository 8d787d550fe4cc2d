//! What waits, who runs what next, and how long it will take: a state machine that is handed the time,
//! requests and measured batches, and knows nothing of threads, clocks or devices' innards.
//!
//! - [`Scheduler`] admits inputs up to a capacity, keeps what waits, deals batches out to devices that
//!   ask, and takes out devices that fail or don't move.
//! - [`Speed`] learns a device's `seconds = A + B · tokens + C · Σ length²` from every batch.
//! - [`policy`] decides who gets which work; the default is whoever finishes it first.
//! - A `class` is work that may share batches, such as one model's: what waits of it (`backlog`) and the
//!   devices as it sees them. All that is said of speeds and policies is said of each class apart.
//! - `deal` answers a device that asks: `share` says which class's turn it is, the class's policy how much
//!   it gets; [`budget_for`] goes by the memory that it has ready.
//! - `faults` looks after devices that fail or don't move, `operate` is for operators.
//!
//! The choice behind it: all decisions are plain functions of what the caller reports, so that they
//! are tested without threads or sleeping, and simulated a million requests in a second.
//!
//! ```
//! use std::time::Duration;
//! use vecmill_scheduler::{
//!     ClassId, DeviceSettings, Job, JobBatch, JobTerms, Next, Scheduler, Settings, Speed,
//!     policy::PolicyName,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = DeviceSettings { batch_tokens: 128, in_flight: 2, speed: Speed::new() };
//! let policy = PolicyName::EarliestFinish.policy();
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
mod faults;
mod health;
mod job;
mod lengths;
mod operate;
pub mod policy;
mod rates;
mod room;
mod scheduler;
mod settings;
mod share;
mod speed;
mod statistics;
mod warm;

pub use deal::Next;
pub use faults::Failed;
pub use health::Health;
pub use job::{ClassId, Dropped, Job, JobBatch, JobTerms, Priority, Size};
pub use room::{Full, Refused};
pub use scheduler::Scheduler;
pub use settings::{DeviceSettings, Settings};
pub use speed::{Coefficients, Speed};
pub use statistics::{ClassStatistics, DeviceStatistics};
pub use warm::{Warm, budget_for};

/// A scheduler goes between threads, behind a lock.
const _: () = {
    const fn sent<T: Send>() {}
    sent::<Scheduler<String>>();
    const fn both<T: Send + Sync>() {}
    both::<JobBatch<String>>();
    both::<Failed<String>>();
    both::<Speed>();
    both::<Refused>();
    both::<DeviceStatistics>();
    both::<policy::UnknownPolicy>();
};

/// Its example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
