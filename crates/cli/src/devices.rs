//! `vecmill devices`: the places on this machine that can run batches.

use std::io::{self, Write, stdout};

use serde::Serialize;

use crate::arguments::DevicesArguments;
use crate::failure::Failure;
use vecmill_engine::machine;

/// One device as it is shown.
#[derive(Debug, Serialize)]
struct Row {
    device: String,
    processor: Option<String>,
    details: String,
    memory_bytes: Option<usize>,
}

/// Lists the devices on standard output.
pub(crate) fn run(arguments: &DevicesArguments) -> Result<(), Failure> {
    let rows: Vec<Row> = machine::devices()
        .into_iter()
        .map(|device| {
            let is_cpu = device.name == "cpu";
            Row {
                processor: machine::processor().filter(|_| is_cpu),
                memory_bytes: machine::memory_bytes().filter(|_| is_cpu),
                device: device.name,
                details: device.description,
            }
        })
        .collect();
    let mut out = io::BufWriter::new(stdout().lock());
    let written = if arguments.json {
        serde_json::to_writer_pretty(&mut out, &rows)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        write_table(&mut out, &rows)
    };
    written.and_then(|()| out.flush()).map_err(Failure::Stdout)
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
        write_table(&mut out, &[row("cpu", Some(3 << 29)), row("a-long-name", None)]).unwrap();
        let expected = "DEVICE       PROCESSOR  DETAILS    MEMORY\n\
                        cpu          unknown    2 threads  1.5 GiB\n\
                        a-long-name  unknown    2 threads  unknown\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
