//! What a GPU says of itself at one moment, as plain data: [`Sensors`](crate::Sensors) reads it.
//!
//! The choice behind it: what follows from heat, faults and neighbours is decided by others, who can
//! so be tried with readings that no GPU here would give.

use serde::Serialize;

/// A GPU's state. `None` is what this GPU, driver or user doesn't tell.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GpuState {
    /// Of the chip.
    pub temperature_celsius: Option<u32>,
    /// What it draws.
    pub power_watts: Option<f64>,
    /// The most that it may draw.
    pub power_limit_watts: Option<f64>,
    /// Of the multiprocessors, now.
    pub clock_hertz: Option<u64>,
    /// The most that that ever is.
    pub max_clock_hertz: Option<u64>,
    /// What slows it down.
    pub throttling: Option<Throttling>,
    /// The part of the time of late, from 0 to 1, in which anything ran on it, whoever's it was.
    pub utilization: Option<f64>,
    /// Its memory.
    pub memory: Option<MemoryUse>,
    /// Errors of its memory that could not be corrected, since the driver was loaded.
    pub ecc_uncorrected_errors: Option<u64>,
    /// Errors that the driver has reported since the first reading.
    pub xid_errors: Option<XidErrors>,
}

/// Why a GPU's clocks are lower than they could be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Throttling {
    /// It, or its memory, is too hot.
    pub thermal: bool,
    /// It would draw more power than it may.
    pub power_cap: bool,
    /// The hardware has halved the clocks, or worse: too hot, a sudden draw of power, or told to by the
    /// power supply.
    pub hardware_slowdown: bool,
}

impl Throttling {
    /// The reasons by name, and whether they hold.
    pub fn reasons(self) -> [(&'static str, bool); 3] {
        let Self { thermal, power_cap, hardware_slowdown } = self;
        [("thermal", thermal), ("power_cap", power_cap), ("hardware_slowdown", hardware_slowdown)]
    }
}

/// Who has how much of a GPU's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryUse {
    /// What nobody uses.
    pub free_bytes: usize,
    /// What all processes use.
    pub used_bytes: usize,
    /// What this process uses. In containers the driver often doesn't tell.
    pub own_bytes: Option<usize>,
}

impl MemoryUse {
    /// What other processes use, where that is known.
    pub fn others_bytes(&self) -> Option<usize> {
        self.own_bytes.map(|own| self.used_bytes.saturating_sub(own))
    }
}

/// Errors that the driver reports of a GPU by number, whatever caused them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct XidErrors {
    /// All of them.
    pub total: u64,
    /// Those that are not some program's fault.
    pub faults: u64,
    /// The last one's number.
    pub last: Option<u64>,
}

/// Numbers of what a program's mistake, which may be another process's, causes on a GPU in order, by
/// <https://docs.nvidia.com/deploy/xid-errors/> and as NVIDIA's own plugin for Kubernetes has it
/// (`internal/rm/health.go` of github.com/NVIDIA/k8s-device-plugin). If the mistake is ours, batches
/// fail and tell.
const OF_PROGRAMS: [u64; 6] = [
    13,  // an exception in a kernel
    31,  // a page fault
    43,  // a channel that was stopped
    45,  // a channel that was cleaned up, after an earlier error
    68,  // an exception of the video processor
    109, // a switch of contexts that took too long
];

impl XidErrors {
    /// With one more.
    #[must_use]
    pub fn and(self, number: u64) -> Self {
        let fault = u64::from(!OF_PROGRAMS.contains(&number));
        Self { total: self.total + 1, faults: self.faults + fault, last: Some(number) }
    }
}

impl GpuState {
    /// How often, since an `earlier` reading, it has shown that it isn't to be relied on: by an Xid error
    /// that no program caused, or by an error of its memory that could not be corrected.
    pub fn faults_since(&self, earlier: &Self) -> u64 {
        let more = |earlier: Option<u64>, now: Option<u64>| {
            earlier.zip(now).map_or(0, |(earlier, now)| now.saturating_sub(earlier))
        };
        let xid = |state: &Self| state.xid_errors.map(|errors| errors.faults);
        more(xid(earlier), xid(self))
            + more(earlier.ecc_uncorrected_errors, self.ecc_uncorrected_errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(xids: &[u64], ecc: Option<u64>) -> GpuState {
        let xid_errors = xids.iter().fold(XidErrors::default(), |errors, &xid| errors.and(xid));
        let xid_errors = Some(xid_errors);
        GpuState { xid_errors, ecc_uncorrected_errors: ecc, ..GpuState::default() }
    }

    #[test]
    fn mistakes_of_programs_are_counted_and_are_no_faults() {
        let healthy = state(&[], Some(0));
        let misused = state(&[13, 31, 43], Some(0));
        assert_eq!(misused.faults_since(&healthy), 0);
        let errors = misused.xid_errors.unwrap();
        assert_eq!((errors.total, errors.faults, errors.last), (3, 0, Some(43)));
        assert_eq!(state(&[31, 79], Some(0)).faults_since(&healthy), 1, "it fell off the bus");
    }

    #[test]
    fn only_what_is_new_is_a_fault() {
        let old = state(&[48], Some(2));
        assert_eq!(old.faults_since(&old), 0);
        assert_eq!(state(&[48, 48], Some(3)).faults_since(&old), 2);
        assert_eq!(state(&[48], Some(0)).faults_since(&old), 0, "the driver was loaded anew");
        assert_eq!(state(&[48], Some(5)).faults_since(&state(&[48], None)), 0, "since when?");
        assert_eq!(GpuState::default().faults_since(&old), 0);
    }
}
