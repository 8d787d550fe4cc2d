//! Reading a GPU's state through NVML, the library of NVIDIA's driver for that.
//!
//! The choice behind it: nothing here is needed to work. Where there is no NVML, that is one answer;
//! a reading that this GPU doesn't have, or this user may not see, is `None` beside the others.

use std::sync::OnceLock;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, EventSet, Nvml};

use crate::probe::GpuInfo;
use crate::state::{GpuState, MemoryUse, Throttling, XidErrors};

/// A GPU's sensors and its error counters.
///
/// ```
/// use vecmill_backend_cuda::{Sensors, devices};
///
/// for gpu in devices().unwrap_or_default() {
///     match Sensors::open(&gpu) {
///         Ok(mut sensors) => println!("{:?}", sensors.read().temperature_celsius),
///         Err(reason) => println!("{reason}"),
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Sensors {
    /// The whole GPU: an instance of it (MIG) has no sensors of its own.
    gpu: Device<'static>,
    /// The instance, which has memory of its own.
    instance: Option<Device<'static>>,
    events: Option<EventSet<'static>>,
    xid_errors: XidErrors,
}

/// A GPU's sensors can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the sensors of {gpu} can't be read: {reason}; they come with the driver, and containers need its \
     capability `utility` (`NVIDIA_DRIVER_CAPABILITIES=compute,utility`)"
)]
pub struct NoSensors {
    /// The GPU's name.
    pub gpu: String,
    /// What NVML, or the loader, said.
    pub reason: String,
}

/// Milliseconds that a look for events may take. Not 0, of which NVML's documentation doesn't speak.
const EVENT_PATIENCE: u32 = 1;

/// Events that one reading takes at most, whatever the GPU goes through.
const EVENTS: usize = 256;

/// The number of an error that the driver has none for.
const UNKNOWN_XID: u64 = 999;

impl Sensors {
    /// Those of a GPU that [`devices`](crate::devices) found, or of the whole GPU that it is a part of.
    /// It is found by its UUID: NVML's numbers know nothing of `CUDA_VISIBLE_DEVICES`.
    ///
    /// # Errors
    /// [`NoSensors`] when there is no NVML, or it doesn't know the GPU.
    pub fn open(gpu: &GpuInfo) -> Result<Self, NoSensors> {
        Self::find(&gpu.uuid)
            .map_err(|error| NoSensors { gpu: gpu.name.clone(), reason: error.to_string() })
    }

    fn find(uuid: &str) -> Result<Self, NvmlError> {
        let nvml = nvml()?;
        let (gpu, instance) = match nvml.device_by_uuid(format!("GPU-{uuid}")) {
            Ok(gpu) => (gpu, None),
            Err(error) => {
                let instance = nvml.device_by_uuid(format!("MIG-{uuid}")).map_err(|_| error)?;
                (instance.mig_parent_device()?, Some(instance))
            }
        };
        let events = nvml.create_event_set().ok();
        let watch = |events| gpu.register_events(EventTypes::CRITICAL_XID_ERROR, events).ok();
        let events = events.and_then(watch);
        Ok(Self { gpu, instance, events, xid_errors: XidErrors::default() })
    }

    /// The GPU's state now. Takes some milliseconds, or, where a driver hangs, as long as that does.
    pub fn read(&mut self) -> GpuState {
        self.count_xid_errors();
        let gpu = &self.gpu;
        let watts = |milliwatts| f64::from(milliwatts) / 1e3;
        let hertz = |megahertz| u64::from(megahertz) * 1_000_000;
        let ecc = gpu.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile);
        GpuState {
            temperature_celsius: gpu.temperature(TemperatureSensor::Gpu).ok(),
            power_watts: gpu.power_usage().ok().map(watts),
            power_limit_watts: gpu.enforced_power_limit().ok().map(watts),
            clock_hertz: gpu.clock_info(Clock::SM).ok().map(hertz),
            max_clock_hertz: gpu.max_clock_info(Clock::SM).ok().map(hertz),
            throttling: gpu.current_throttle_reasons().ok().map(throttling),
            utilization: gpu.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
            memory: self.memory(),
            ecc_uncorrected_errors: ecc.ok(),
            xid_errors: self.events.is_some().then_some(self.xid_errors),
        }
    }

    fn count_xid_errors(&mut self) {
        let Some(events) = &self.events else { return };
        let arrived = std::iter::from_fn(|| events.wait(EVENT_PATIENCE).ok()).take(EVENTS);
        for error in arrived.filter_map(|event| event.event_data) {
            self.xid_errors = self.xid_errors.and(match error {
                XidError::Value(number) => number,
                XidError::Unknown => UNKNOWN_XID,
            });
        }
    }

    fn memory(&self) -> Option<MemoryUse> {
        let device = self.instance.as_ref().unwrap_or(&self.gpu);
        let memory = device.memory_info().ok()?;
        let own = device.running_compute_processes().ok().and_then(|processes| {
            let this = processes.iter().find(|process| process.pid == std::process::id())?;
            match this.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => usize::try_from(bytes).ok(),
                UsedGpuMemory::Unavailable => None,
            }
        });
        Some(MemoryUse {
            free_bytes: usize::try_from(memory.free).ok()?,
            used_bytes: usize::try_from(memory.used).ok()?,
            own_bytes: own,
        })
    }
}

/// NVML, started once and never ended. Nothing is remembered of a failure, as with the driver.
fn nvml() -> Result<&'static Nvml, NvmlError> {
    static NVML: OnceLock<Nvml> = OnceLock::new();
    if let Some(nvml) = NVML.get() {
        return Ok(nvml);
    }
    let nvml = Nvml::init()?;
    Ok(NVML.get_or_init(|| nvml))
}

fn throttling(reasons: ThrottleReasons) -> Throttling {
    let thermal = ThrottleReasons::SW_THERMAL_SLOWDOWN | ThrottleReasons::HW_THERMAL_SLOWDOWN;
    let hardware = ThrottleReasons::HW_SLOWDOWN
        | ThrottleReasons::HW_THERMAL_SLOWDOWN
        | ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN;
    Throttling {
        thermal: reasons.intersects(thermal),
        power_cap: reasons.contains(ThrottleReasons::SW_POWER_CAP),
        hardware_slowdown: reasons.intersects(hardware),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_gpu_is_not_throttled_and_a_hot_one_is_by_name() {
        let named = |reasons| throttling(reasons).reasons().map(|(_, holds)| holds);
        let idle = ThrottleReasons::GPU_IDLE | ThrottleReasons::APPLICATIONS_CLOCKS_SETTING;
        assert_eq!(named(idle), [false; 3]);
        assert_eq!(named(ThrottleReasons::SW_THERMAL_SLOWDOWN), [true, false, false]);
        assert_eq!(named(ThrottleReasons::HW_THERMAL_SLOWDOWN), [true, false, true]);
        assert_eq!(named(ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN), [false, false, true]);
        let both = ThrottleReasons::SW_POWER_CAP | ThrottleReasons::HW_SLOWDOWN;
        assert_eq!(named(both), [false, true, true]);
    }

    #[test]
    fn a_gpu_that_is_not_there_has_no_sensors() {
        let found = Sensors::find("00000000-0000-0000-0000-000000000000");
        assert!(found.is_err(), "whether there is NVML or not");
    }
}
