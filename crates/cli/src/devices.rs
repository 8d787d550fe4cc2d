//! `vecmill devices`: the places on this machine that can run batches, or why there is no GPU.

use std::io::{self, Write, stdout};

use serde::Serialize;
use vecmill_engine::machine::{self, Found};

use crate::arguments::DevicesArguments;
use crate::failure::Failure;

/// What is shown.
#[derive(Debug, Serialize)]
struct Devices {
    devices: Vec<Row>,
    /// Why no GPU can be used.
    no_gpu: Option<String>,
}

/// One device.
#[derive(Debug, Serialize)]
struct Row {
    device: String,
    processor: Option<String>,
    details: String,
    memory_bytes: Option<usize>,
}

impl From<Found> for Row {
    fn from(found: Found) -> Self {
        let Found { name, description, processor, memory_bytes } = found;
        Self { device: name, processor, details: description, memory_bytes }
    }
}

/// Lists the devices on standard output.
pub(crate) fn run(arguments: &DevicesArguments) -> Result<(), Failure> {
    let (cpu, gpus) = machine::devices();
    let (gpus, no_gpu) = match gpus {
        Ok(gpus) => (gpus, None),
        Err(reason) => (Vec::new(), Some(reason)),
    };
    let devices = [cpu].into_iter().chain(gpus).map(Row::from).collect();
    let found = Devices { devices, no_gpu };
    let mut out = io::BufWriter::new(stdout().lock());
    let written = if arguments.json {
        serde_json::to_writer_pretty(&mut out, &found)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        write_text(&mut out, &found)
    };
    written.and_then(|()| out.flush()).map_err(Failure::Stdout)
}

fn write_text(out: &mut impl Write, found: &Devices) -> io::Result<()> {
    write_table(out, &found.devices)?;
    match &found.no_gpu {
        Some(reason) => writeln!(out, "\nNo GPU: {reason}."),
        None => Ok(()),
    }
}

fn write_table(out: &mut impl Write, rows: &[Row]) -> io::Result<()> {
    let unknown = || "unknown".to_owned();
    let gibibytes = |bytes: usize| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    let mut lines = vec![["DEVICE", "PROCESSOR", "DETAILS", "MEMORY"].map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        let processor = row.processor.clone().unwrap_or_else(unknown);
        let memory = row.memory_bytes.map_or_else(unknown, gibibytes);
        [row.device.clone(), processor, row.details.clone(), memory]
    }));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..4).map(|column| width(column).unwrap_or_default()).collect();
    for line in &lines {
        let [device, processor, details, memory] = line;
        let [first, second, third] = [widths[0], widths[1], widths[2]];
        writeln!(out, "{device:first$}  {processor:second$}  {details:third$}  {memory}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let row = |device: &str, memory_bytes| Row {
            device: device.to_owned(),
            processor: None,
            details: "2 threads".to_owned(),
            memory_bytes,
        };
        let mut out = Vec::new();
        let devices = vec![row("cpu", Some(3 << 29)), row("a-long-name", None)];
        let no_gpu = Some("there is none".to_owned());
        write_text(&mut out, &Devices { devices, no_gpu }).unwrap();
        let expected = "DEVICE       PROCESSOR  DETAILS    MEMORY\n\
                        cpu          unknown    2 threads  1.5 GiB\n\
                        a-long-name  unknown    2 threads  unknown\n\n\
                        No GPU: there is none.\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
