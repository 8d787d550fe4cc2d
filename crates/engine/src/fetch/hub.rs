//! The Hugging Face hub: its cache on this machine, and its servers.
//!
//! One short request with tight limits asks for the model's file list before anything else, so that
//! an unreachable hub is noticed within seconds. The files then come through the `hf-hub` crate,
//! into the cache that the hub's other tools share. That crate sets no time limits of its own, so
//! it works on a thread that is given up when no bytes arrive.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};
use serde_json::Value;

use super::files::{Folders, MODULES, ModelFiles};
use super::{Progress, Stage};

const ENDPOINT: &str = "https://huggingface.co";
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A download that stands still for this long has failed.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The most of an answer about a model that is read.
const ANSWER_LIMIT: u64 = 8 << 20;

/// Why the hub gave no model.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HubError {
    /// It answered, and another source would not change the answer.
    Refused(String),
    /// There was no answer, or none of the hub's.
    Unreachable(String),
}

/// Shown to the hub and to nobody else.
pub(super) struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The hub, as the environment sets it up.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) endpoint: String,
    /// The cache that the hub's tools share.
    pub(super) cache: Option<PathBuf>,
    pub(super) token: Option<Token>,
    pub(super) offline: bool,
    pub(super) stall: Duration,
}

impl fmt::Display for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hugging Face hub ({})", self.endpoint)
    }
}

/// What the hub says about a model.
struct Listing {
    commit: String,
    files: Vec<String>,
}

