//! The texts behind the help: examples, and what is worth knowing beside the flags.
//!
//! Examples are macros, because the longer texts begin with them.

pub(super) const AFTER_HELP: &str = "\
Exit codes:
  0    success
  1    failure
  2    wrong usage or settings
  3    some texts failed, the others are done (vecmill embed)
  4    stopped, but accepted requests were cut off (vecmill serve)
  141  the reader of the output wants no more (vecmill embed … | head), as after SIGPIPE

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

pub(super) const SERVE_EXAMPLES: &str = serve_examples!();

pub(super) const AFTER_SERVE: &str = concat!(
    serve_examples!(),
    "

Settings come from flags, then from variables (VECMILL_MODEL_ID, …; an empty one counts as unset; \
commas separate several values), then from the file, then from the defaults. The file uses the same \
names:

  model-id = \"BAAI/bge-small-en-v1.5\"
  port = 8080
  api-key = [\"key1\", \"key2\"]

Relative paths start at the current folder.

The port answers at once; /ready says when the model is loaded. SIGTERM, SIGINT, SIGQUIT and SIGHUP \
finish the requests that were accepted, within --shutdown-grace; a second one cuts them off. When \
requests were cut off, the exit code is 4 and the log says how many. Under nohup, SIGHUP does nothing.

With --admin, the operator can look at the devices' memory:
  curl http://127.0.0.1:3000/admin/memory
  curl -X POST http://127.0.0.1:3000/admin/memory/trim
  curl -OJ 'http://127.0.0.1:3000/admin/memory/recording?device=cpu'
  vecmill-bench replay vecmill-memory-cpu.csv"
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

pub(super) const EMBED_EXAMPLES: &str = embed_examples!();

pub(super) const AFTER_EMBED: &str = concat!(
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

pub(super) const PLAN_EXAMPLES: &str = plan_examples!();

pub(super) const AFTER_PLAN: &str = concat!(
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

macro_rules! convert_examples {
    () => {
        "\
Examples:
  vecmill convert --dtype float16 --output ./minilm-f16      all-MiniLM-L6-v2 at half its size
  vecmill convert --model BAAI/bge-m3 --dtype bfloat16 --output ./bge-m3-bf16
  vecmill convert --model ./my-model --output ./my-model-f16
  vecmill serve --model-id ./my-model-f16"
    };
}

pub(super) const CONVERT_EXAMPLES: &str = convert_examples!();

pub(super) const AFTER_CONVERT: &str = concat!(
    convert_examples!(),
    "

Matrices and tables are rounded to the nearest number of the format, and to an even one between two. \
Biases and norms stay in single precision, which costs next to nothing. A number that the format \
can't hold is an error: float16 ends at 65504, bfloat16 only where float32 does.

The folder has what vecmill needs of the model, with the weights of each module in one \
model.safetensors, also where they were pytorch_model.bin: a pickle is read as a table of tensors, \
and nothing in it is run. It is complete or not there, and nothing is overwritten. The CPU computes in \
float32 whatever the file's format is.

Settings come from flags, variables and the file as for 'vecmill serve'."
);

macro_rules! devices_examples {
    () => {
        "\
Examples:
  vecmill devices
  vecmill devices --json
  VECMILL_CUDA_LIBRARIES=/opt/cuda/lib64 vecmill devices"
    };
}

pub(super) const DEVICES_EXAMPLES: &str = devices_examples!();

pub(super) const AFTER_DEVICES: &str = concat!(
    devices_examples!(),
    "

A GPU needs NVIDIA's driver, NVRTC, which compiles its kernels, and cuBLASLt, for matrix products; no \
CUDA toolkit. They are looked for in the folders of VECMILL_CUDA_LIBRARIES (several as in PATH), where \
the system's loader looks, in CUDA's usual folders and in Python packages. What is not found is said, \
with how to get it.

CUDA_VISIBLE_DEVICES hides GPUs and changes their numbers."
);

pub(super) const AFTER_COMPLETIONS: &str = "\
Examples:
  vecmill completions bash > ~/.local/share/bash-completion/completions/vecmill
  vecmill completions zsh > ~/.zfunc/_vecmill
  vecmill completions fish > ~/.config/fish/completions/vecmill.fish";
