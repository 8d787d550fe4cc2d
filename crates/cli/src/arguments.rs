//! The command line: commands, their own arguments, and their help texts.
//!
//! What can be set in a file or by the environment as well is in [`crate::settings`].

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::settings::kind::Bytes;
use crate::settings::memory::{Budget, GiveBackAfter};
use crate::settings::value::Value;
use crate::settings::{EmbedSettings, Flags, PlanSettings, ServeSettings};

const AFTER_HELP: &str = "\
Exit codes:
  0  success, also when the reader of the output wants no more (vecmill embed … | head)
  1  failure
  2  wrong usage or settings
  3  some texts failed, the others are done (vecmill embed)

Try:
  vecmill serve
  vecmill embed 'a quick brown fox'
  vecmill plan --memory 8GiB --device gpu";

macro_rules! serve_examples {
    () => {
        "\
Examples:
  vecmill serve                                 all-MiniLM-L6-v2 on http://127.0.0.1:3000
  vecmill serve --model-id BAAI/bge-small-en-v1.5 --port 8080
  vecmill serve --model-id ./my-model --memory-budget 50%
  vecmill serve --device cuda:0,cuda:1 --dtype float16
  VECMILL_API_KEY=key1,key2 vecmill serve --hostname 0.0.0.0
  vecmill serve --config vecmill.toml"
    };
}

