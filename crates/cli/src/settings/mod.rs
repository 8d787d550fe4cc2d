//! Settings: what flags, environment and file say, as the values that the commands work with.
//!
//! The parts, in the order in which a value meets them: the definitions below, by the macro of
//! [`table`], say each setting once; [`flags`], [`file`] and the environment are read as text and
//! merged ([`given`]); each text is parsed by its setting's type ([`value`], [`kind`]); what is
//! wrong is collected, from all sources, and reported together ([`problem`]).
//!
//! The choice behind it: nobody should have to start a server five times to find five mistakes.

mod file;
pub(crate) mod flags;
mod given;
mod kind;
mod problem;
mod table;
mod value;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use vecmill_engine::{Builder, Engine, Pooling, Prompt, fetch::ModelRef};
use vecmill_server::ApiKey;

pub(crate) use flags::Flags;
pub(crate) use given::Environment;
pub(crate) use kind::{LogFilter, Secret};
pub(crate) use problem::Problems;

use given::Given;
use kind::{Bytes, Dtype, Host, MemoryBudget, Name, Origin};
use problem::Source;
use table::{Group, Setting, settings};
use value::Value;

settings! {
    /// Which model, and how it is used.
    ModelSettings("Model") {
        /// Model to run: its id on the Hugging Face hub, or a folder with its files
        ///
        /// owner/name@revision is one way to name a revision, --revision the other.
        model_id: ModelRef = "sentence-transformers/all-MiniLM-L6-v2",
        /// Branch, tag or commit of the model on the hub [default: main]
        ///
        /// A folder has none, so it is then ignored.
        revision: Option<Name>,
        /// Folder that keeps fetched models [default: the user's cache folder]
        cache_dir: Option<PathBuf> where alias = "huggingface-hub-cache"
            where variable = "VECMILL_CACHE",
        /// Token for private models on the hub
        hf_token: Option<Secret> where variable = "HF_TOKEN",
        /// How token vectors become one: mean, cls, max or last-token [default: the model's own]
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
    /// What the model computes with.
    ComputeSettings("Devices and memory") {
        /// Number format: auto or float32
        ///
        /// The CPU computes in float32, whatever format the weights are stored in.
        dtype: Dtype = "auto",
        /// Threads that compute [default: one per core]
        cpu_threads: Option<NonZeroUsize>,
        /// Threads that tokenise [default: one per core]
        tokenization_workers: Option<NonZeroUsize>,
        /// Most memory for weights and batches: bytes such as 2GiB, or a part such as 50%
        ///
        /// A part is one of the machine's memory, or of the container's if that is less. Batches that
        /// would need more wait or are split. [default: what the machine has]
        memory_budget: Option<MemoryBudget>,
        /// Most tokens that run in one batch
        max_batch_tokens: NonZeroUsize = "16384",
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
        /// The default answers this machine alone. To open it, listen on 0.0.0.0 (or [::]) and set an
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
        /// Web origin whose pages may call the server, or * for all; may be repeated
        cors_allow_origin: Vec<Origin>,
        /// Log JSON lines instead of text
        json_output: bool = "false",
    }
}

settings! {
    /// How much the server accepts.
    LimitSettings("Limits") {
        /// Most inputs in one request
        max_client_batch_size: NonZeroUsize = "2048",
        /// Most requests at once; more are refused as busy
        max_concurrent_requests: NonZeroUsize = "512",
        /// Largest request body: bytes such as 2MiB
        payload_limit: Bytes = "2000000",
        /// Cut inputs that are too long, unless a request says otherwise; false refuses them
        auto_truncate: bool = "true",
    }
}

/// The settings of one command.
pub(crate) trait Settings: Sized {
    /// The headings and definitions of its groups.
    fn groups() -> Vec<(&'static str, &'static [Setting])>;
    /// Reads them, noting in `given` what can't be used.
    fn resolve(given: &mut Given) -> Option<Self>;
}

/// The settings of `vecmill serve`: all there are.
#[derive(Debug, Clone)]
pub(crate) struct ServeSettings {
    pub(crate) engine: EngineSettings,
    pub(crate) server: ServerSettings,
    pub(crate) limits: LimitSettings,
    pub(crate) log: LogSettings,
}

/// The settings of `vecmill embed`, beside its own arguments.
#[derive(Debug, Clone)]
pub(crate) struct EmbedSettings {
    pub(crate) engine: EngineSettings,
    pub(crate) log: LogSettings,
}

/// The settings of the engine.
#[derive(Debug, Clone)]
pub(crate) struct EngineSettings {
    model: ModelSettings,
    compute: ComputeSettings,
}

/// Reads the settings `S` from all sources. With them come warnings for the log.
pub(crate) fn read<S: Settings>(
    flags: Flags<S>,
    environment: &Environment,
) -> Result<(S, Vec<String>), Problems> {
    let known: Vec<&'static Setting> =
        ServeSettings::groups().into_iter().flat_map(|(_, settings)| settings).collect();
    let named = environment.get("VECMILL_CONFIG").filter(|path| !path.is_empty());
    let file = match (flags.config, named) {
        (Some(path), _) => Some((Source::Flag("config".to_owned()), path)),
        (None, Some(path)) => Some((Source::Variable("VECMILL_CONFIG".to_owned()), path.into())),
        (None, None) => None,
    };
    let mut given = Given::collect(&known, flags.texts, environment, file);
    let settings = S::resolve(&mut given);
    Ok((given.finish(settings)?, given::suspects(&known, environment)))
}

fn group<G: Group>() -> (&'static str, &'static [Setting]) {
    (G::HEADING, G::SETTINGS)
}

impl Settings for ServeSettings {
    fn groups() -> Vec<(&'static str, &'static [Setting])> {
        vec![
            group::<ModelSettings>(),
            group::<ServerSettings>(),
            group::<LimitSettings>(),
            group::<ComputeSettings>(),
            group::<LogSettings>(),
        ]
    }

    fn resolve(given: &mut Given) -> Option<Self> {
        let (engine, server) = (EngineSettings::resolve(given), ServerSettings::resolve(given));
        let (limits, log) = (LimitSettings::resolve(given), LogSettings::resolve(given));
        let server = server.map(|server| with_keys_of_file(server, given));
        Some(Self { engine: engine?, server: server?, limits: limits?, log: log? })
    }
}

impl Settings for EmbedSettings {
    fn groups() -> Vec<(&'static str, &'static [Setting])> {
        vec![group::<ModelSettings>(), group::<ComputeSettings>(), group::<LogSettings>()]
    }

    fn resolve(given: &mut Given) -> Option<Self> {
        let (engine, log) = (EngineSettings::resolve(given), LogSettings::resolve(given));
        Some(Self { engine: engine?, log: log? })
    }
}

impl EngineSettings {
    fn resolve(given: &mut Given) -> Option<Self> {
        let (model, compute) = (ModelSettings::resolve(given), ComputeSettings::resolve(given));
        let mut model = model?;
        if let ModelRef::Hub { revision, .. } = &mut model.model_id {
            let mut named = model.revision.take().map(|name| name.0);
            given.keep_stronger(("model_id", revision), ("revision", &mut named));
            *revision = revision.take().or(named);
        }
        given.keep_stronger(
            ("default_prompt", &mut model.default_prompt),
            ("default_prompt_name", &mut model.default_prompt_name),
        );
        Some(Self { model, compute: compute? })
    }

    /// An engine's builder with these settings.
    pub(crate) fn builder(self) -> Builder {
        let Self { model, compute } = self;
        // Both formats mean float32 on the CPU, the only device so far.
        let (Dtype::Auto | Dtype::Float32) = compute.dtype;
        let prompt = match (model.default_prompt, model.default_prompt_name) {
            (Some(text), _) => Prompt::Text(text),
            (None, Some(name)) => Prompt::Named(name.0),
            (None, None) => Prompt::Default,
        };
        let mut builder = Engine::builder()
            .model(model.model_id)
            .default_prompt(prompt)
            .max_batch_tokens(compute.max_batch_tokens.get())
            .queue_capacity(compute.queue_capacity.get());
        if let Some(folder) = model.cache_dir {
            builder = builder.cache(folder);
        }
        if let Some(token) = model.hf_token {
            builder = builder.hub_token(token.reveal());
        }
        if let Some(pooling) = model.pooling {
            builder = builder.pooling(pooling);
        }
        if let Some(threads) = compute.cpu_threads {
            builder = builder.cpu_threads(threads.get());
        }
        if let Some(threads) = compute.tokenization_workers {
            builder = builder.tokenization_workers(threads.get());
        }
        if let Some(budget) = compute.memory_budget {
            builder = builder.memory_budget(budget.0);
        }
        builder
    }
}

impl ServeSettings {
    /// Where to listen, as `host:port`.
    pub(crate) fn address(&self) -> String {
        let ServerSettings { hostname, port, .. } = &self.server;
        let Host(host) = hostname;
        // Brackets tell an IPv6 address from the port.
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// How the server behaves.
    pub(crate) fn server(&self) -> vecmill_server::Settings {
        let Self { server, limits, .. } = self;
        vecmill_server::Settings {
            max_client_batch_size: limits.max_client_batch_size.get(),
            max_concurrent_requests: limits.max_concurrent_requests.get(),
            payload_limit: limits.payload_limit.0,
            auto_truncate: limits.auto_truncate,
            api_keys: server.api_key.clone(),
            served_model_name: server.served_model_name.clone().map(|it| it.0),
            cors_allow_origin: server.cors_allow_origin.iter().map(|it| it.0.clone()).collect(),
            ..vecmill_server::Settings::default()
        }
    }
}

/// `server` with the keys of its key file beside its own.
fn with_keys_of_file(mut server: ServerSettings, given: &mut Given) -> ServerSettings {
    let Some(path) = &server.api_key_file else { return server };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            let message = format!("{} can't be read: {error}", path.display());
            given.problem("api_key_file", message);
            return server;
        }
    };
    let before = server.api_key.len();
    for (line, text) in (1..).zip(text.lines().map(str::trim)) {
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        match ApiKey::parse(text) {
            Some(key) => server.api_key.push(key),
            None => {
                let expected = ApiKey::EXPECTED;
                let message = format!("{}:{line}: expected {expected}", path.display());
                given.problem("api_key_file", message);
            }
        }
    }
    if server.api_key.len() == before {
        // An empty file must not open the server to everybody.
        given.problem("api_key_file", format!("{} has no key in it", path.display()));
    }
    server
}

#[cfg(test)]
mod tests;
