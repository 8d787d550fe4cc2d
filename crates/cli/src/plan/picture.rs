//! A bar that is divided as a budget is.

/// Characters in a bar.
const WIDTH: usize = 64;

/// One part of a budget.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// What it is drawn with.
    pub(super) mark: char,
    /// Its size.
    pub(super) bytes: usize,
}

/// The parts behind each other, as long as they are large. One that is not empty is always seen, and
/// what rounding leaves over is the largest one's.
pub(super) fn bar(parts: &[Part]) -> String {
    let whole: u128 = parts.iter().map(|part| part.bytes as u128).sum();
    let width = |part: &Part| match part.bytes {
        0 => 0,
        bytes => (bytes as u128 * WIDTH as u128 / whole).max(1) as usize,
    };
    let mut widths: Vec<usize> = parts.iter().map(width).collect();
    let largest = (0..parts.len()).max_by_key(|&index| parts[index].bytes);
    if let Some(largest) = largest.filter(|_| whole > 0) {
        let others: usize = widths.iter().sum::<usize>() - widths[largest];
        widths[largest] = WIDTH.saturating_sub(others);
    }
    let drawn = parts.iter().zip(widths);
    drawn.map(|(part, width)| part.mark.to_string().repeat(width)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widths(bytes: [usize; 3]) -> [usize; 3] {
        let parts = ['a', 'b', 'c'].into_iter().zip(bytes);
        let bar = bar(&parts.map(|(mark, bytes)| Part { mark, bytes }).collect::<Vec<_>>());
        let order: String =
            ['a', 'b', 'c'].into_iter().filter(|&mark| bar.contains(mark)).collect();
        let mut seen: Vec<char> = bar.chars().collect();
        seen.dedup();
        assert_eq!(seen.into_iter().collect::<String>(), order, "parts keep together");
        ['a', 'b', 'c'].map(|mark| bar.chars().filter(|&drawn| drawn == mark).count())
    }

    #[test]
    fn parts_are_as_long_as_they_are_large() {
        assert_eq!(widths([1, 2, 1]), [16, 32, 16]);
        assert_eq!(widths([0, 7, 0]), [0, 64, 0]);
        assert_eq!(widths([0, 0, 0]), [0, 0, 0]);
        assert_eq!(widths([1, 1, 1]).iter().sum::<usize>(), 64);
    }

    #[test]
    fn small_parts_are_seen() {
        assert_eq!(widths([1, 1 << 40, 1]), [1, 62, 1]);
        assert_eq!(widths([1 << 40, 1, 0]), [63, 1, 0]);
    }
}
