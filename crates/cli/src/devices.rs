//! `vecmill devices`: the places on this machine that can run batches, the libraries that GPUs need,
//! and what is missing.

use std::io::{self, Write};

use serde::Serialize;
use vecmill_engine::GpuState;
use vecmill_engine::inventory::{self, Found, Library};

use crate::arguments::DevicesArguments;
use crate::failure::Failure;
use crate::stdout;
use crate::units::bytes;

/// What is shown.
#[derive(Debug, Serialize)]
struct Machine {
    devices: Vec<DeviceRow>,
    /// Why no GPU can be used.
    no_gpu: Option<String>,
    libraries: Vec<LibraryRow>,
}

/// One device.
#[derive(Debug, Serialize)]
struct DeviceRow {
    device: String,
    processor: Option<String>,
    details: String,
    memory_bytes: Option<usize>,
    /// What limits it, if that is not the device itself.
    memory_limited_by: Option<String>,
    free_memory_bytes: Option<usize>,
    /// What it says of itself.
    sensors: Option<GpuState>,
}

impl From<Found> for DeviceRow {
    fn from(found: Found) -> Self {
        Self {
            device: found.name.to_string(),
            processor: found.processor,
            details: found.description,
            memory_bytes: found.memory_bytes,
            memory_limited_by: found.memory_limited_by.map(|limiter| limiter.to_string()),
            free_memory_bytes: found.free_memory_bytes,
            sensors: found.state,
        }
    }
}

/// One library.
#[derive(Debug, Serialize)]
struct LibraryRow {
    library: &'static str,
    /// What GPUs need it for.
    purpose: &'static str,
    version: Option<String>,
    file: Option<String>,
    /// Where it was looked for, and how to get it.
    missing: Option<String>,
}

impl From<Library> for LibraryRow {
    fn from(library: Library) -> Self {
        let Library { name: library, purpose, found } = library;
        let (version, file, missing) = match found {
            Ok(found) => (Some(found.version), Some(found.file.display().to_string()), None),
            Err(reason) => (None, None, Some(reason)),
        };
        Self { library, purpose, version, file, missing }
    }
}

/// Lists the devices on standard output.
pub(crate) fn run(arguments: &DevicesArguments) -> Result<(), Failure> {
    let (mut devices, mut no_gpu) = (Vec::new(), None);
    for kind in inventory::devices() {
        match kind.devices {
            Ok(found) => devices.extend(found.into_iter().map(DeviceRow::from)),
            Err(reason) => no_gpu = Some(reason),
        }
    }
    let libraries = inventory::libraries().into_iter().map(LibraryRow::from).collect();
    let found = Machine { devices, no_gpu, libraries };
    stdout::write(|out| {
        if arguments.json {
            serde_json::to_writer_pretty(&mut *out, &found)?;
            writeln!(out)
        } else {
            write_text(out, &found)
        }
    })
}

fn write_text(out: &mut impl Write, found: &Machine) -> io::Result<()> {
    let mut devices = vec![["DEVICE", "PROCESSOR", "DETAILS", "MEMORY"].map(str::to_owned)];
    devices.extend(found.devices.iter().map(|row| {
        let processor = row.processor.clone().unwrap_or_else(|| "unknown".to_owned());
        [row.device.clone(), processor, details(row), memory(row)]
    }));
    write_table(out, &devices)?;
    let mut libraries = vec![["LIBRARY", "VERSION", "FILE"].map(str::to_owned)];
    libraries.extend(found.libraries.iter().map(|row| {
        let text = |text: &Option<String>, none: &str| text.as_deref().unwrap_or(none).to_owned();
        [row.library.to_owned(), text(&row.version, "-"), text(&row.file, "missing")]
    }));
    writeln!(out)?;
    write_table(out, &libraries)?;
    if let Some(reason) = &found.no_gpu {
        return writeln!(out, "\nNo GPU: {reason}.");
    }
    // Without a GPU it makes no difference.
    for missing in found.libraries.iter().filter_map(|row| row.missing.as_ref()) {
        writeln!(out, "\n{missing}.")?;
    }
    Ok(())
}

