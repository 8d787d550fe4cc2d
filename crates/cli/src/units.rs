//! Numbers for people.

/// `bytes` with three digits, for example `812 MiB`.
pub(crate) fn bytes(bytes: usize) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.into_iter();
    let mut unit = units.next().unwrap_or_default();
    // 1023.5 would be rounded to 1024.
    while value >= 1023.5
        && let Some(larger) = units.next()
    {
        value /= 1024.0;
        unit = larger;
    }
    let decimals = match value {
        _ if value >= 99.95 => 0,
        _ if value >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$} {unit}")
}

/// A part of a whole, for example `12.5 %`.
pub(crate) fn percent(part: usize, whole: usize) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

/// The smallest whole number of MiB with so many bytes, as flags take it.
pub(crate) fn enough(bytes: usize) -> String {
    format!("{}MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (size, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.50 KiB"),
            (1 << 20, "1.00 MiB"),
            ((1 << 20) - 1, "1.00 MiB"),
            (43_300 << 10, "42.3 MiB"),
            ((10 << 20) - 1, "10.0 MiB"),
            ((100 << 20) - 1, "100 MiB"),
            (999 << 20, "999 MiB"),
            (8 << 30, "8.00 GiB"),
            (5000 << 40, "5000 TiB"),
        ] {
            assert_eq!(bytes(size), expected);
        }
    }

    #[test]
    fn parts_and_whole_mebibytes() {
        assert_eq!(percent(1, 8), "12.5 %");
        assert_eq!(percent(0, 0), "0.0 %");
        assert_eq!(enough(1), "1MiB");
        assert_eq!(enough(3 << 20), "3MiB");
    }
}
