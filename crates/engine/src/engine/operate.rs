//! What an operator asks of a running model: figures, states, policies, devices in and out, memory.

use std::fmt;
use std::sync::PoisonError;

use vecmill_backend_cuda::GpuState;
use vecmill_memory::Statistics;
use vecmill_memory::recording::Recording;
use vecmill_scheduler::DeviceStatistics;
use vecmill_scheduler::policy::PolicyName;

use super::Engine;
use crate::info::DeviceName;
use crate::sensors::SensorLoop;

impl Engine {
    /// Appends this engine's metrics in OpenMetrics text format, without the closing `# EOF`.
    ///
    /// # Errors
    /// None in practice: writing to a string does not fail.
    pub fn write_metrics(&self, out: &mut String) -> fmt::Result {
        let running = &self.running;
        let devices = running.devices.iter();
        let memory = devices.map(|device| (device.name().to_owned(), device.memory())).collect();
        let queue = &running.core.queue;
        let scheduling = self.scheduling();
        let states = self.device_states();
        queue.metrics.write(out, queue.backlog(), scheduling, states, memory)
    }

    /// How each device stands with the scheduler, and what it has done.
    pub fn scheduling(&self) -> Vec<(DeviceName, DeviceStatistics)> {
        let names = self.running.devices.iter().map(|device| device.name().to_owned());
        names.zip(self.running.core.queue.statistics()).collect()
    }

    /// What devices say of themselves, those that do, as of at most some seconds ago.
    pub fn device_states(&self) -> Vec<(DeviceName, GpuState)> {
        let running = &self.running;
        let sensors = running.sensors.lock().unwrap_or_else(PoisonError::into_inner);
        let states = sensors.as_ref().map(SensorLoop::states).unwrap_or_default().into_iter();
        states.map(|(index, state)| (running.devices[index].name().to_owned(), state)).collect()
    }

    /// The policy by which devices get work.
    pub fn policy(&self) -> PolicyName {
        self.running.core.queue.policy()
    }

    /// Changes the policy; what waits is dealt out anew.
    pub fn set_policy(&self, policy: PolicyName) {
        self.running.core.queue.set_policy(policy);
    }

    /// Has a device finish what it has begun and gives it nothing more, even if it is the last;
    /// `false` if there is none of that name.
    #[must_use]
    pub fn drain(&self, device: &str) -> bool {
        self.on_device(device, |index| self.running.core.queue.drain(index))
    }

    /// Gives a device work again that was drained, or is out; `false` if there is none of that name.
    #[must_use]
    pub fn restore(&self, device: &str) -> bool {
        self.on_device(device, |index| self.running.core.queue.restore(index))
    }

    fn on_device(&self, name: &str, act: impl FnOnce(usize)) -> bool {
        let index = self.running.devices.iter().position(|device| **device.name() == *name);
        index.map(act).is_some()
    }

    /// The memory of each device.
    pub fn memory(&self) -> Vec<(DeviceName, Statistics)> {
        let devices = self.running.devices.iter();
        devices.map(|device| (device.name().to_owned(), device.memory().pool)).collect()
    }

    /// Gives each device's unused memory back now, and tells how many bytes that were.
    pub fn trim_memory(&self) -> Vec<(DeviceName, usize)> {
        let devices = self.running.devices.iter();
        devices.map(|device| (device.name().to_owned(), device.trim_memory())).collect()
    }

    /// What each device's pool remembers of its leases.
    pub fn memory_recordings(&self) -> Vec<(DeviceName, Recording)> {
        let devices = self.running.devices.iter();
        devices.map(|device| (device.name().to_owned(), device.memory_recording())).collect()
    }
}
