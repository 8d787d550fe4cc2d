//! Settings: what flags, environment and file say, as the values that the commands work with.
//!
//! The parts, in the order in which a value meets them: the definitions in [`groups`], by the macro
//! of [`table`], say each [`setting`] once; [`flags`], [`mod@file`] and the environment are read as text and
//! merged by [`source`] ([`given`]); each text is parsed by its setting's type ([`value`], [`kind`], [`memory`], [`time`]); what
//! is wrong is collected, from all sources, and reported together ([`problem`]).
//!
//! The choice behind it: nobody should have to start a server five times to find five mistakes.

mod file;
pub(crate) mod flags;
mod given;
mod groups;
mod keys;
pub(crate) mod kind;
pub(crate) mod memory;
mod problem;
mod setting;
mod source;
mod table;
pub(crate) mod time;
pub(crate) mod value;

use std::net::IpAddr;

pub(crate) use flags::Flags;
pub(crate) use given::Environment;
pub(crate) use kind::LogFilter;
pub(crate) use problem::Problems;
use vecmill_engine::{Builder, Engine, ModelRef, Prompt, machine};

use given::Given;
use groups::{
    BatchSettings, ComputeSettings, LimitSettings, LogSettings, ModelSettings, RequestSettings,
    ServerSettings, UseSettings,
};
use kind::{Dtype, Host, Policies};
use setting::Setting;
use source::Source;
use table::Group;

/// The part of the machine's memory that requests may hold unless told otherwise, as a divisor.
const REQUESTS_PART: usize = 8;

/// The most of it, in bytes.
const REQUESTS_MOST: usize = 1 << 30;

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
    requests: RequestSettings,
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
    usage: UseSettings,
    batch: BatchSettings,
    compute: ComputeSettings,
}

/// The settings of `vecmill plan`, beside its own arguments.
#[derive(Debug, Clone)]
pub(crate) struct PlanSettings {
    model: ModelSettings,
    batch: BatchSettings,
    requests: RequestSettings,
    pub(crate) log: LogSettings,
}

/// The settings of `vecmill convert`, beside its own arguments.
#[derive(Debug, Clone)]
pub(crate) struct ConvertSettings {
    model: ModelSettings,
    pub(crate) log: LogSettings,
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
            group::<UseSettings>(),
            group::<ServerSettings>(),
            group::<LimitSettings>(),
            group::<RequestSettings>(),
            group::<BatchSettings>(),
            group::<ComputeSettings>(),
            group::<LogSettings>(),
        ]
    }

    fn resolve(given: &mut Given) -> Option<Self> {
        let (engine, server) = (EngineSettings::resolve(given), ServerSettings::resolve(given));
        let (limits, log) = (LimitSettings::resolve(given), LogSettings::resolve(given));
        let requests = RequestSettings::resolve(given);
        let engine = engine.map(EngineSettings::warm_unless_told);
        let server = server.map(|server| with_keys_of_file(server, given));
        server.iter().for_each(|server| server.check_admin(given));
        let (requests, log) = (requests?, log?);
        Some(Self { engine: engine?, server: server?, limits: limits?, requests, log })
    }
}

impl Settings for EmbedSettings {
    fn groups() -> Vec<(&'static str, &'static [Setting])> {
        vec![
            group::<ModelSettings>(),
            group::<UseSettings>(),
            group::<BatchSettings>(),
            group::<ComputeSettings>(),
            group::<LogSettings>(),
        ]
    }

    fn resolve(given: &mut Given) -> Option<Self> {
        let (engine, log) = (EngineSettings::resolve(given), LogSettings::resolve(given));
        Some(Self { engine: engine?, log: log? })
    }
}

impl Settings for PlanSettings {
    fn groups() -> Vec<(&'static str, &'static [Setting])> {
        vec![
            group::<ModelSettings>(),
            group::<BatchSettings>(),
            group::<RequestSettings>(),
            group::<LogSettings>(),
        ]
    }

    fn resolve(given: &mut Given) -> Option<Self> {
        let (model, batch) = (ModelSettings::settle(given), BatchSettings::resolve(given));
        let (requests, log) = (RequestSettings::resolve(given), LogSettings::resolve(given));
        Some(Self { model: model?, batch: batch?, requests: requests?, log: log? })
    }
}

impl PlanSettings {
    /// The most tokens that a batch may have.
    pub(crate) fn max_batch_tokens(&self) -> usize {
        self.batch.max_batch_tokens.most()
    }

    /// A builder for this model.
    pub(crate) fn builder(self) -> Builder {
        self.batch.apply(self.model.builder()).set_aside(self.requests.bytes())
    }
}

impl RequestSettings {
    /// The most bytes that requests may hold.
    fn bytes(&self) -> usize {
        let default = || {
            let share = machine::memory().map(|memory| memory.usable_bytes() / REQUESTS_PART);
            share.map_or(REQUESTS_MOST, |share| share.min(REQUESTS_MOST))
        };
        self.max_request_memory.map_or_else(default, |bytes| bytes.0)
    }
}

impl Settings for ConvertSettings {
    fn groups() -> Vec<(&'static str, &'static [Setting])> {
        vec![group::<ModelSettings>(), group::<LogSettings>()]
    }

    fn resolve(given: &mut Given) -> Option<Self> {
        let (model, log) = (ModelSettings::settle(given), LogSettings::resolve(given));
        Some(Self { model: model?, log: log? })
    }
}

