//! What the devices' own sensors say, once a second, and what follows from it.
//!
//! - A fault of the hardware takes a device out, if another serves; it is tried again like one that failed.
//! - Where other processes have taken memory that was counted on, batches are planned for what is left.
//! - Heat and low clocks are only shown: the speed that is learned from batches follows by itself.
//!
//! The choice behind it: a thread of its own, for which nothing waits, because a call into a driver may
//! hang. Without readings everything goes on by measured times alone.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vecmill_backend_cuda::GpuState;

use crate::answer::JobQueue;
use crate::worker::Worker;

/// How often sensors are read.
const INTERVAL: Duration = Duration::from_secs(1);

/// A reading that is older says nothing about now.
const STALE: Duration = Duration::from_secs(10);

/// How long the end of the engine waits for a reading that is under way.
const FAREWELL: Duration = Duration::from_secs(1);

/// A device's sensors.
pub(crate) struct Sensors {
    /// The GPU that they are of: parts of one have the same.
    pub(crate) gpu: String,
    /// Reads them. May take a while.
    pub(crate) read: Box<dyn FnMut() -> GpuState + Send>,
}

/// A device with sensors.
pub(crate) struct SensedDevice {
    /// Its number with the engine.
    pub(crate) index: usize,
    pub(crate) device: Arc<dyn Worker>,
    pub(crate) sensors: Sensors,
}

/// What was read, by the devices' numbers.
type States = Vec<(usize, GpuState)>;

/// Reads devices' sensors until it is dropped.
#[derive(Debug)]
pub(crate) struct SensorLoop {
    /// The last states, and when they were read.
    latest: Arc<Mutex<Option<(Instant, States)>>>,
    stop: Option<SyncSender<()>>,
    ended: Receiver<()>,
}

impl SensorLoop {
    /// Begins with these devices, if any.
    pub(crate) fn start(
        queue: Arc<JobQueue>,
        mut sensed: Vec<SensedDevice>,
    ) -> std::io::Result<Self> {
        let latest = Arc::default();
        let (stop, stopped) = sync_channel(0);
        let (end, ended) = sync_channel(0);
        let sensors = Self { latest: Arc::clone(&latest), stop: Some(stop), ended };
        if sensed.is_empty() {
            return Ok(sensors);
        }
        let work = move || {
            let mut states = States::new();
            loop {
                states = look(&queue, &mut sensed, &states);
                let read = Some((Instant::now(), states.clone()));
                *latest.lock().unwrap_or_else(PoisonError::into_inner) = read;
                if stopped.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
            drop((queue, sensed, end));
        };
        std::thread::Builder::new().name("sensors".to_owned()).spawn(work)?;
        Ok(sensors)
    }

    /// The states that are known, by the devices' numbers.
    pub(crate) fn states(&self) -> States {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = latest.as_ref().filter(|(read, _)| read.elapsed() < STALE);
        fresh.map(|(_, states)| states.clone()).unwrap_or_default()
    }
}

impl Drop for SensorLoop {
    fn drop(&mut self) {
        drop(self.stop.take());
        // Where the driver hangs, its thread is left behind.
        let _ = self.ended.recv_timeout(FAREWELL);
    }
}

/// Reads the sensors of all devices and acts on what they say; of faults, on those since the states
/// `before`.
pub(crate) fn look(queue: &JobQueue, sensed: &mut [SensedDevice], before: &States) -> States {
    let read = |one: &mut SensedDevice| (one.index, (one.sensors.read)());
    let mut states: States = sensed.iter_mut().map(read).collect();
    for (one, (_, state)) in sensed.iter().zip(&mut states) {
        if let Some(memory) = &mut state.memory {
            // Where the driver doesn't tell who has what, the pools know the most of it.
            let same = sensed.iter().filter(|other| other.sensors.gpu == one.sensors.gpu);
            let own = || same.map(|other| other.device.memory_bytes()).sum();
            memory.own_bytes.get_or_insert_with(own);
        }
    }
    for (place, (one, (_, state))) in sensed.iter().zip(&states).enumerate() {
        let free = state.memory.map_or(usize::MAX, |memory| memory.free_bytes);
        for (class, tokens) in one.device.batch_tokens_with(free) {
            queue.set_batch_tokens(one.index, class, tokens);
        }
        if let Some((_, before)) = before.get(place) {
            heed_faults(queue, one, before, state);
        }
    }
    states
}

fn heed_faults(queue: &JobQueue, one: &SensedDevice, before: &GpuState, now: &GpuState) {
    let faults = now.faults_since(before);
    if faults > 0 {
        let taken_out = queue.take_out(one.index);
        let xid = now.xid_errors.and_then(|errors| errors.last);
        let (device, ecc) = (&**one.device.name(), now.ecc_uncorrected_errors);
        tracing::error!(device, faults, xid, ecc, taken_out, "the hardware has failed");
    }
}
