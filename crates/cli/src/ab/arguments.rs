//! The command line of `vecmill ab`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueHint};

use crate::settings::time::duration;
use crate::settings::{EmbedSettings, Flags};

macro_rules! examples {
    () => {
        "\
Examples:
  vecmill ab --policies round-robin,earliest-finish --device cpu,cuda:0
  vecmill ab --policies round-robin,earliest-finish --device cuda:0/sms=16,cuda:0/sms=96 \\
    --load 0.95 --interference --html report.html
  vecmill ab --policies weighted,earliest-finish --slo 100ms --find-max
  vecmill ab --policies round-robin,earliest-finish --bulk 20000
  vecmill ab --rate 200 --seconds 60 --write-trace requests.csv
  vecmill ab --policies least-loaded,earliest-finish --trace requests.csv --json figures.json"
    };
}

const AFTER: &str = concat!(
    examples!(),
    "

The model is loaded once. The policies take turns on it (A B B A A B …), each pass with requests that \
are sent when they are due, whatever comes back; latency counts from then. All policies get the same \
requests. What can be said of a difference is in its 95 % interval: where that holds 1, none was shown.

Passes start empty and warm up; what is due in that time is sent but not counted. Requests that get no \
answer within --drain of a pass's end count as taking as long.

Made requests arrive by Poisson; lengths are lognormal with a median of 40 tokens. A trace is CSV with \
a line for each request, the tokens of its inputs behind the second at which it is due:

  seconds,tokens
  0.000000,38
  0.012500,12 40 7

Parts of one GPU (cuda:0/sms=32) emulate unequal devices: they share memory bandwidth, caches, copy \
engines and clocks. --interference says how much that takes from each.

Settings come from flags, variables and the file as for 'vecmill serve'."
);

/// Arguments of `vecmill ab`.
#[derive(Debug, Args)]
#[command(after_help = examples!(), after_long_help = AFTER)]
pub(crate) struct AbArguments {
    /// Policies to compare, by name; the first is what the others are compared with
    #[arg(
        long,
        value_name = "A,B",
        value_delimiter = ',',
        help_heading = "Comparison",
        required_unless_present = "write_trace"
    )]
    pub(crate) policies: Vec<String>,
    /// Passes of each policy; 5 or more to conclude from
    #[arg(long, value_name = "N", default_value_t = 5, help_heading = "Comparison")]
    pub(crate) repeats: usize,
    /// Latency that the 99th percentile must keep, such as 100ms or 1.5s
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = "Comparison")]
    pub(crate) slo: Option<Duration>,
    /// Look for the highest load at which each policy keeps --slo, too: 6 more passes for each one
    #[arg(long, requires = "slo", help_heading = "Comparison")]
    pub(crate) find_max: bool,
    /// Measure each device alone, too, and say what the others take from it
    #[arg(long, help_heading = "Comparison")]
    pub(crate) interference: bool,

    /// Part of what the devices can do, which is measured first [default: 0.8]
    #[arg(long, value_name = "PART", conflicts_with_all = ["rate", "bulk"], help_heading = "Load")]
    pub(crate) load: Option<f64>,
    /// Requests per second
    #[arg(long, value_name = "N", conflicts_with = "bulk", help_heading = "Load")]
    pub(crate) rate: Option<f64>,
    /// So many requests at once, to measure how long all take
    #[arg(long, value_name = "N", conflicts_with_all = ["trace", "find_max"], help_heading = "Load")]
    pub(crate) bulk: Option<usize>,
    /// File with the requests and their times; --rate or --load stretches these
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Load")]
    pub(crate) trace: Option<PathBuf>,
    /// Write the requests of --rate to a file for --trace, and do nothing else
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "rate",
        conflicts_with = "trace", help_heading = "Load")]
    pub(crate) write_trace: Option<PathBuf>,
    /// Seconds of a pass that count; a trace has its own
    #[arg(long, value_name = "N", default_value_t = 10.0, help_heading = "Load")]
    pub(crate) seconds: f64,
    /// Seconds of a pass before that, which are dropped
    #[arg(long, value_name = "N", default_value_t = 2.0, help_heading = "Load")]
    pub(crate) settle: f64,
    /// How long answers may take beyond a pass's end
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "10s", help_heading = "Load")]
    pub(crate) drain: Duration,
    /// Part of the requests that have 32 inputs; the others have one
    #[arg(long, value_name = "PART", default_value_t = 0.1, help_heading = "Load")]
    pub(crate) large: f64,
    /// Most tokens of an input; the model's limit if that is less
    #[arg(long, value_name = "N", default_value_t = 512, help_heading = "Load")]
    pub(crate) longest: usize,
    /// The same seed makes the same requests
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Load")]
    pub(crate) seed: u64,

    /// Write a page with plots to this file as well
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Output")]
    pub(crate) html: Option<PathBuf>,
    /// Write all figures to this file as well
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Output")]
    pub(crate) json: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) flags: Flags<EmbedSettings>,
}

/// A time above 0.
fn time(text: &str) -> Result<Duration, String> {
    let time = duration(text).filter(|time| !time.is_zero());
    time.ok_or_else(|| "expected a time above 0 such as 100ms or 1.5s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(time("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(time("1.5s"), Ok(Duration::from_millis(1500)));
        for wrong in ["100", "0s", "-1s", "s", "NaNs", "1e300s", ""] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
