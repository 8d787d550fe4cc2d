//! A report as one HTML page that needs nothing else.
//!
//! The plots have the colours of a light page; on a dark one the style sheet exchanges those of text
//! and lines, and the one of the arms' and devices' that is too dark.

use std::fmt::Write;

use super::metric::{EFFICIENCY, MAKESPAN, Metric, P99, SPREAD, THROUGHPUT, WAITING};
use super::plots;
use super::report::{Report, Verdict};
use super::table::{heading, line};
use crate::results::number;
use crate::svg::escape;
use crate::svg::{COLOURS, FAINT, INK, MUTED};

const STYLE: &str = "
:root { color-scheme: light dark; --back: #ffffff; --card: #f7f8fa; --ink: #22272e; --muted: #57606a; --faint: #e7eaee;
  --good: #00704e; --bad: #b3261e; --blue: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --back: #14181d; --card: #1c2229; --ink: #e6edf3; --muted: #a3adb8;
  --faint: #343c46; --good: #4cc9a0; --bad: #ff8a80; --blue: #4fa8e0; } }
body { margin: 0 auto; max-width: 1180px; padding: 24px; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 32px 0 8px; }
p { margin: 4px 0; } .muted, li { color: var(--muted); } code { overflow-wrap: anywhere; }
.verdict { font-size: 16px; background: var(--card); border-left: 4px solid var(--muted); padding: 8px 14px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--faint); white-space: nowrap; }
.better { color: var(--good); font-weight: bold; } .worse { color: var(--bad); font-weight: bold; }
.plots { display: flex; flex-wrap: wrap; gap: 12px; } .plots svg { max-width: 100%; height: auto; }
";

impl Report {
    /// The report as an HTML page, plots included.
    pub fn html(&self) -> String {
        let mut page = String::new();
        // Writing to a string does not fail.
        let _ = write!(
            page,
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>vecmill ab: {}</title>\n\
             <style>{STYLE}{}</style>\n</head>\n<body>\n",
            escape(&self.experiment.policies.join(", ")),
            repaint(),
        );
        self.write_head(&mut page);
        self.write_comparison(&mut page);
        self.write_devices(&mut page);
        page.push_str("<h2>Plots</h2>\n<div class=\"plots\">\n");
        for plot in self.plots() {
            page.push_str(&plot);
        }
        page.push_str("</div>\n</body>\n</html>\n");
        page
    }

    fn write_head(&self, page: &mut String) {
        let origin = self.origin();
        let _ = writeln!(page, "<h1>{}</h1>", escape(&self.experiment.policies.join(" or ")));
        let processor = origin.processor.unwrap_or_default();
        for text in [
            format!("{} on {}", self.info.model_id, self.devices()),
            format!("Load: {}", self.load()),
            format!("{}, {processor}", date(origin.unix_seconds)),
        ] {
            let _ = writeln!(page, "<p class=\"muted\">{}</p>", escape(&text));
        }
        let _ = writeln!(page, "<p class=\"muted\"><code>{}</code></p>", escape(&origin.command));
        for verdict in self.verdicts() {
            let _ = writeln!(page, "<p class=\"verdict\">{}</p>", escape(&verdict));
        }
        let _ = writeln!(page, "<ul>");
        for note in self.notes() {
            let _ = writeln!(page, "<li>{}</li>", escape(&note));
        }
        let _ = writeln!(page, "</ul>");
    }

    fn write_comparison(&self, page: &mut String) {
        let _ = writeln!(page, "<h2>Comparison</h2>\n<div class=\"wide\"><table>");
        row(page, "th", heading(&self.experiment.policies).iter().map(|cell| (cell.as_str(), "")));
        for of in self.rows() {
            let cells = line(&of);
            // The ratios' classes are those of the verdicts behind them.
            let plain = 1 + of.means.len();
            let verdicts = of.verdicts.iter().flat_map(|verdict| {
                let class = match verdict {
                    Verdict::Better => "better",
                    Verdict::Worse => "worse",
                    _ => "",
                };
                ["", class]
            });
            let classes = std::iter::repeat_n("", plain).chain(verdicts);
            row(page, "td", cells.iter().map(String::as_str).zip(classes));
        }
        let _ = writeln!(page, "</table></div>");
    }

