//! The types of settings about time.

use std::time::Duration;

use vecmill_engine::GiveBack;

use crate::settings::value::Value;

/// Longer than this is as good as never.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// A number with a unit: `50ms`, `1.5s`, `5m` or `5 min`, `1h`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(digits);
    let seconds = match unit.trim_start() {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()
}

/// When unused memory is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GiveBackAfter(pub(crate) GiveBack);

impl Value for GiveBackAfter {
    const PLACEHOLDER: &'static str = "TIME";
    const EXPECTED: &'static str = "a time from 1s to 24h such as 60s or 5m, or never";

    fn parse(text: &str) -> Option<Self> {
        if text == "never" {
            return Some(Self(GiveBack::Never));
        }
        Window::parse(text).map(|time| Self(GiveBack::After(time.0)))
    }
}

/// How long something goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window(pub(crate) Duration);

impl Value for Window {
    const PLACEHOLDER: &'static str = "TIME";
    const EXPECTED: &'static str = "a time from 1s to 24h such as 60s or 5m";

    fn parse(text: &str) -> Option<Self> {
        let usable = |time: &Duration| (Duration::from_secs(1)..=LONGEST).contains(time);
        duration(text).filter(usable).map(Self)
    }
}

/// How long to wait for an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grace(pub(crate) Duration);

impl Value for Grace {
    const PLACEHOLDER: &'static str = "TIME";
    const EXPECTED: &'static str = "a time from 0s to 24h such as 30s or 5m";

    fn parse(text: &str) -> Option<Self> {
        duration(text).filter(|time| *time <= LONGEST).map(Self)
    }
}

/// How long something may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Latency(pub(crate) Duration);

impl Value for Latency {
    const PLACEHOLDER: &'static str = "TIME";
    const EXPECTED: &'static str = "a time from 1ms to 60s such as 50ms or 1s";

    fn parse(text: &str) -> Option<Self> {
        let usable =
            |time: &Duration| (Duration::from_millis(1)..=Duration::from_secs(60)).contains(time);
        duration(text).filter(usable).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_after_a_time_or_never() {
        let seconds = |text| match GiveBackAfter::parse(text)?.0 {
            GiveBack::After(time) => Some(time.as_secs()),
            GiveBack::Never => Some(u64::MAX),
        };
        for (text, expected) in [
            ("60s", 60),
            ("5m", 300),
            ("90 min", 5400),
            ("1.5h", 5400),
            ("24h", 86_400),
            ("1s", 1),
            ("never", u64::MAX),
        ] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for wrong in
            ["", "60", "0s", "s", "-1s", "1.5.1h", ".s", "25h", "2d", "Never", "99999999999999h"]
        {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_end_may_come_at_once() {
        let seconds = |text| Some(Grace::parse(text)?.0.as_secs());
        for (text, expected) in [("0s", 0), ("30s", 30), ("5m", 300), ("24h", 86_400)] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for wrong in ["", "0", "30", "-1s", "25h", "never"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn latencies_are_of_milliseconds_to_a_minute() {
        let milliseconds = |text| Some(Latency::parse(text)?.0.as_millis());
        assert_eq!(milliseconds("50ms"), Some(50));
        assert_eq!(milliseconds("1 s"), Some(1000));
        assert_eq!(milliseconds("1.5s"), Some(1500));
        for wrong in ["0ms", "50", "61s", "2m", "ms", "5us"] {
            assert_eq!(milliseconds(wrong), None, "{wrong}");
        }
    }
}
