//! Bytes and times as people read them.

use std::time::Duration;

const KIB: f64 = 1024.0;
/// Bytes of a mebibyte.
pub const MIB: f64 = KIB * KIB;
/// Bytes of a gibibyte.
pub const GIB: f64 = MIB * KIB;

/// `bytes` with three digits or so, for example `812 MiB`.
pub fn bytes(bytes: f64) -> String {
    let (value, unit) = match bytes {
        _ if bytes >= GIB => (bytes / GIB, "GiB"),
        _ if bytes >= MIB => (bytes / MIB, "MiB"),
        _ if bytes >= KIB => (bytes / KIB, "KiB"),
        _ => return format!("{bytes:.0} B"),
    };
    format!("{} {unit}", three_digits(value))
}

/// A duration with three digits or so, for example `1.25 µs`.
pub fn time(duration: Duration) -> String {
    let nanoseconds = duration.as_secs_f64() * 1e9;
    let (value, unit) = match nanoseconds {
        _ if nanoseconds >= 1e9 => (nanoseconds / 1e9, "s"),
        _ if nanoseconds >= 1e6 => (nanoseconds / 1e6, "ms"),
        _ if nanoseconds >= 1e3 => (nanoseconds / 1e3, "µs"),
        _ => return format!("{nanoseconds:.0} ns"),
    };
    format!("{} {unit}", three_digits(value))
}

/// A part of a whole, from 0 to 1, for example `12.5 %`.
pub fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

/// A number with its thousands set apart.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn three_digits(value: f64) -> String {
    match value {
        _ if value >= 100.0 => format!("{value:.0}"),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_suit_what_they_measure() {
        assert_eq!(bytes(0.0), "0 B");
        assert_eq!(bytes(1536.0), "1.50 KiB");
        assert_eq!(bytes(812.0 * MIB), "812 MiB");
        assert_eq!(bytes(12.25 * GIB), "12.2 GiB");
        assert_eq!(time(Duration::from_nanos(87)), "87 ns");
        assert_eq!(time(Duration::from_nanos(1250)), "1.25 µs");
        assert_eq!(time(Duration::from_secs(90)), "90.0 s");
        assert_eq!(percent(0.125), "12.5 %");
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }
}
