//! A report for the terminal.

use std::fmt::Write;

use super::bootstrap::Estimate;
use super::report::{Report, Row};
use crate::results::number;

impl Report {
    /// What was compared, a table, and what can be said of it.
    pub fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = writeln!(out, "{} on {}", self.info.model_id, self.devices());
        let _ = writeln!(out, "load: {}\n", self.load());
        let policies = &self.experiment.policies;
        let mut lines = vec![heading(policies)];
        lines.extend(self.rows().iter().map(line));
        align(&mut out, &lines);
        out.push('\n');
        align(&mut out, &self.device_lines());
        if !self.interference.is_empty() {
            out.push('\n');
            align(&mut out, &self.interference_lines());
        }
        out.push('\n');
        for text in self.verdicts().into_iter().chain(self.notes()) {
            let _ = writeln!(out, "{text}");
        }
        out
    }

    /// How busy each device was under each policy.
    fn device_lines(&self) -> Vec<Vec<String>> {
        let policies = &self.experiment.policies;
        let mut lines = vec![vec!["busy share (tokens)".to_owned()]];
        lines[0].extend(policies.iter().cloned());
        for (index, device) in self.info.devices.iter().enumerate() {
            let mut line = vec![device.name.to_string()];
            for policy in policies {
                let passes = self.passes_of(policy);
                let count = passes.len().max(1) as f64;
                let devices = || passes.iter().filter_map(|pass| pass.devices.get(index));
                let share: f64 = devices().map(|device| device.busy_share).sum();
                let tokens: u64 = devices().map(|device| device.tokens).sum();
                let tokens = number(tokens as f64 / count);
                line.push(format!("{:.1} % ({tokens})", 100.0 * share / count));
            }
            lines.push(line);
        }
        lines
    }

    fn interference_lines(&self) -> Vec<Vec<String>> {
        let heads = ["own speed (tokens/s)", "alone", "together", "factor"];
        let mut lines = vec![heads.map(str::to_owned).to_vec()];
        for device in &self.interference {
            let factor = format!("{:.2}", device.factor);
            lines.push(vec![
                device.name.clone(),
                number(device.alone),
                number(device.together),
                factor,
            ]);
        }
        lines
    }
}

/// A figure with its interval.
fn figure(estimate: Option<Estimate>) -> String {
    estimate.map_or("–".into(), |Estimate { value, low, high }| {
        format!("{} ({} to {})", number(value), number(low), number(high))
    })
}

/// What heads the columns of rows.
pub(super) fn heading(policies: &[String]) -> Vec<String> {
    let mut line = vec!["mean (95 % interval)".to_owned()];
    line.extend(policies.iter().cloned());
    for policy in &policies[1..] {
        line.extend([format!("{policy} / {}", policies[0]), "verdict".to_owned()]);
    }
    line
}

/// A row's cells.
pub(super) fn line(row: &Row) -> Vec<String> {
    let mut line = vec![format!("{} ({})", row.metric, row.unit)];
    line.extend(row.means.iter().copied().map(figure));
    for (ratio, verdict) in row.ratios.iter().zip(&row.verdicts) {
        line.extend([figure(*ratio), verdict.words().to_owned()]);
    }
    line
}

/// Writes lines with their cells below each other.
fn align(out: &mut String, lines: &[Vec<String>]) {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for line in lines {
        let mut text = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(text, "{cell:width$}  ");
        }
        let _ = writeln!(out, "{}", text.trim_end());
    }
}
