//! Scales, and the marks that make them readable.

use super::{Anchor, Area, FAINT, Font, INK, SMALL, Svg};
use crate::units::{GIB, MIB};

/// Maps values to a side of an area.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    low: f64,
    high: f64,
    at_low: f64,
    at_high: f64,
}

impl Scale {
    /// A scale along the lower edge of `area`.
    pub fn across(area: Area, low: f64, high: f64) -> Self {
        Self { low, high, at_low: area.x, at_high: area.right() }
    }

    /// A scale up the left edge of `area`, from 0.
    pub fn up(area: Area, high: f64) -> Self {
        Self { low: 0.0, high, at_low: area.bottom(), at_high: area.y }
    }

    /// Where `value` is.
    pub fn at(&self, value: f64) -> f64 {
        let part = (value - self.low) / (self.high - self.low).max(f64::MIN_POSITIVE);
        self.at_low + part.clamp(0.0, 1.0) * (self.at_high - self.at_low)
    }
}

/// Marks on a scale, at multiples of a step.
#[derive(Debug, Clone, Copy)]
pub struct Marks {
    step: f64,
    unit: f64,
    name: &'static str,
}

impl Marks {
    /// Marks for bytes from 0 to `high`: about five, at round numbers of MiB or GiB.
    pub fn bytes(high: f64) -> Self {
        let (unit, name) = if high >= 2.0 * GIB { (GIB, "GiB") } else { (MIB, "MiB") };
        let mut step = MIB;
        while high / step > 6.0 {
            step *= 2.0;
        }
        Self { step, unit, name }
    }

    /// Marks for a time of `nanoseconds`: about `wanted`, at round numbers of a unit that suits it.
    pub fn time(nanoseconds: f64, wanted: f64) -> Self {
        let units = [
            (3.6e12, "hours"),
            (60e9, "minutes"),
            (1e9, "seconds"),
            (1e6, "milliseconds"),
            (1e3, "microseconds"),
        ];
        let suits = units.into_iter().find(|(unit, _)| nanoseconds >= 2.0 * unit);
        let (unit, name) = suits.unwrap_or((1.0, "nanoseconds"));
        Self { step: round_step(nanoseconds / unit / wanted) * unit, unit, name }
    }

    /// Marks from 0 to `high`: about `wanted`, at round numbers of `unit`.
    pub fn numbers(high: f64, wanted: f64, unit: &'static str) -> Self {
        Self { step: round_step(high / wanted), unit: 1.0, name: unit }
    }

    /// What the marks count.
    pub fn unit(&self) -> &'static str {
        self.name
    }

    /// The first multiple of the step at or above `value`.
    pub fn above(&self, value: f64) -> f64 {
        (value / self.step - 1e-9).ceil() * self.step
    }

    /// Each mark from `low` to `high` with its label.
    fn labels(self, low: f64, high: f64) -> impl Iterator<Item = (f64, String)> {
        let first = (low / self.step - 1e-9).ceil();
        let digits = if self.step >= self.unit { 0 } else { decimals(self.step / self.unit) };
        (0..100)
            .map(move |index| (first + f64::from(index)) * self.step)
            .take_while(move |value| *value <= high + self.step * 1e-9)
            .map(move |value| (value, format!("{:.digits$}", value / self.unit)))
    }
}

/// A scale up the left edge of an area that has as much room for each power of ten.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decades {
    low: f64,
    high: f64,
}

impl Decades {
    /// The powers of ten around values.
    pub fn around(values: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| *value > 0.0) {
            low = low.min(value.log10().floor());
            high = high.max(value.log10().ceil());
        }
        if low < high { Self { low, high } } else { Self { low: 0.0, high: 1.0 } }
    }

    /// How high `value` is in `area`.
    pub fn at(&self, area: Area, value: f64) -> f64 {
        Scale::up(area, self.high - self.low).at(value.max(1e-6).log10() - self.low)
    }

    /// Draws lines across `area` at 1, 2 and 5 of each power of ten, with labels to its left.
    pub fn draw_left(&self, svg: &mut Svg, area: Area, unit: &str) {
        let mut power = self.low;
        while power <= self.high {
            for step in [1.0f64, 2.0, 5.0] {
                let at = power + step.log10();
                if at > self.high + 1e-9 {
                    break;
                }
                let value = step * 10f64.powf(power);
                let y = self.at(area, value);
                svg.line((area.x, y), (area.right(), y), FAINT, false);
                if step == 1.0 || self.high - self.low <= 3.0 {
                    svg.text((area.x - 8.0, y + 4.0), Anchor::End, SMALL, &format!("{value}"));
                }
            }
            power += 1.0;
        }
        let font = Font { colour: INK, ..SMALL };
        svg.text((area.x - 8.0, area.y - 10.0), Anchor::End, font, unit);
    }
}