impl ConvertSettings {
    /// A builder for this model.
    pub(crate) fn builder(self) -> Builder {
        self.model.builder()
    }
}

impl BatchSettings {
    fn apply(&self, builder: Builder) -> Builder {
        let mut builder = builder.max_batch_tokens(self.max_batch_tokens.most());
        if self.max_batch_tokens.0.is_none() {
            builder = builder.auto_batch_tokens(self.max_batch_latency.0);
        }
        match self.cpu_threads {
            Some(threads) => builder.cpu_threads(threads.get()),
            None => builder,
        }
    }
}

impl ModelSettings {
    fn settle(given: &mut Given) -> Option<Self> {
        let mut model = Self::resolve(given)?;
        if let ModelRef::Hub { revision, .. } = &mut model.model_id {
            let mut named = model.revision.take().map(|name| name.0);
            given.keep_stronger(("model_id", revision), ("revision", &mut named));
            *revision = revision.take().or(named);
        }
        Some(model)
    }

    fn builder(self) -> Builder {
        let mut builder = Engine::builder().model(self.model_id);
        if let Some(folder) = self.cache_dir {
            builder = builder.cache(folder);
        }
        if let Some(token) = self.hf_token {
            builder = builder.hub_token(token.reveal());
        }
        builder
    }
}

impl EngineSettings {
    fn resolve(given: &mut Given) -> Option<Self> {
        let (model, usage) = (ModelSettings::settle(given), UseSettings::resolve(given));
        let (batch, compute) = (BatchSettings::resolve(given), ComputeSettings::resolve(given));
        let mut usage = usage?;
        given.keep_stronger(
            ("default_prompt", &mut usage.default_prompt),
            ("default_prompt_name", &mut usage.default_prompt_name),
        );
        Some(Self { model: model?, usage, batch: batch?, compute: compute? })
    }

    fn warm_unless_told(mut self) -> Self {
        self.compute.warm_up.get_or_insert(true);
        self
    }

    /// An engine's builder with these settings.
    pub(crate) fn builder(self) -> Builder {
        let Self { model, usage, batch, compute } = self;
        let prompt = match (usage.default_prompt, usage.default_prompt_name) {
            (Some(text), _) => Prompt::Text(text),
            (None, Some(name)) => Prompt::Named(name.0),
            (None, None) => Prompt::Default,
        };
        let mut builder = batch
            .apply(model.builder())
            .default_prompt(prompt)
            .devices(compute.device.0)
            .policy(compute.policy.0)
            .queue_capacity(compute.queue_capacity.get())
            .memory_give_back(compute.memory_give_back.0)
            .memory_predict(compute.memory_predict);
        if let Some(Policies(policies)) = compute.policy_experiment {
            builder = builder.policy_experiment(policies, compute.policy_window.0);
        }
        if let Some(warm_up) = compute.warm_up {
            builder = builder.warm_up(warm_up);
        }
        if let Some(pooling) = usage.pooling {
            builder = builder.pooling(pooling);
        }
        if let Some(threads) = compute.tokenization_workers {
            builder = builder.tokenization_workers(threads.get());
        }
        if let Dtype(Some(format)) = compute.dtype {
            builder = builder.dtype(format);
        }
        if let Some(budget) = compute.memory_budget {
            builder = builder.memory_budget(budget.0);
        }
        if let Some(folder) = compute.memory_recording_on_refusal {
            builder = builder.memory_recording_on_refusal(folder.0);
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

    /// A builder of the engine behind the server.
    pub(crate) fn builder(&self) -> Builder {
        self.engine.clone().builder().set_aside(self.requests.bytes())
    }

    /// How the server behaves.
    pub(crate) fn server(&self) -> vecmill_server::Settings {
        let Self { server, limits, requests, .. } = self;
        vecmill_server::Settings {
            max_client_batch_size: limits.max_client_batch_size.get(),
            max_concurrent_requests: limits.max_concurrent_requests.get(),
            max_connections: limits.max_connections.get(),
            max_request_memory: requests.bytes(),
            shutdown_grace: limits.shutdown_grace.0,
            payload_limit: limits.payload_limit.0,
            auto_truncate: limits.auto_truncate,
            token_inputs: server.token_inputs,
            api_keys: server.api_key.clone(),
            admin: server.admin,
            served_model_name: server.served_model_name.clone().map(|it| it.0),
            cors_allow_origin: server.cors_allow_origin.iter().map(|it| it.0.clone()).collect(),
            ..vecmill_server::Settings::default()
        }
    }
}

impl ServerSettings {
    /// Refuses to show the devices' memory to everybody.
    fn check_admin(&self, given: &mut Given) {
        let Host(host) = &self.hostname;
        let local = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let open = self.api_key.is_empty() && self.api_key_file.is_none();
        if self.admin && open && !local {
            let message = format!(
                "expected an --api-key beside it, since {host} can be reached from other machines, \
                 or a --hostname that can't, such as 127.0.0.1"
            );
            given.problem("admin", message);
        }
    }
}

/// `server` with the keys of its key file beside its own.
fn with_keys_of_file(mut server: ServerSettings, given: &mut Given) -> ServerSettings {
    let Some(path) = &server.api_key_file else { return server };
    let keys = match keys::read(path) {
        Ok(keys) => keys,
        Err(problems) => {
            problems.into_iter().for_each(|problem| given.problem("api_key_file", problem));
            return server;
        }
    };
    server.api_key.extend(keys);
    server
}

#[cfg(test)]
mod tests;
