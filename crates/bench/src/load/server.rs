//! What the server says of itself, at the start and the end of a measurement: where the time of a
//! request goes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;

use serde::Serialize;

/// Ticks per second of the times in `/proc`; the same on every Linux.
const TICKS: f64 = 100.0;

/// Sums and counts of the server's histograms, by name and labels.
#[derive(Debug, Clone, Default)]
pub(super) struct Metrics(BTreeMap<String, (f64, f64)>);

/// What became of one histogram during a measurement.
#[derive(Debug, Serialize)]
pub(super) struct Stage {
    pub(super) what: String,
    pub(super) count: f64,
    pub(super) mean: f64,
    /// What was added to the sum per second: of durations, how many ran at once on average.
    pub(super) per_second: f64,
}

impl Metrics {
    /// As the server tells them now; nothing if it does not.
    pub(super) fn fetch(host: &str) -> Self {
        read_metrics(host).map(|text| Self::parse(&text)).unwrap_or_default()
    }

    fn parse(text: &str) -> Self {
        let mut all = BTreeMap::<String, (f64, f64)>::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse() else { continue };
            let (name, labels) = series.split_at(series.find('{').unwrap_or(series.len()));
            if let Some(name) = name.strip_suffix("_sum") {
                all.entry(format!("{name}{labels}")).or_default().0 = value;
            } else if let Some(name) = name.strip_suffix("_count") {
                all.entry(format!("{name}{labels}")).or_default().1 = value;
            }
        }
        Self(all)
    }

    /// What happened from `before` to this.
    pub(super) fn since(&self, before: &Self, seconds: f64) -> Vec<Stage> {
        let stage = |(what, (sum, count)): (&String, &(f64, f64))| {
            let (old_sum, old_count) = before.0.get(what).copied().unwrap_or_default();
            let (sum, count) = (sum - old_sum, count - old_count);
            let per_second = sum / seconds;
            (count > 0.0).then(|| Stage {
                what: what.clone(),
                count,
                mean: sum / count,
                per_second,
            })
        };
        self.0.iter().filter_map(stage).collect()
    }
}

fn read_metrics(host: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(host)?;
    write!(stream, "GET /metrics HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Seconds of processor time that a process has used; `None` where the system does not tell.
pub(crate) fn processor_seconds(process: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Behind the program's name, which may contain anything: state is field 3, user and system time
    // are 14 and 15.
    let (_, fields) = text.rsplit_once(')')?;
    let ticks = |field: usize| -> Option<f64> {
        fields.split_ascii_whitespace().nth(field - 3)?.parse().ok()
    };
    Some((ticks(14)? + ticks(15)?) / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_what_was_added_between_two_looks() {
        let look = |sum: f64, count: u32| {
            Metrics::parse(&format!(
                "# HELP x\nx_seconds_sum{{device=\"cpu 0\"}} {sum}\n\
                 x_seconds_count{{device=\"cpu 0\"}} {count}\nx_bucket{{le=\"1\"}} 3\ny_sum 1\n"
            ))
        };
        let stages = look(7.0, 12).since(&look(1.0, 2), 2.0);
        assert_eq!(stages.len(), 1);
        assert_eq!(stages[0].what, "x_seconds{device=\"cpu 0\"}");
        assert_eq!((stages[0].mean, stages[0].per_second), (0.6, 3.0));
    }

    #[test]
    fn a_process_knows_its_own_time() {
        assert!(processor_seconds("self").is_some_and(|seconds| seconds < 1000.0));
    }
}
