//! All settings there are, each said once, in groups that are read together.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use vecmill_engine::{ModelRef, Pooling};
use vecmill_server::{ApiKey, TokenInputs};

use super::kind::{
    BatchTokens, Bytes, Devices, Dtype, Host, LogFilter, Name, Origin, Policies, Policy, Secret,
};
use super::memory::{Budget, Folder};
use super::table::settings;
use super::time::{GiveBackAfter, Grace, Latency, Window};

settings! {
    /// Which model, and how it is used.
    ModelSettings("Model") {
        /// Model to run: its id on the Hugging Face hub, or a folder with its files
        ///
        /// owner/name@revision is one way to name a revision, --revision the other.
        model_id: ModelRef = "sentence-transformers/all-MiniLM-L6-v2" where alias = "model",
        /// Branch, tag or commit of the model on the hub [default: main]
        ///
        /// A folder has none, so it is then ignored.
        revision: Option<Name>,
        /// Folder that keeps fetched models [default: the user's cache folder]
        cache_dir: Option<PathBuf> where alias = "huggingface-hub-cache"
            where variable = "VECMILL_CACHE",
        /// Token for private models on the hub
        hf_token: Option<Secret> where variable = "HF_TOKEN",
    }
}

settings! {
    /// How the model is used.
    UseSettings("Model") {
        /// How token vectors become one: mean, cls, max, last-token, mean-sqrt-len or weighted-mean
        /// [default: the model's own]
        pooling: Option<Pooling>,
        /// Text put in front of inputs whose request names no prompt
        default_prompt: Option<String>,
        /// The model's prompt, by name, for inputs whose request names none
        ///
        /// The names are in the model's config_sentence_transformers.json. It excludes
        /// --default-prompt: of two sources the stronger one counts.
        default_prompt_name: Option<Name>,
    }
}

settings! {
    /// What decides how much memory a batch takes.
    BatchSettings("Devices and memory") {
        /// Most tokens that run in one batch; auto finds each device's own by batches of practice
        ///
        /// auto is as many as a device needs to be at nearly its full speed, at most 65536, and no
        /// more than it runs within --max-batch-latency.
        max_batch_tokens: BatchTokens = "16384",
        /// How long a batch may take where --max-batch-tokens is auto: 50ms, 1s
        max_batch_latency: Latency = "50ms",
        /// Threads that compute on the CPU [default: one per core]
        cpu_threads: Option<NonZeroUsize>,
    }
}

settings! {
    /// What the model computes with.
    ComputeSettings("Devices and memory") {
        /// Device to run on: auto, cpu, cuda, cuda:0 or cuda:0/sms=32; repeat it, or use commas, for several
        ///
        /// auto is all GPUs that can be used, else the CPU; cuda is all NVIDIA GPUs, cuda:0 the first
        /// one, cuda:0/sms=32 a part of it with 32 of its multiprocessors. Several devices share one
        /// queue. 'vecmill devices' lists what there is.
        device: Devices = "auto",
        /// Which device gets which work: earliest-finish, weighted, least-loaded or round-robin
        ///
        /// docs/scheduling.md says when each is right.
        policy: Policy = "earliest-finish",
        /// Policies that take turns, for /metrics to compare: round-robin,earliest-finish
        policy_experiment: Option<Policies>,
        /// How long a turn of --policy-experiment is: 60s, 5m
        policy_window: Window = "60s",
        /// Number format to compute in: auto, float16, bfloat16, float32 or fp8
        ///
        /// auto is float16 on a GPU. The CPU computes in float32, whatever format the weights are
        /// stored in. fp8 (e4m3) is for the large matrix products on Hopper GPUs, such as the H100 and
        /// H200: faster there, and less exact; the first two layers, the last one and all else stay
        /// in float16.
        dtype: Dtype = "auto",
        /// Threads that tokenise [default: one per core]
        tokenization_workers: Option<NonZeroUsize>,
        /// Most memory for weights and batches on each device: bytes such as 2GiB, or a part such as 50%
        ///
        /// A part is one of the device's memory; on the CPU that is the machine's, or the container's
        /// or ulimit's if that is less: 'vecmill devices' shows it. Batches that would need more wait or
        /// are split. [default: 90 % of what is free at the start, and at least 128MiB less]
        memory_budget: Option<Budget>,
        /// When memory that batches no longer need is given back: 60s, 5m, 1h or never
        ///
        /// Given back sooner, others can have it; kept longer, the next burst finds it ready.
        memory_give_back: GiveBackAfter = "60s",
        /// Make memory ready before it is asked for, by what was wanted of late; false waits for it
        memory_predict: bool = "true",
        /// Run batches of practice before the first request, so that it need not wait for kernels to be compiled [default: true for serve, false for embed]
        warm_up: Option<bool>,
        /// Folder for a recording of the memory when a batch gets none
        ///
        /// 'vecmill-bench replay' shows what is in it. Names and sizes only, no texts.
        memory_recording_on_refusal: Option<Folder>,
        /// Most inputs that wait; more are refused as busy
        queue_capacity: NonZeroUsize = "16384",
    }
}

