//! `vecmill ab`: which scheduling policy serves better, on these devices and under this load.
//!
//! - [`Experiment`] is what to compare; [`Traffic`](crate::traffic::Traffic) is the requests, made or read from a trace.
//! - `generator` sends them to an engine at their times, `observer` watches the devices meanwhile,
//!   `pass` makes figures of both; `sustained_rate` is what the devices can do at all.
//! - `run` takes the passes in the order of `order`; `find_max` looks for the highest load.
//! - `bootstrap` says how sure a difference is; [`Report`] tells it as a table, a page (`page`,
//!   `plots`) and JSON, of which `record` reads again what the same could be predicted from.
//!
//! The choice behind it: nothing but the policy differs between the arms. One engine has the model
//! loaded once, all arms get the same requests at the same times, and they take turns (A B B A), so
//! that what drifts, a GPU's clock above all, drifts for all of them. Requests are sent when they are
//! due, whatever comes back, and latency counts from then: an arm that falls behind can't slow its
//! own load down.

mod bootstrap;
mod error;
mod experiment;
mod figures;
mod find_max;
mod generator;
mod metric;
mod observer;
mod order;
mod page;
mod pass;
mod plots;
mod record;
mod report;
mod run;
mod sustained_rate;
mod table;

pub use error::AbError;
pub use experiment::{Experiment, Load};
pub use figures::{DeviceFigures, Figures};
pub use generator::{Fate, Sent};
pub use metric::{MAKESPAN, MEAN, Metric, P50, P99, THROUGHPUT, WAITING};
pub use observer::{Learned, Work};
pub use record::{DeviceLimits, MadeOf, Record, RecordError, Requests};
pub use report::Report;
pub use run::{Leg, run};
pub use sustained_rate::{DeviceRate, SustainedRate};
