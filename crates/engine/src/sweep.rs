//! A thread beside the batches: a few times a second it has the scheduler look for devices that don't
//! move and for work that is too late, which no event tells, and answers requests that have waited long
//! enough for their model; and it changes the policy when an
//! experiment's turn ends. A defect that panics on the way costs one look, not all later ones.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::answer::JobQueue;
use crate::early::EarlyRequests;
use crate::experiment::Experiment;

/// How late a device that doesn't move is noticed, at most, when nobody asks for work.
const INTERVAL: Duration = Duration::from_millis(100);

/// Runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Sweep {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sweep {
    /// Looks after the devices called `devices`, and after the experiment on them if there is one.
    pub(crate) fn start(
        queue: Arc<JobQueue>,
        early: Arc<EarlyRequests>,
        experiment: Option<Arc<Experiment>>,
        devices: Vec<String>,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = sync_channel(0);
        let work = move || {
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let look = || {
                    queue.check();
                    early.check();
                    if let Some(experiment) = &experiment {
                        take_turns(&queue, experiment, &devices);
                    }
                };
                let _ = catch_unwind(AssertUnwindSafe(look));
            }
        };
        let thread = std::thread::Builder::new().name("sweep".to_owned()).spawn(work)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

fn take_turns(queue: &JobQueue, experiment: &Experiment, devices: &[String]) {
    let policy = experiment.policy(experiment.turn());
    if queue.policy() != policy {
        queue.set_policy(policy);
    }
    let busy = queue.statistics().into_iter().map(|device| device.busy);
    experiment.look(devices.iter().cloned().zip(busy));
}

impl Drop for Sweep {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it doesn't panic
        }
    }
}