const AFTER_SERVE: &str = concat!(
    serve_examples!(),
    "

Settings come from flags, then from variables (VECMILL_MODEL_ID, …; an empty one counts as unset; \
commas separate several values), then from the file, then from the defaults. The file uses the same \
names:

  model-id = \"BAAI/bge-small-en-v1.5\"
  port = 8080
  api-key = [\"key1\", \"key2\"]

Relative paths start at the current folder.

The port answers at once; /ready says when the model is loaded. SIGINT and SIGTERM finish the \
requests that were accepted; a second one ends at once.

With --admin, the operator can look at the devices' memory:
  curl http://127.0.0.1:3000/admin/memory
  curl -X POST http://127.0.0.1:3000/admin/memory/trim
  curl -OJ 'http://127.0.0.1:3000/admin/memory/trace?device=cpu'
  vecmill memory replay vecmill-memory-cpu.csv"
);

macro_rules! embed_examples {
    () => {
        "\
Examples:
  vecmill embed 'a quick brown fox' 'jumps over'
  vecmill embed < texts.txt > vectors.jsonl
  vecmill embed --input docs.jsonl --field body --output vectors.npy
  vecmill embed --prompt 'query: ' --dimensions 256 -- '-5 degrees outside'"
    };
}

const AFTER_EMBED: &str = concat!(
    embed_examples!(),
    "

Input is UTF-8 with one text per line, of at most 16 MiB. Output keeps its order. In JSON lines a \
text becomes
  {\"index\":0,\"tokens\":5,\"truncated\":false,\"embedding\":[0.1,…]}
and one that failed
  {\"index\":1,\"error\":\"…\"}
In .npy files (float32, one row per text) the row of a text that failed is NaN. Failed texts are \
also reported on standard error, the others are finished, and the exit code is 3.

A file is complete or not there: it gets its name at the end.

Settings come from flags, variables and the file as for 'vecmill serve'; those of the server alone \
are ignored."
);

macro_rules! plan_examples {
    () => {
        "\
Examples:
  vecmill plan                                    all-MiniLM-L6-v2 on this machine's processor
  vecmill plan --model-id BAAI/bge-m3 --device gpu --memory 8GiB
  vecmill plan --model-id ./my-model --memory 25% --json
  vecmill plan --device gpu --memory 2GiB --in-flight 4 --max-batch-tokens 65536"
    };
}

const AFTER_PLAN: &str = concat!(
    plan_examples!(),
    "

The device need not be there. The model's files are fetched if they are not, but no weights are \
loaded. 'vecmill serve' finds its largest batch in the same way, so the two agree.

A batch's texts are packed behind each other, so only its tokens count. Its slab is one piece of \
memory for everything that the batch needs; each batch in flight has one. What is left over is for \
growth: a GPU's driver, and other programs, need some, too.

Settings come from flags, variables and the file as for 'vecmill serve'. When not even the longest \
input fits, the exit code is 1 and the message says how much is missing."
);

macro_rules! replay_examples {
    () => {
        "\
Examples:
  curl -OJ 'http://127.0.0.1:3000/admin/memory/trace?device=cpu'     from vecmill serve --admin
  vecmill memory replay vecmill-memory-cpu.csv
  vecmill memory replay trace.csv --budget 8GiB --give-back 5m --svg memory.svg
  vecmill memory replay trace.csv --policy pool,direct --json"
    };
}

const AFTER_REPLAY: &str = concat!(
    replay_examples!(),
    "

A trace says which leases were taken and returned, when, and how large they were. It is replayed on \
a device that exists only as numbers, in the trace's own time, so that a day takes seconds and every \
run gives the same figures; only the times of 'lease+return' are of this machine. Traces come from \
--memory-trace-on-refusal as well, and other programs can write them: they are CSV with a first line

  nanoseconds,event,id,stream,bytes

and the events lease, return and refuse."
);

const AFTER_DEVICES: &str = "\
Examples:
  vecmill devices
  vecmill devices --json";

const AFTER_COMPLETIONS: &str = "\
Examples:
  vecmill completions bash > ~/.local/share/bash-completion/completions/vecmill
  vecmill completions zsh > ~/.zfunc/_vecmill
  vecmill completions fish > ~/.config/fish/completions/vecmill.fish";

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
    /// Look into how memory was managed
    Memory(MemoryArguments),
    /// List the devices of this machine
    Devices(DevicesArguments),
    /// Write a script that completes this command line in a shell
    Completions(CompletionsArguments),
}

/// Arguments of `vecmill serve`.
#[derive(Debug, Args)]
#[command(after_help = serve_examples!(), after_long_help = AFTER_SERVE)]
pub(crate) struct ServeArguments {
    #[command(flatten)]
    pub(crate) flags: Flags<ServeSettings>,
}

/// Arguments of `vecmill embed`.
#[derive(Debug, Args)]
#[command(after_help = embed_examples!(), after_long_help = AFTER_EMBED)]
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
#[command(after_help = plan_examples!(), after_long_help = AFTER_PLAN)]
pub(crate) struct PlanArguments {
    /// Memory for weights and batches: 8GiB, bytes or, on the CPU, 50% [default there: all of it]
    #[arg(long, value_name = "SIZE", value_parser = parsed::<Budget>, help_heading = "Plan")]
    pub(crate) memory: Option<Budget>,

    /// Kind of device; it need not be there
    #[arg(long, value_enum, default_value_t = Place::Cpu, help_heading = "Plan")]
    pub(crate) device: Place,

    /// Number format to compute in [default: f16 on a GPU, f32 on the CPU]
    #[arg(long, value_enum, help_heading = "Plan")]
    pub(crate) dtype: Option<PlanDtype>,

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

/// Number formats that a plan can be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlanDtype {
    /// Single precision
    #[value(alias = "float32")]
    F32,
    /// Half precision, on GPUs
    #[value(alias = "float16")]
    F16,
    /// Half precision with the range of single precision, on GPUs
    #[value(alias = "bfloat16")]
    Bf16,
    /// FP8 (e4m3) for the large matrix products, on Hopper GPUs
    Fp8,
}

/// Arguments of `vecmill memory`.
#[derive(Debug, Args)]
#[command(after_help = replay_examples!())]
pub(crate) struct MemoryArguments {
    #[command(subcommand)]
    pub(crate) command: MemoryCommand,
}

/// What to look into.
#[derive(Debug, Subcommand)]
pub(crate) enum MemoryCommand {
    /// Replay a trace and compare ways of managing its memory
    Replay(ReplayArguments),
}

/// Arguments of `vecmill memory replay`.
#[derive(Debug, Args)]
#[command(after_help = replay_examples!(), after_long_help = AFTER_REPLAY)]
pub(crate) struct ReplayArguments {
    /// File with the trace; - is standard input
    #[arg(value_name = "TRACE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) trace: PathBuf,

    /// Ways of managing memory, to compare side by side
    #[arg(long, value_enum, value_delimiter = ',', default_value = "pool,naive,direct")]
    pub(crate) policy: Vec<Policy>,

    /// Most memory that each may hold: 8GiB or bytes [default: as much as it takes]
    #[arg(long, value_name = "SIZE", value_parser = parsed::<Bytes>)]
    pub(crate) budget: Option<Bytes>,

    /// When the pool gives back what is no longer needed: 60s, 5m, 1h or never
    #[arg(
        long,
        value_name = "TIME",
        value_parser = parsed::<GiveBackAfter>,
        default_value = "60s"
    )]
    pub(crate) give_back: GiveBackAfter,

    /// Write a picture of it to this file as well
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) svg: Option<PathBuf>,

    /// Write JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Ways of managing memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    /// Vecmill's own pool
    Pool,
    /// A list of buffers, first fit, never given back
    Naive,
    /// No pool: each lease is taken from the device and given back to it
    Direct,
}

/// A flag's value by the rules of settings.
fn parsed<T: Value>(text: &str) -> Result<T, String> {
    T::parse(text).ok_or_else(|| format!("expected {}", T::EXPECTED))
}

/// Arguments of `vecmill devices`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_DEVICES)]
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
