//! What an engine consists of, from its start to its end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vecmill_scheduler::ClassId;

use super::{Core, Engine};
use crate::error::RequestError;
use crate::experiment::Experiment;
use crate::info::Info;
use crate::models::Changing;
use crate::sensors::{SensedDevice, SensorLoop};
use crate::settings::{Settings, Shares};
use crate::speed_cache::CachedSpeed;
use crate::sweep::Sweep;
use crate::worker::{self, Profile, Worker};

/// An engine's parts. Dropped, it shuts down.
pub(crate) struct Running {
    pub(super) core: Arc<Core>,
    pub(super) info: Info,
    pub(super) devices: Vec<Arc<dyn Worker>>,
    /// Where the speed of each model on each device is kept, if anywhere.
    speeds: Mutex<Vec<(ClassId, usize, CachedSpeed)>>,
    /// What other models are loaded by.
    pub(super) loader: Option<Loader>,
    pub(super) changing: Changing,
    threads: Mutex<Vec<JoinHandle<()>>>,
    sweep: Mutex<Option<Sweep>>,
    pub(super) sensors: Mutex<Option<SensorLoop>>,
}

/// What an engine is started with.
pub(crate) struct Parts {
    pub(crate) core: Arc<Core>,
    pub(crate) info: Info,
    pub(crate) devices: Vec<Arc<dyn Worker>>,
    /// Where the speed of the first model on each device is kept, if anywhere.
    pub(crate) speeds: Vec<Option<CachedSpeed>>,
    pub(crate) sensors: Vec<SensedDevice>,
    pub(crate) experiment: Option<Arc<Experiment>>,
    pub(crate) loader: Option<Loader>,
}

/// What models are loaded by after the start.
pub(crate) struct Loader {
    pub(crate) settings: Settings,
    pub(crate) profiles: Vec<Profile>,
    pub(crate) shares: Shares,
}

impl Engine {
    /// Starts the threads.
    pub(crate) fn run(parts: Parts) -> std::io::Result<Self> {
        let Parts { core, info, devices, speeds, sensors, experiment, loader } = parts;
        let names = devices.iter().map(|device| device.name().to_owned()).collect();
        let sweep = Some(Sweep::start(
            Arc::clone(&core.queue),
            Arc::clone(&core.early),
            experiment,
            names,
        )?);
        let sensors = Some(SensorLoop::start(Arc::clone(&core.queue), sensors)?);
        let speeds = speeds.into_iter().enumerate();
        let speeds = speeds.filter_map(|(index, cache)| Some((ClassId::FIRST, index, cache?)));
        let running = Running {
            core,
            info,
            devices,
            speeds: Mutex::new(speeds.collect()),
            loader,
            changing: Changing::default(),
            threads: Mutex::default(),
            sweep: Mutex::new(sweep),
            sensors: Mutex::new(sensors),
        };
        for (index, device) in running.devices.iter().enumerate() {
            let queue = Arc::clone(&running.core.queue);
            let thread = worker::spawn(Arc::clone(device), queue, index)?;
            running.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(Self { running: Arc::new(running) })
    }

    /// About the model that it was started with, and its limits.
    pub fn info(&self) -> &Info {
        &self.running.info
    }

    /// About the model of that name, or the first one now where none is given.
    ///
    /// # Errors
    /// If there is none, or it is being loaded.
    pub fn info_of(&self, model: Option<&str>) -> Result<Arc<Info>, RequestError> {
        Ok(Arc::clone(&self.running.core.models.open(model)?.info))
    }

    /// Whether a request would be accepted now, as far as that is not its own doing: some device
    /// serves.
    ///
    /// # Errors
    /// [`RequestError::NoDevice`] or [`RequestError::Stopped`], which a request would get as well.
    pub fn readiness(&self) -> Result<(), RequestError> {
        let core = &self.running.core;
        core.queue.serves(&core.models.ready())
    }

    /// Refuses new requests, finishes those accepted and ends the workers. Blocks until then.
    pub fn shutdown(&self) {
        self.running.shutdown();
    }
}

impl Running {
    /// Where the speed of each model on each device is kept, by the model's class and the device's number.
    pub(super) fn speeds(&self) -> MutexGuard<'_, Vec<(ClassId, usize, CachedSpeed)>> {
        self.speeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what was learned of devices' speeds at some classes.
    pub(super) fn keep_speeds(&self, wanted: impl Fn(ClassId) -> bool) {
        let caches = self.speeds();
        let known = caches.iter().filter(|(class, _, _)| wanted(*class));
        let speeds = known.filter_map(|(class, index, cache)| {
            let now = *self.core.queue.statistics_of(*class).get(*index)?;
            Some((cache.clone(), now.speed.filter(|_| now.batches > 0)?))
        });
        let speeds = speeds.collect();
        drop(caches);
        CachedSpeed::write_all(speeds);
    }

    fn shutdown(&self) {
        self.core.queue.close();
        self.core.early.stop();
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // It does not panic; if it did, its requests would be answered, by dropping them.
            let _ = thread.join();
        }
        self.core.queue.finish();
        self.keep_speeds(|_| true);
        drop(self.sweep.lock().unwrap_or_else(PoisonError::into_inner).take());
        drop(self.sensors.lock().unwrap_or_else(PoisonError::into_inner).take());
        for device in &self.devices {
            device.stop();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown();
    }
}