    fn write_devices(&self, page: &mut String) {
        let Some(capacity) = &self.capacity else { return };
        let _ =
            writeln!(page, "<h2>Devices that never have to wait</h2>\n<div class=\"wide\"><table>");
        let mut heads = vec!["device", "tokens/s", "busy share (%)", "own speed (tokens/s)"];
        if !self.interference.is_empty() {
            heads.extend(["own speed alone (tokens/s)", "left of it beside the others"]);
        }
        row(page, "th", heads.into_iter().map(|cell| (cell, "")));
        for (index, device) in capacity.devices.iter().enumerate() {
            let mut cells = vec![
                device.name.clone(),
                number(device.tokens_per_second),
                number(device.busy_share * 100.0),
                number(device.own_speed),
            ];
            if let Some(beside) = self.interference.get(index) {
                cells.extend([number(beside.alone), number(beside.factor)]);
            }
            row(page, "td", cells.iter().map(|cell| (cell.as_str(), "")));
        }
        let _ = writeln!(page, "</table></div>");
    }

    fn plots(&self) -> Vec<String> {
        let policies = &self.experiment.policies;
        let dots = |title: &str, metric: Metric| {
            let arms: Vec<Vec<f64>> =
                policies.iter().map(|policy| self.values(metric, policy)).collect();
            plots::dots(title, metric.unit, policies, &arms)
        };
        let mut all = vec![dots("Throughput of each pass", THROUGHPUT)];
        if self.is_bulk() {
            all.push(dots("Makespan of each pass", MAKESPAN));
            let efficiency = Metric { unit: "%", ..EFFICIENCY };
            all.push(dots("Throughput relative to the sum of the devices' own speeds", efficiency));
        } else {
            all.push(dots("Mean waiting for a device in each pass", WAITING));
            all.push(dots("99th percentile of latency in each pass", P99));
        }
        if self.info.devices.len() > 1 {
            all.push(dots("Spread of busy shares: largest less smallest", SPREAD));
        }
        if let Some(promise) = self.promise().filter(|_| !self.max_loads.is_empty()) {
            let arms: Vec<Vec<f64>> =
                policies.iter().map(|policy| self.max_loads_of(policy)).collect();
            let title = format!("Highest load with {promise}, of the capacity");
            all.push(plots::dots(&title, "%", policies, &arms));
        }
        if !self.is_bulk() {
            all.push(plots::latencies(self));
        }
        all.extend(policies.iter().map(|policy| plots::busy(policy, &self.passes_of(policy))));
        all
    }
}

/// Writes a row of cells, each with its class.
fn row<'a>(page: &mut String, tag: &str, cells: impl Iterator<Item = (&'a str, &'a str)>) {
    page.push_str("<tr>");
    for (cell, class) in cells {
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        let _ = write!(page, "<{tag}{class}>{}</{tag}>", escape(cell));
    }
    page.push_str("</tr>\n");
}

/// Rules that give the plots the page's colours.
fn repaint() -> String {
    let rule = |colour: &str, name: &str| {
        format!(
            "svg [fill='{colour}'] {{ fill: var({name}); }} svg [stroke='{colour}'] {{ stroke: var({name}); }}\n"
        )
    };
    let colours = [
        (INK, "--ink"),
        (MUTED, "--muted"),
        (FAINT, "--faint"),
        ("#ffffff", "--back"),
        (COLOURS[0], "--blue"),
    ];
    colours.map(|(colour, name)| rule(colour, name)).concat()
}

/// A date, such as 2026-11-24 14:05 UTC.
fn date(unix_seconds: u64) -> String {
    // Days are counted from a first of March, so that leap days are at the ends of years (H. Hinnant,
    // "chrono-compatible low-level date algorithms").
    let (days, seconds) = (unix_seconds / 86_400 + 719_468, unix_seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day + 2) / 153;
    let day = day - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + 400 * era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_795_523_999), "2026-11-24 12:39 UTC");
    }
}
