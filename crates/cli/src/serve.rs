//! `vecmill serve`: listen, load, serve, stop.
//!
//! The port is bound before the model is loaded, so whoever supervises the server can ask it how
//! far it is. Loading has a thread of its own, which a stop does not wait for.

use std::net::SocketAddr;

use tokio::sync::oneshot;
use vecmill_engine::{Builder, Engine, Info, StartError, Task, machine};
use vecmill_server::{Loading, Server};

use crate::arguments::ServeArguments;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::settings::{self, Environment, ServeSettings};
use crate::{logging, signals, stderr};

/// Files that are open beside connections: the model's, devices, the system's own.
const OTHER_FILES: u64 = 128;

/// What comes of loading: the engine, or why there is none.
type Loaded = Result<Engine, StartError>;

/// Serves until a signal ends it.
pub(crate) fn run(
    arguments: ServeArguments,
    environment: &Environment,
    progress: &Progress,
) -> Result<(), Failure> {
    let (settings, warnings) = settings::read(arguments.flags, environment)?;
    logging::start(&settings.log.log_level, settings.server.json_output, progress, &warnings);
    let runtime =
        logging::or_end(|| tokio::runtime::Builder::new_multi_thread().enable_all().build())
            .map_err(Failure::System)?;
    let stopped = runtime.block_on(serve(settings, progress));
    runtime.shutdown_background();
    stopped
}

async fn serve(settings: ServeSettings, progress: &Progress) -> Result<(), Failure> {
    let [signal, second] = signals::listen(None).map_err(Failure::System)?;
    let observed = vecmill_server::Settings { lost_log_lines: stderr::lost(), ..settings.server() };
    let (server, loading) = Server::bind(settings.address(), within_open_files(observed))?;
    let greeting = Greeting::new(&settings, server.local_addr(), progress);
    greeting.listening();
    let loaded = load(settings.builder().on_progress(progress.of_start()), loading)?;
    let mut outcome = Ok(None);
    let shutdown = async { outcome = until_stopped(loaded, signal, &greeting).await };
    let stopped = server.run(shutdown, async { drop(second.await) }).await?;
    let engine = outcome?;
    if stopped.cut_off > 0 {
        // Nobody waits any more for what the engine still does: it ends with the process.
        std::mem::forget(engine);
        return Err(Failure::CutOff { requests: stopped.cut_off });
    }
    if let Some(engine) = engine {
        engine.shutdown();
    }
    Ok(())
}

/// The settings with no more connections than this process may have files open.
fn within_open_files(mut settings: vecmill_server::Settings) -> vecmill_server::Settings {
    let Some(limit) = machine::raise_open_files() else { return settings };
    let room = limit - OTHER_FILES.min(limit / 2);
    let room = usize::try_from(room).unwrap_or(usize::MAX).max(1);
    if room < settings.max_connections {
        let max_connections = settings.max_connections;
        tracing::warn!(
            open_files = limit,
            max_connections,
            "the limit of open files (ulimit -n) allows {room} connections at once"
        );
        settings.max_connections = room;
    }
    settings
}

/// Loads on a thread of its own and puts the model into `loading`.
fn load(builder: Builder, loading: Loading) -> Result<oneshot::Receiver<Loaded>, Failure> {
    let (sender, receiver) = oneshot::channel();
    let load = move || {
        let loaded = builder.start();
        match &loaded {
            Ok(engine) => loading.ready(engine.clone()),
            Err(error) => loading.failed(error.to_string()),
        }
        // Nobody waits any more if the server was stopped meanwhile.
        let _ = sender.send(loaded);
    };
    std::thread::Builder::new().name("load".to_owned()).spawn(load).map_err(Failure::System)?;
    Ok(receiver)
}

/// Waits for the signal to stop, or for the model to fail; gives the engine if there is one.
async fn until_stopped(
    loading: oneshot::Receiver<Loaded>,
    mut signal: oneshot::Receiver<()>,
    greeting: &Greeting<'_>,
) -> Result<Option<Engine>, Failure> {
    let engine = tokio::select! {
        _ = &mut signal => None,
        loaded = loading => Some(loaded.map_err(|_| Failure::LoaderPanicked)??),
    };
    if let Some(engine) = &engine {
        greeting.ready(engine.info());
        let _ = signal.await;
    }
    Ok(engine)
}

/// What the server says when it starts: a line for people, or an event in a JSON log.
struct Greeting<'a> {
    progress: &'a Progress,
    url: String,
    needs_key: bool,
    model_name: Option<String>,
    json: bool,
}

impl<'a> Greeting<'a> {
    fn new(settings: &ServeSettings, address: SocketAddr, progress: &'a Progress) -> Self {
        let ip = address.ip();
        // Nobody can connect to "all addresses".
        let host = if ip.is_unspecified() { "localhost".to_owned() } else { bracketed(&address) };
        Self {
            progress,
            url: format!("http://{host}:{}", address.port()),
            needs_key: !settings.server.api_key.is_empty(),
            model_name: settings.server.served_model_name.clone().map(|name| name.0),
            json: settings.server.json_output,
        }
    }

    fn listening(&self) {
        if !self.json {
            let version = env!("CARGO_PKG_VERSION");
            self.progress.say(format_args!("vecmill {version} on {}, loading the model", self.url));
        }
    }

    fn ready(&self, info: &Info) {
        let devices: Vec<String> = info
            .devices
            .iter()
            .map(|device| format!("{} ({})", device.name, device.description))
            .collect();
        let devices = devices.join(", ");
        if self.json {
            tracing::info!(url = self.url, model = info.model_id, devices, "ready");
            return;
        }
        let Self { url, .. } = self;
        let model = self.model_name.as_ref().unwrap_or(&info.model_id);
        let key = if self.needs_key { " -H \"authorization: Bearer $API_KEY\"" } else { "" };
        let (gives, path, asks) = example(info);
        self.progress.say(format_args!(
            "ready: {model}, {gives}, on {devices}\n\
             try: curl {url}{path}{key} -H 'content-type: application/json' \
             -d '{{\"model\": \"{model}\", {asks}}}'",
        ));
    }
}

/// What the model gives, and a request to try: its path and its fields.
fn example(info: &Info) -> (String, &'static str, &'static str) {
    match &info.task {
        Task::Score { labels, .. } if labels.len() == 1 => (
            "scores of relevance".to_owned(),
            "/v1/rerank",
            r#""query": "capital of Kenya", "documents": ["Lagos", "Nairobi"]"#,
        ),
        Task::Score { labels, .. } => {
            let gives = format!("scores of {} labels", labels.len());
            (gives, "/predict", r#""inputs": "a quick brown fox""#)
        }
        _ => {
            let gives = format!("{} dimensions", info.dimensions);
            (gives, "/v1/embeddings", r#""input": "a quick brown fox""#)
        }
    }
}

/// The address without its port, as in a URL.
fn bracketed(address: &SocketAddr) -> String {
    match address {
        SocketAddr::V4(address) => address.ip().to_string(),
        SocketAddr::V6(address) => format!("[{}]", address.ip()),
    }
}