impl Hub {
    /// Reads the variables that the hub's own tools read. A `token` given goes before theirs.
    pub(super) fn from_env(token: Option<String>) -> Self {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.trim().is_empty());
        let caches = || {
            let stated = set("XDG_CACHE_HOME").map(PathBuf::from);
            stated.or_else(|| Some(dirs::home_dir()?.join(".cache")))
        };
        let home =
            set("HF_HOME").map(PathBuf::from).or_else(|| Some(caches()?.join("huggingface")));
        let cache = set("HF_HUB_CACHE").map(PathBuf::from);
        let token = token
            .or_else(|| set("HF_TOKEN"))
            .or_else(|| fs::read_to_string(home.as_ref()?.join("token")).ok())
            .map(|token| token.trim().to_owned());
        let offline = set("HF_HUB_OFFLINE").is_some_and(|value| {
            matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on")
        });
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: cache.or_else(|| Some(home?.join("hub"))),
            token: token.filter(|token| !token.is_empty()).map(Token),
            offline,
            stall: STALL_TIMEOUT,
        }
    }

    /// The model's folder in the hub's cache, if all of the model is there.
    ///
    /// Tools that need fewer files leave partial folders there. One without `modules.json` counts
    /// only where the cache notes that the model has none, or where the hub can't be asked.
    pub(super) fn snapshot(&self, id: &str, revision: &str) -> Option<PathBuf> {
        let folder = self.cache.as_ref()?.join(repository(id, revision).folder_name());
        let commit = match fs::read_to_string(folder.join("refs").join(revision)) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => revision.to_owned(),
        };
        if !is_commit(&commit) {
            return None;
        }
        let snapshot = folder.join("snapshots").join(&commit);
        let is_certain = self.offline
            || snapshot.join(MODULES).exists()
            || folder.join(".no_exist").join(&commit).join(MODULES).exists();
        (is_certain && ModelFiles::of(&snapshot).is_ok()).then_some(snapshot)
    }

    /// Downloads the model into the hub's cache (or `spare`, if that can't be written to) and gives
    /// its folder there.
    pub(super) fn download(
        &self,
        id: &str,
        revision: &str,
        spare: &Path,
        progress: &Progress,
    ) -> Result<PathBuf, HubError> {
        if self.offline {
            return Err(HubError::Unreachable("HF_HUB_OFFLINE is set".to_owned()));
        }
        let listing = self.ask(id, revision)?;
        let repo = repository(id, &listing.commit);
        let cache = Cache::new(self.writable_cache(&repo, spare));
        let snapshot = cache.repo(repo.clone()).pointer_path(&listing.commit);
        let there = |file: &str| listing.files.iter().any(|name| name == file);
        let transfer = Transfer { hub: self, cache, repo, progress };

        let mut modules = None;
        if there(MODULES) {
            transfer.run(&snapshot, vec![MODULES.to_owned()])?;
            let contents = fs::read(snapshot.join(MODULES));
            modules = Some(contents.map_err(|error| HubError::Unreachable(error.to_string()))?);
        }
        let folders = Folders::parse(modules.as_deref()).map_err(HubError::Refused)?;
        let wanted: Vec<_> =
            listing.files.iter().filter(|file| folders.want(file)).cloned().collect();
        if !wanted.iter().any(|file| file.ends_with(".safetensors")) {
            let reason =
                "it has no weights in safetensors format (others are not read): convert them";
            return Err(HubError::Refused(reason.to_owned()));
        }
        transfer.run(&snapshot, wanted)?;
        ModelFiles::of(&snapshot).map_err(HubError::Refused)?;
        let named = transfer.cache.repo(repository(id, revision));
        if let Err(error) = named.create_ref(&listing.commit) {
            tracing::debug!(%error, "the hub's cache can't note the revision");
        }
        Ok(snapshot)
    }

    /// Asks which files the model has.
    fn ask(&self, id: &str, revision: &str) -> Result<Listing, HubError> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .timeout_resolve(Some(RESOLVE_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(ANSWER_TIMEOUT))
            .build()
            .into();
        let url = format!("{}/api/{}", self.endpoint, repository(id, revision).api_url());
        let mut request = agent.get(url);
        if let Some(Token(token)) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let unreachable = |error: ureq::Error| HubError::Unreachable(self.redacted(&error));
        let mut response = request.call().map_err(unreachable)?;
        let body = response.body_mut().with_config().limit(ANSWER_LIMIT).read_to_vec();
        let body = body.map_err(unreachable)?;
        let status = response.status().as_u16();
        let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok());
        if !response.status().is_success() {
            let is_hub = code.is_some() || body.starts_with(b"{");
            return Err(refusal(status, code, is_hub, revision));
        }
        let answer: Option<Value> = serde_json::from_slice(&body).ok();
        answer.as_ref().and_then(Listing::parse).ok_or_else(|| {
            HubError::Unreachable(
                "what answered is not the hub: its answer has no file list".to_owned(),
            )
        })
    }

    /// The first cache in which the model's folder can be made.
    fn writable_cache(&self, repo: &Repo, spare: &Path) -> PathBuf {
        let blobs = |cache: &Path| cache.join(repo.folder_name()).join("blobs");
        let writable = |cache: &&PathBuf| fs::create_dir_all(blobs(cache)).is_ok();
        self.cache.iter().find(writable).map_or_else(|| spare.to_owned(), PathBuf::clone)
    }

    /// The words of an error, without the token should it ever be among them.
    fn redacted(&self, error: &impl ToString) -> String {
        let words = error.to_string();
        match &self.token {
            Some(Token(token)) => words.replace(token, "…"),
            None => words,
        }
    }
}

impl Listing {
    fn parse(answer: &Value) -> Option<Self> {
        let commit = answer.get("sha")?.as_str().filter(|sha| is_commit(sha))?.to_owned();
        let files = answer.get("siblings")?.as_array()?.iter();
        let name = |file: &Value| Some(file.get("rfilename")?.as_str()?.to_owned());
        Some(Self { commit, files: files.filter_map(name).collect() })
    }
}

/// Removes a file of the hub's cache, and what it links to.
pub(super) fn discard(file: &Path) {
    let blob = file.canonicalize();
    for path in blob.iter().map(PathBuf::as_path).chain([file]) {
        if let Err(error) = fs::remove_file(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a damaged file can't be removed");
        }
    }
}