/// For example `compute capability 9.0, 34 °C, 80 of 700 W`, and what is wrong.
fn details(row: &DeviceRow) -> String {
    let mut details = vec![row.details.clone()];
    let state = row.sensors.clone().unwrap_or_default();
    details.extend(state.temperature_celsius.map(|celsius| format!("{celsius} °C")));
    details.extend(match (state.power_watts, state.power_limit_watts) {
        (Some(watts), Some(limit)) => Some(format!("{watts:.0} of {limit:.0} W")),
        (watts, _) => watts.map(|watts| format!("{watts:.0} W")),
    });
    for (reason, holds) in state.throttling.unwrap_or_default().reasons() {
        details.extend(holds.then(|| format!("throttled: {reason}")));
    }
    let errors = state.ecc_uncorrected_errors.filter(|&errors| errors > 0);
    details.extend(errors.map(|errors| format!("uncorrected memory errors: {errors}")));
    details.join(", ")
}

/// For example `140 GiB, 139 GiB free`, or `700 MiB by the cgroup /sys/fs/cgroup, 650 MiB free`.
fn memory(row: &DeviceRow) -> String {
    let mut memory = row.memory_bytes.map_or_else(|| "unknown".to_owned(), bytes);
    if let Some(limiter) = &row.memory_limited_by {
        memory.push_str(&format!(" by {limiter}"));
    }
    match row.free_memory_bytes {
        Some(free) => format!("{memory}, {} free", bytes(free)),
        None => memory,
    }
}

/// Writes lines with their columns below each other.
fn write_table<const N: usize>(out: &mut impl Write, lines: &[[String; N]]) -> io::Result<()> {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or_default()).collect();
    for line in lines {
        let cells = line.iter().zip(&widths).map(|(text, &width)| format!("{text:width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vecmill_engine::Throttling;

    use super::*;

    fn device(device: &str, memory_bytes: Option<usize>) -> DeviceRow {
        let (device, details) = (device.to_owned(), "2 threads".to_owned());
        let free_memory_bytes = memory_bytes.map(|bytes| bytes / 2);
        DeviceRow {
            device,
            processor: None,
            details,
            memory_bytes,
            memory_limited_by: None,
            free_memory_bytes,
            sensors: None,
        }
    }

    fn library(library: &'static str, version: Option<&str>) -> LibraryRow {
        let missing = version.is_none().then(|| format!("{library} was not found"));
        let (version, file) = (version.map(str::to_owned), version.map(|_| "/lib.so".to_owned()));
        LibraryRow { library, purpose: "", version, file, missing }
    }

    fn text(no_gpu: Option<&str>) -> String {
        let found = Machine {
            devices: vec![device("cpu", Some(3 << 30)), device("a-long-name", None)],
            no_gpu: no_gpu.map(str::to_owned),
            libraries: vec![library("driver", Some("13.0")), library("NVRTC", None)],
        };
        let mut out = Vec::new();
        write_text(&mut out, &found).unwrap();
        String::from_utf8(out).unwrap()
    }

    const TABLES: &str = "DEVICE       PROCESSOR  DETAILS    MEMORY\n\
                          cpu          unknown    2 threads  3.00 GiB, 1.50 GiB free\n\
                          a-long-name  unknown    2 threads  unknown\n\n\
                          LIBRARY  VERSION  FILE\n\
                          driver   13.0     /lib.so\n\
                          NVRTC    -        missing\n\n";

    #[test]
    fn a_device_in_trouble_says_so() {
        let throttling = Some(Throttling { thermal: true, ..Throttling::default() });
        let state = GpuState {
            temperature_celsius: Some(93),
            power_watts: Some(310.4),
            power_limit_watts: Some(700.0),
            throttling,
            ecc_uncorrected_errors: Some(2),
            ..GpuState::default()
        };
        let hot = DeviceRow { sensors: Some(state), ..device("cuda:0", None) };
        let expected = "2 threads, 93 °C, 310 of 700 W, throttled: thermal, \
                        uncorrected memory errors: 2";
        assert_eq!(details(&hot), expected);
        let silent = DeviceRow { sensors: Some(GpuState::default()), ..hot };
        assert_eq!(details(&silent), "2 threads");
    }

    #[test]
    fn a_limit_says_where_it_comes_from() {
        let limited = DeviceRow {
            memory_limited_by: Some("the cgroup /sys/fs/cgroup".to_owned()),
            ..device("cpu", Some(700 << 20))
        };
        assert_eq!(memory(&limited), "700 MiB by the cgroup /sys/fs/cgroup, 350 MiB free");
    }

    #[test]
    fn columns_are_aligned_and_what_is_missing_is_said() {
        assert_eq!(text(None), format!("{TABLES}NVRTC was not found.\n"));
        assert_eq!(text(Some("there is none")), format!("{TABLES}No GPU: there is none.\n"));
    }
}