settings! {
    /// What is logged.
    LogSettings("Logging") {
        /// Least level logged: error, warn, info, debug, trace or off
        ///
        /// Levels by module work as well: info,vecmill_engine=debug.
        log_level: LogFilter = "info" where variable = "RUST_LOG",
    }
}

settings! {
    /// Where the server listens, and whom it answers.
    ServerSettings("Server") {
        /// Address to listen on; 0.0.0.0 opens the server to other machines
        ///
        /// The default answers this machine alone. To open it, listen on 0.0.0.0, or its like in IPv6, and set an
        /// --api-key.
        hostname: Host = "127.0.0.1",
        /// Port to listen on; 0 takes a free one
        port: u16 = "3000",
        /// Name of the model in answers [default: its id]
        served_model_name: Option<Name>,
        /// Key that requests must bring; repeat it to accept several
        ///
        /// Other users of the machine can see flags: prefer the variable, with commas between keys,
        /// or --api-key-file.
        api_key: Vec<ApiKey>,
        /// File with one such key per line; empty lines and lines with # are skipped
        api_key_file: Option<PathBuf>,
        /// What token ids in place of text are: model, refuse or cl100k_base
        ///
        /// model takes them for the model's own, and warns where they don't look it; refuse wants text.
        /// cl100k_base reads those that clients send to /v1/embeddings as OpenAI's, and embeds the text
        /// that they stand for: LangChain's OpenAIEmbeddings sends such unless it is given
        /// check_embedding_ctx_length=False.
        token_inputs: TokenInputs = "model",
        /// Web origin whose pages may call the server, or * for all; may be repeated
        cors_allow_origin: Vec<Origin>,
        /// Log JSON lines instead of text
        json_output: bool = "false",
        /// Open /admin/memory, which shows the devices' memory and has it given back
        ///
        /// GET /admin/memory shows it in numbers, as JSON. POST /admin/memory/trim gives back what is
        /// unused. GET /admin/memory/recording?device=cpu is a file for 'vecmill-bench replay'. They ask
        /// for an API key where there is one, and need one unless --hostname is this machine's alone.
        admin: bool = "false",
    }
}

settings! {
    /// How much the server accepts.
    LimitSettings("Limits") {
        /// Most inputs in one request
        max_client_batch_size: NonZeroUsize = "2048",
        /// Most requests at once; more are refused as busy
        max_concurrent_requests: NonZeroUsize = "512",
        /// Most open connections; more wait in the system's queue
        ///
        /// Each may hold 80 KiB, and all together half of --max-request-memory, so where that is small
        /// there are fewer.
        max_connections: NonZeroUsize = "8192",
        /// Largest request body: bytes such as 2MiB
        payload_limit: Bytes = "2000000",
        /// Cut inputs that are too long, unless a request says otherwise; false refuses them
        auto_truncate: bool = "true",
        /// How long a stop may take: 30s, 5m; requests that are not answered then are cut off
        ///
        /// 0s waits for nothing. The exit code tells whether any request was cut off: 4.
        shutdown_grace: Grace = "30s",
    }
}

settings! {
    /// How much memory requests take.
    RequestSettings("Limits") {
        /// Most memory for connections, requests and their replies: bytes such as 512MiB [default: an eighth of the machine's memory, 1GiB at most]
        ///
        /// It is the machine's memory, beside what --memory-budget is for; where the CPU's budget has
        /// no size of its own, it is less by this. A request holds its room from the first byte of its
        /// body to the last of its reply. One for which there is none is refused as busy, one that is
        /// too large for it with 413. docs/requests.md says what requests take.
        max_request_memory: Option<Bytes>,
    }
}