/// The next of 1, 2, 5, 10, … at or above `exact`.
fn round_step(exact: f64) -> f64 {
    let exact = exact.max(f64::MIN_POSITIVE);
    let power = 10f64.powf(exact.log10().floor());
    let round = [1.0, 2.0, 5.0].into_iter().find(|round| round * power >= exact);
    round.unwrap_or(10.0) * power
}

/// How many decimals tell multiples of `step` apart.
fn decimals(step: f64) -> usize {
    (0..6)
        .find(|&digits| {
            let scaled = step * 10f64.powi(digits);
            (scaled - scaled.round()).abs() < 1e-6
        })
        .and_then(|digits| usize::try_from(digits).ok())
        .unwrap_or(6)
}

/// Draws lines across `area` at each mark, with labels to its left.
pub fn draw_left(svg: &mut Svg, area: Area, marks: Marks, high: f64) {
    let scale = Scale::up(area, high);
    for (value, label) in marks.labels(0.0, high) {
        let y = scale.at(value);
        svg.line((area.x, y), (area.right(), y), FAINT, false);
        svg.text((area.x - 8.0, y + 4.0), Anchor::End, SMALL, &label);
    }
    let font = Font { colour: INK, ..SMALL };
    svg.text((area.x - 8.0, area.y - 10.0), Anchor::End, font, marks.unit());
}

/// Draws an axis below `area`.
pub fn draw_below(svg: &mut Svg, area: Area, marks: Marks, low: f64, high: f64) {
    let scale = Scale::across(area, low, high);
    svg.line((area.x, area.bottom()), (area.right(), area.bottom()), INK, false);
    for (value, label) in marks.labels(low, high) {
        let x = scale.at(value);
        svg.line((x, area.bottom()), (x, area.bottom() + 4.0), INK, false);
        svg.text((x, area.bottom() + 17.0), Anchor::Middle, SMALL, &label);
    }
    let middle = area.x + area.width / 2.0;
    svg.text((middle, area.bottom() + 33.0), Anchor::Middle, SMALL, marks.unit());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(marks: Marks, low: f64, high: f64) -> Vec<String> {
        marks.labels(low, high).map(|(_, label)| label).collect()
    }

    #[test]
    fn marks_are_round_and_few() {
        assert_eq!(
            labels(Marks::bytes(1.5 * GIB), 0.0, 1.5 * GIB),
            ["0", "256", "512", "768", "1024", "1280", "1536"]
        );
        assert_eq!(
            labels(Marks::bytes(2.0 * GIB), 0.0, 2.0 * GIB),
            ["0.0", "0.5", "1.0", "1.5", "2.0"]
        );
        assert_eq!(
            labels(Marks::time(60e9, 6.0), 0.0, 60e9),
            ["0", "10", "20", "30", "40", "50", "60"]
        );
        assert_eq!(labels(Marks::time(2.4e9, 6.0), 1e9, 2.4e9), ["1.0", "1.5", "2.0"]);
        for exponent in 0..19 {
            let time = 3.7 * 10f64.powi(exponent);
            let marks = labels(Marks::time(time, 6.0), 0.0, time);
            assert!((3..=8).contains(&marks.len()), "{time}: {marks:?}");
        }
    }

    #[test]
    fn nothing_to_show_has_a_scale_too() {
        assert_eq!(labels(Marks::bytes(0.0), 0.0, 0.0), ["0"]);
        let area = Area { x: 0.0, y: 0.0, width: 10.0, height: 10.0 };
        assert!(Scale::across(area, 0.0, 0.0).at(0.0).is_finite());
        assert!(!labels(Marks::time(0.0, 6.0), 0.0, 0.0).is_empty());
    }

    #[test]
    fn decades_hold_all_values_and_are_never_empty() {
        let around = |values: &[f64]| {
            let Decades { low, high } = Decades::around(values.iter().copied());
            (low, high)
        };
        assert_eq!(around(&[0.5, 30.0]), (-1.0, 2.0));
        for values in [[3.0, 3.0], [1.0, 1.0], [0.0, 0.0]] {
            assert_eq!(around(&values), (0.0, 1.0));
        }
    }
}
