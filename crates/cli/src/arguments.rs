//! The command line: commands and their own arguments; [`help`] has the longer help texts.
//!
//! What can be set in a file or by the environment as well is in [`crate::settings`].

mod help;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vecmill_engine::convert::DType;

use self::help::{
    AFTER_COMPLETIONS, AFTER_CONVERT, AFTER_DEVICES, AFTER_EMBED, AFTER_HELP, AFTER_PLAN,
    AFTER_SERVE, CONVERT_EXAMPLES, DEVICES_EXAMPLES, EMBED_EXAMPLES, PLAN_EXAMPLES, SERVE_EXAMPLES,
};
use crate::ab::arguments::AbArguments;
use crate::settings::memory::Budget;
use crate::settings::value::Value;
use crate::settings::{ConvertSettings, EmbedSettings, Flags, PlanSettings, ServeSettings};

/// Turns text into vectors: an embedding server in one binary
#[derive(Debug, Parser)]
#[command(name = "vecmill", version, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve embeddings over HTTP, by OpenAI's and TEI's contracts
    Serve(ServeArguments),
    /// Embed texts from arguments, a file or standard input
    Embed(EmbedArguments),
    /// Say what fits into a device's memory, before it is bought or anything is loaded
    Plan(PlanArguments),
    /// Write a model with its weights in another number format
    Convert(ConvertArguments),
    /// Compare scheduling policies on this machine's devices
    Ab(AbArguments),
    /// List the devices of this machine, and the libraries that GPUs need
    Devices(DevicesArguments),
    /// Write a script that completes this command line in a shell
    Completions(CompletionsArguments),
}

/// Arguments of `vecmill serve`.
#[derive(Debug, Args)]
#[command(after_help = SERVE_EXAMPLES, after_long_help = AFTER_SERVE)]
pub(crate) struct ServeArguments {
    #[command(flatten)]
    pub(crate) flags: Flags<ServeSettings>,
}

/// Arguments of `vecmill embed`.
#[derive(Debug, Args)]
#[command(after_help = EMBED_EXAMPLES, after_long_help = AFTER_EMBED)]
pub(crate) struct EmbedArguments {
    /// Texts to embed; without any, they are read from --input or standard input
    #[arg(value_name = "TEXT", conflicts_with_all = ["input", "format", "field", "skip_empty"])]
    pub(crate) texts: Vec<String>,

    /// File to read texts from instead of standard input
    #[arg(long, short, value_name = "FILE", help_heading = "Input", value_hint = clap::ValueHint::FilePath)]
    pub(crate) input: Option<PathBuf>,
    /// Format of the input [default: jsonl for files ending in .jsonl or .ndjson, else text]
    #[arg(long, value_enum, help_heading = "Input")]
    pub(crate) format: Option<Format>,
    /// Field that holds the text when a JSON line is an object
    #[arg(long, value_name = "NAME", default_value = "text", help_heading = "Input")]
    pub(crate) field: String,
    /// Leave blank lines out instead of reporting them as failed
    #[arg(long, help_heading = "Input")]
    pub(crate) skip_empty: bool,

    /// File to write, by its ending .jsonl or .npy, instead of JSON lines to standard output
    #[arg(long, short, value_name = "FILE", help_heading = "Output", value_hint = clap::ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// Whether to scale vectors to length one [default: as the model's own pipeline]
    #[arg(long, value_name = "BOOL", help_heading = "Output")]
    pub(crate) normalize: Option<bool>,
    /// Keep so many leading dimensions (Matryoshka models)
    #[arg(long, value_name = "N", help_heading = "Output")]
    pub(crate) dimensions: Option<NonZeroUsize>,
    /// Report texts longer than the model takes as failed instead of cutting them
    #[arg(long, help_heading = "Output")]
    pub(crate) no_truncate: bool,

    /// Text to put in front of each text
    #[arg(long, value_name = "TEXT", help_heading = "Prompt", conflicts_with = "prompt_name")]
    pub(crate) prompt: Option<String>,
    /// The model's prompt, by name, to put in front of each text
    #[arg(long, value_name = "NAME", help_heading = "Prompt")]
    pub(crate) prompt_name: Option<String>,

    #[command(flatten)]
    pub(crate) flags: Flags<EmbedSettings>,
}

/// How input lines hold texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Each line is a text
    Text,
    /// Each line is a JSON string, or an object with the text in --field
    Jsonl,
}

/// Arguments of `vecmill plan`.
#[derive(Debug, Args)]
#[command(after_help = PLAN_EXAMPLES, after_long_help = AFTER_PLAN)]
pub(crate) struct PlanArguments {
    /// Memory for weights and batches: 8GiB, bytes or, on the CPU, 50% [default there: all of it]
    #[arg(long, value_name = "SIZE", value_parser = parsed::<Budget>, help_heading = "Plan")]
    pub(crate) memory: Option<Budget>,

    /// Kind of device; it need not be there
    #[arg(long, value_enum, default_value_t = Place::Cpu, help_heading = "Plan")]
    pub(crate) device: Place,

    /// Number format to compute in [default: f16 on a GPU, f32 on the CPU]
    #[arg(long, value_enum, help_heading = "Plan")]
    pub(crate) dtype: Option<NumberFormat>,

    /// Batches that run at once [default: 2 on a GPU, 1 on the CPU]
    #[arg(long, value_name = "N", help_heading = "Plan")]
    pub(crate) in_flight: Option<NonZeroUsize>,

    /// Write JSON instead of text
    #[arg(long, help_heading = "Plan")]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) flags: Flags<PlanSettings>,
}

/// Kinds of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Place {
    /// This machine's processor
    Cpu,
    /// Any GPU
    Gpu,
}

/// Number formats, of weights and of what is computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NumberFormat {
    /// Single precision
    #[value(alias = "float32")]
    F32,
    /// Half precision
    #[value(alias = "float16")]
    F16,
    /// Half precision with the range of single precision
    #[value(alias = "bfloat16")]
    Bf16,
    /// FP8 (e4m3) for the large matrix products, on Hopper GPUs
    Fp8,
}

impl From<NumberFormat> for DType {
    fn from(format: NumberFormat) -> Self {
        match format {
            NumberFormat::F32 => Self::F32,
            NumberFormat::F16 => Self::F16,
            NumberFormat::Bf16 => Self::BF16,
            NumberFormat::Fp8 => Self::F8E4M3,
        }
    }
}

/// Arguments of `vecmill convert`.
#[derive(Debug, Args)]
#[command(after_help = CONVERT_EXAMPLES, after_long_help = AFTER_CONVERT)]
pub(crate) struct ConvertArguments {
    /// Number format of the new weights
    #[arg(long, value_enum, default_value_t = NumberFormat::F16, help_heading = "Output")]
    pub(crate) dtype: NumberFormat,

    /// Folder to make and write the model into
    #[arg(long, short, value_name = "FOLDER", help_heading = "Output", value_hint = clap::ValueHint::DirPath)]
    pub(crate) output: PathBuf,

    #[command(flatten)]
    pub(crate) flags: Flags<ConvertSettings>,
}

/// A flag's value by the rules of settings.
fn parsed<T: Value>(text: &str) -> Result<T, String> {
    T::parse(text).ok_or_else(|| format!("expected {}", T::EXPECTED))
}

/// Arguments of `vecmill devices`.
#[derive(Debug, Args)]
#[command(after_help = DEVICES_EXAMPLES, after_long_help = AFTER_DEVICES)]
pub(crate) struct DevicesArguments {
    /// Write JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `vecmill completions`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_COMPLETIONS)]
pub(crate) struct CompletionsArguments {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