fn repository(id: &str, revision: &str) -> Repo {
    Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned())
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What a status other than success means. The hub says why, in a header or in JSON; what has
/// neither is taken for a proxy. It says 401 about models that don't exist, unless it is shown a
/// token.
fn refusal(status: u16, code: Option<&str>, is_hub: bool, revision: &str) -> HubError {
    let reason = match (status, code) {
        (_, Some("RevisionNotFound")) => format!("the hub has no revision '{revision}' of it"),
        (_, Some("GatedRepo")) => {
            "its owners ask for consent first: give it on the model's page and set HF_TOKEN".into()
        }
        (404, _) if is_hub => "the hub has no such model: check the name".into(),
        (401 | 403, _) if is_hub => {
            "the hub has no such model, or it is private: check the name, or set HF_TOKEN".into()
        }
        _ => return HubError::Unreachable(format!("HTTP status {status}, perhaps a proxy's")),
    };
    HubError::Refused(reason)
}

/// Downloads of one commit.
struct Transfer<'a> {
    hub: &'a Hub,
    cache: Cache,
    repo: Repo,
    progress: &'a Progress,
}

/// What the downloading thread reports.
enum Event {
    Progress(Stage),
    Done(Result<(), String>),
}

impl Transfer<'_> {
    /// Downloads those of `names` that `snapshot` doesn't have yet.
    fn run(&self, snapshot: &Path, mut names: Vec<String>) -> Result<(), HubError> {
        names.retain(|name| !snapshot.join(name).exists());
        let failed = |reason: String| HubError::Unreachable(reason);
        let api = self.api().map_err(failed)?;
        let (sender, events) = mpsc::channel();
        let repo = self.repo.clone();
        thread::Builder::new()
            .name("vecmill-fetch".to_owned())
            .spawn(move || {
                let result = download_all(&api, repo, &names, &sender);
                // Nobody listens any more when the download was given up.
                drop(sender.send(Event::Done(result)));
            })
            .map_err(|error| failed(format!("a thread could not be started: {error}")))?;
        loop {
            match events.recv_timeout(self.hub.stall) {
                Ok(Event::Progress(stage)) => (self.progress)(stage),
                Ok(Event::Done(result)) => {
                    return result.map_err(|words| failed(self.hub.redacted(&words)));
                }
                Err(RecvTimeoutError::Timeout) => {
                    let seconds = self.hub.stall.as_secs();
                    return Err(failed(format!("the download stood still for {seconds} s")));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(failed("the download broke off".to_owned()));
                }
            }
        }
    }

    fn api(&self) -> Result<Api, String> {
        ApiBuilder::from_cache(self.cache.clone())
            .with_endpoint(self.hub.endpoint.clone())
            .with_token(self.hub.token.as_ref().map(|Token(token)| token.clone()))
            .with_retries(2)
            .build()
            .map_err(|error| self.hub.redacted(&error))
    }
}

fn download_all(
    api: &Api,
    repo: Repo,
    names: &[String],
    events: &Sender<Event>,
) -> Result<(), String> {
    let repo = api.repo(repo);
    for name in names {
        let meter = Meter { events: events.clone(), file: name.clone(), done: 0, total: None };
        let result = repo.download_with_progress(name, meter);
        result.map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

/// Turns `hf-hub`'s reports into events.
struct Meter {
    events: Sender<Event>,
    file: String,
    done: u64,
    total: Option<u64>,
}

impl Meter {
    fn report(&self) {
        let (file, done, total) = (self.file.clone(), self.done, self.total);
        drop(self.events.send(Event::Progress(Stage::Fetching { file, done, total })));
    }
}

impl hf_hub::api::Progress for Meter {
    fn init(&mut self, size: usize, _name: &str) {
        self.done = 0;
        self.total = Some(size as u64);
        self.report();
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        self.report();
    }

    fn finish(&mut self) {
        self.report();
    }
}
