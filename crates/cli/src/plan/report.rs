//! A plan in text or JSON.

use std::io::{self, Write};

use indicatif::HumanCount;
use serde::Serialize;
use vecmill_engine::capacity::{Capacity, Place, SlabSize};

use super::has_room;
use super::picture::{Part, bar};
use crate::units::{bytes, percent};

/// Lengths of texts, in tokens, that people know: a search, a paragraph, a page.
const LENGTHS: [usize; 3] = [32, 128, 512];

/// Writes `plan`. `most` is the most tokens that a batch was to have.
pub(super) fn write(
    out: &mut impl Write,
    plan: &Capacity,
    most: usize,
    as_json: bool,
) -> io::Result<()> {
    if as_json {
        serde_json::to_writer_pretty(&mut *out, &json(plan))?;
        writeln!(out)
    } else {
        write!(out, "{}", text(plan, most))
    }
}

/// Lengths of texts that the model takes, in tokens.
fn lengths(plan: &Capacity) -> Vec<usize> {
    let longest = plan.max_input_tokens;
    LENGTHS.into_iter().filter(|&length| length < longest).chain([longest]).collect()
}

fn place(plan: &Capacity) -> &'static str {
    match plan.target.place {
        Place::Cpu => "cpu",
        Place::Gpu(_) => "gpu",
    }
}

/// A plan as programs read it. All sizes are in bytes.
#[derive(Serialize)]
struct Json<'a> {
    model: &'a str,
    architecture: &'a str,
    max_input_tokens: usize,
    device: &'static str,
    dtype: &'static str,
    budget_bytes: usize,
    weights_bytes: usize,
    slab_bytes: usize,
    in_flight: usize,
    headroom_bytes: usize,
    /// Beside the budget, roughly; `null` on the CPU.
    driver_bytes: Option<usize>,
    request_memory_bytes: usize,
    bytes_per_token: usize,
    largest_batch: LargestBatch,
    slabs: Vec<Slab>,
}

#[derive(Serialize)]
struct LargestBatch {
    tokens: usize,
    texts: Vec<Texts>,
}

/// How many texts of so many tokens a batch has.
#[derive(Serialize)]
struct Texts {
    tokens: usize,
    texts: usize,
}

#[derive(Serialize)]
struct Slab {
    tokens: usize,
    bytes: usize,
    at_once: usize,
}

fn json(plan: &Capacity) -> Json<'_> {
    let fit = &plan.fit;
    let tokens = fit.largest.tokens;
    let texts = |length| Texts { tokens: length, texts: tokens / length };
    let slab = |slab: &SlabSize| Slab {
        tokens: slab.tokens,
        bytes: slab.bytes,
        at_once: at_once(plan, slab.bytes),
    };
    Json {
        model: &plan.model_id,
        architecture: &plan.architecture,
        max_input_tokens: plan.max_input_tokens,
        device: place(plan),
        dtype: plan.target.dtype(),
        budget_bytes: fit.budget_bytes,
        weights_bytes: fit.weights_bytes,
        slab_bytes: fit.slab_bytes,
        in_flight: fit.in_flight,
        headroom_bytes: fit.headroom_bytes,
        driver_bytes: plan.driver_bytes,
        request_memory_bytes: plan.set_aside_bytes,
        bytes_per_token: fit.bytes_per_token,
        largest_batch: LargestBatch {
            tokens,
            texts: lengths(plan).into_iter().map(texts).collect(),
        },
        slabs: fit.slabs.iter().map(slab).collect(),
    }
}

/// How many slabs of so many bytes fit beside the weights.
fn at_once(plan: &Capacity, slab: usize) -> usize {
    plan.fit.budget_bytes.saturating_sub(plan.fit.weights_bytes) / slab.max(1)
}

fn text(plan: &Capacity, most: usize) -> String {
    let lines = [heading(plan), String::new(), memory(plan), largest(plan, most), table(plan)];
    lines.join("\n")
}

fn heading(plan: &Capacity) -> String {
    let Capacity { model_id, architecture, target, fit, .. } = plan;
    let device = if place(plan) == "cpu" { "the CPU" } else { "a GPU" };
    let (dtype, budget) = (target.dtype(), bytes(fit.budget_bytes));
    format!("{model_id} ({architecture}) in {dtype}, on {device} with {budget}")
}

/// The budget and its parts.
fn memory(plan: &Capacity) -> String {
    let fit = &plan.fit;
    let plural = if fit.in_flight == 1 { "slab" } else { "slabs" };
    let slabs = format!("{} {plural} of {}", fit.in_flight, bytes(fit.slab_bytes));
    let parts = [
        ('█', "weights", fit.weights_bytes, String::new()),
        ('▒', "batches", fit.in_flight * fit.slab_bytes, slabs),
        ('░', "headroom", fit.headroom_bytes, String::new()),
    ];
    let drawn: Vec<Part> = parts.iter().map(|&(mark, _, bytes, _)| Part { mark, bytes }).collect();
    let mut text = format!("  {}\n", bar(&drawn));
    for (mark, name, size, note) in &parts {
        let (size, part) = (bytes(*size), percent(*size, fit.budget_bytes));
        let line = format!("  {mark} {name:<8}  {size:>9}  {part:>7}  {note}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    if let Some(driver) = plan.driver_bytes {
        let driver = bytes(driver);
        text.push_str(&format!("  beside it, for the GPU's driver: about {driver}\n"));
    }
    let requests = bytes(plan.set_aside_bytes);
    text.push_str(&format!("  beside it, for requests: {requests} of the machine's memory\n"));
    text
}

/// The largest batch, in tokens and in texts, and why it is no larger.
fn largest(plan: &Capacity, most: usize) -> String {
    let fit = &plan.fit;
    let tokens = fit.largest.tokens;
    let why = match plan.target.place {
        _ if !has_room(plan) => "as many as there is memory for".to_owned(),
        Place::Cpu if tokens < most => "with more the CPU gets no faster".to_owned(),
        _ => {
            let more = fit.headroom_bytes / fit.in_flight.max(1) / fit.bytes_per_token.max(1);
            let about = HumanCount(two_digits(tokens.saturating_add(more)) as u64);
            format!("by --max-batch-tokens; there is memory for about {about}")
        }
    };
    let mut text = format!("Largest batch: {} tokens, {why}\n", HumanCount(tokens as u64));
    text.push_str(&format!("  that is {}\n", texts(plan)));
    text.push_str(&format!("  one more token takes {}\n", bytes(fit.bytes_per_token)));
    let (asked, fits) = (plan.target.in_flight, fit.in_flight);
    if fits < asked {
        let plural = if fits == 1 { "batch" } else { "batches" };
        text.push_str(&format!("  {fits} {plural} in flight, not {asked}: more don't fit\n"));
    }
    text
}

/// The largest batch as numbers of texts, for example `64 texts of 32 tokens, 16 of 128 or 4 of 512`.
fn texts(plan: &Capacity) -> String {
    let tokens = plan.fit.largest.tokens;
    let count = |length: usize| HumanCount((tokens / length) as u64);
    let mut text = String::new();
    let lengths = lengths(plan);
    for (index, &length) in lengths.iter().enumerate() {
        let before = match index {
            0 => "",
            _ if index + 1 == lengths.len() => " or ",
            _ => ", ",
        };
        let of = if index == 0 { "texts of" } else { "of" };
        let unit = if index == 0 { " tokens" } else { "" };
        text.push_str(&format!("{before}{} {of} {length}{unit}", count(length)));
    }
    text
}

/// `number` rounded down to its two leading digits.
fn two_digits(number: usize) -> usize {
    let unit = 10_usize.pow(number.checked_ilog10().unwrap_or(0).saturating_sub(1));
    number / unit * unit
}

/// Slabs by the size of their batch.
fn table(plan: &Capacity) -> String {
    let mut lines = vec![["BATCH", "SLAB", "AT ONCE"].map(str::to_owned)];
    lines.extend(plan.fit.slabs.iter().map(|slab| {
        let at_once = match at_once(plan, slab.bytes) {
            0 => "too large".to_owned(),
            count => HumanCount(count as u64).to_string(),
        };
        [format!("{} tokens", HumanCount(slab.tokens as u64)), bytes(slab.bytes), at_once]
    }));
    let lines = lines.into_iter();
    lines.map(|[batch, slab, at_once]| format!("{batch:>14}  {slab:>9}  {at_once:>9}\n")).collect()
}

#[cfg(test)]
mod tests {
    use vecmill_engine::capacity::{Fit, Shape, Target};

    use super::*;

    const MIB: usize = 1 << 20;

    fn plan() -> Capacity {
        let slab = |(tokens, mebibytes)| SlabSize { tokens, bytes: mebibytes * MIB };
        Capacity {
            model_id: "owner/name".to_owned(),
            architecture: "bert".to_owned(),
            max_input_tokens: 512,
            target: Target::GPU,
            set_aside_bytes: 1024 * MIB,
            driver_bytes: Some(540 * MIB),
            fit: Fit {
                budget_bytes: 1024 * MIB,
                weights_bytes: 256 * MIB,
                largest: Shape { tokens: 16_384, sequences: 16_384, longest: 512 },
                slab_bytes: 128 * MIB,
                in_flight: 2,
                headroom_bytes: 512 * MIB,
                bytes_per_token: 8192,
                slabs: [(512, 8), (65_536, 800)].map(slab).to_vec(),
            },
        }
    }

    #[test]
    fn a_plan_is_said_in_text() {
        let bar = format!("{}{}{}", "█".repeat(16), "▒".repeat(16), "░".repeat(32));
        let expected = format!(
            "\
owner/name (bert) in float16, on a GPU with 1.00 GiB

  {bar}
  █ weights     256 MiB   25.0 %
  ▒ batches     256 MiB   25.0 %  2 slabs of 128 MiB
  ░ headroom    512 MiB   50.0 %
  beside it, for the GPU's driver: about 540 MiB
  beside it, for requests: 1.00 GiB of the machine's memory

Largest batch: 16,384 tokens, by --max-batch-tokens; there is memory for about 49,000
  that is 512 texts of 32 tokens, 128 of 128 or 32 of 512
  one more token takes 8.00 KiB

         BATCH       SLAB    AT ONCE
    512 tokens   8.00 MiB         96
 65,536 tokens    800 MiB  too large
"
        );
        assert_eq!(text(&plan(), 16_384), expected);
    }

    #[test]
    fn what_limits_the_batch_is_said() {
        let mut plan = plan();
        plan.target = Target { in_flight: 3, ..Target::CPU };
        assert!(largest(&plan, 99_999).contains("the CPU gets no faster"));
        plan.fit.headroom_bytes = 16 * MIB;
        let text = largest(&plan, 99_999);
        assert!(text.contains("16,384 tokens, as many as there is memory for"), "{text}");
        assert!(text.contains("2 batches in flight, not 3: more don't fit"), "{text}");
    }

    #[test]
    fn lengths_are_those_that_the_model_takes() {
        let lengths = |max_input_tokens| lengths(&Capacity { max_input_tokens, ..plan() });
        assert_eq!(lengths(20), [20]);
        assert_eq!(lengths(128), [32, 128]);
        assert_eq!(lengths(8192), [32, 128, 512, 8192]);
    }

    #[test]
    fn rough_figures_have_two_digits() {
        assert_eq!([0, 7, 99, 1999, 123_456].map(two_digits), [0, 7, 99, 1900, 120_000]);
    }
}
