//! The Hugging Face hub: its cache on this machine, and its servers.
//!
//! - [`Hub`] is the hub as the environment sets it up; it plans what is fetched.
//! - `client` asks, follows redirects and is patient; `answer` has the words for whatever comes back.
//! - `listing` knows a model's files, `transfer` brings one, `store` is the cache that the hub's
//!   other tools share.
//!
//! One short request with tight limits comes before anything else, so that an unreachable hub is
//! noticed within seconds. Once the hub has answered, whatever may pass is tried again
//! ([decision 11](https://github.com/vecmill/vecmill/blob/main/docs/decisions/0011-own-hub-client.md)).

mod answer;
mod client;
mod listing;
mod store;
mod transfer;

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vecmill_model::{MODULES_FILE, WEIGHTS_FILES};

pub(super) use client::Patience;
pub(super) use store::{discard, expected};

use answer::{Asked, Setback};
use client::Client;
use listing::Listing;
use store::Store;
use transfer::Transfer;

use super::files::{Folders, ModelFiles};
use super::{FetchError, Progress};
use vecmill_model::disk::{self, NoRoom};

const ENDPOINT: &str = "https://huggingface.co";
/// A download that stands still for this long is broken off.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
const TOKEN_LIMIT: u64 = 64 << 10;

/// Why the hub gave no model.
#[derive(Debug, thiserror::Error)]
pub(super) enum HubError {
    /// It answered, and another source would not change the answer.
    #[error("{0}")]
    Refused(String),
    /// There was no answer, or none of the hub's, or it limits requests.
    #[error("{0}")]
    Unreachable(String),
    /// What came can't be kept on this machine, or is not what was published.
    #[error(transparent)]
    Local(FetchError),
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
    /// How long a download may stand still.
    pub(super) stall: Duration,
    pub(super) patience: Patience,
}

impl fmt::Display for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hugging Face hub ({})", self.endpoint)
    }
}

impl Hub {
    /// Reads the variables that the hub's own tools read. A `token` given goes before theirs.
    pub(super) fn from_env(token: Option<String>) -> Self {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.trim().is_empty());
        // Names of folders need not be text.
        let folder =
            |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let caches = || folder("XDG_CACHE_HOME").or_else(|| Some(dirs::home_dir()?.join(".cache")));
        let home = folder("HF_HOME").or_else(|| Some(caches()?.join("huggingface")));
        let saved = |home: &PathBuf| {
            let token = disk::read_regular(&home.join("token"), TOKEN_LIMIT).ok()?;
            String::from_utf8(token).ok()
        };
        let token = token
            .or_else(|| set("HF_TOKEN"))
            .or_else(|| home.as_ref().and_then(saved))
            .map(|token| token.trim().to_owned());
        let offline = set("HF_HUB_OFFLINE").is_some_and(|value| {
            matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on")
        });
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Self {
            endpoint: endpoint.trim().trim_end_matches('/').to_owned(),
            cache: folder("HF_HUB_CACHE").or_else(|| Some(home?.join("hub"))),
            token: token.filter(|token| !token.is_empty()).map(Token),
            offline,
            stall: STALL_TIMEOUT,
            patience: Patience::default(),
        }
    }

    /// The model's folder in the hub's cache, if all of the model is there.
    pub(super) fn snapshot(&self, id: &str, revision: &str) -> Option<PathBuf> {
        Store::new(self.cache.as_ref()?, id).find(revision, self.offline)
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
        let client = Client::new(self, progress);
        let listing = self.list(&client, id, revision)?;
        let store = self.writable_store(id, spare).map_err(HubError::Local)?;
        let commit = listing.commit.as_str();
        let address = format!("{}/{id}/resolve/{commit}", self.endpoint);
        let transfer = Transfer { client: &client, store: &store, address, commit };

        let mut modules = None;
        if let Some(entry) = listing.files.iter().find(|entry| entry.name == MODULES_FILE) {
            if !transfer.has(entry) {
                transfer.run(entry)?;
            }
            let path = store.snapshot(commit).join(MODULES_FILE);
            let contents = disk::read_regular(&path, super::files::JSON_LIMIT);
            modules = Some(contents.map_err(FetchError::cache(&path)).map_err(HubError::Local)?);
        }
        let folders = Folders::parse(modules.as_deref()).map_err(HubError::Refused)?;
        let listed: Vec<_> = listing.files.iter().map(|entry| entry.name.as_str()).collect();
        let mut wanted: Vec<_> =
            listing.files.iter().filter(|entry| folders.want(&entry.name, &listed)).collect();
        let is_weights =
            |name: &str| [".safetensors", ".bin"].iter().any(|end| name.ends_with(end));
        if !wanted.iter().any(|entry| is_weights(&entry.name)) {
            let files = WEIGHTS_FILES.concat().join(", ");
            let reason = format!("it has none of the files of weights that are read: {files}");
            return Err(HubError::Refused(reason));
        }
        wanted.retain(|entry| !transfer.has(entry));
        let needed = wanted.iter().filter_map(|entry| entry.size).sum();
        NoRoom::check(store.folder(), needed)
            .map_err(|full| HubError::Local(FetchError::NoRoom(full)))?;
        for entry in wanted {
            transfer.run(entry)?;
        }
        let snapshot = store.snapshot(commit);
        ModelFiles::of(&snapshot).map_err(HubError::Refused)?;
        if let Err(error) = store.name(revision, commit) {
            tracing::debug!(%error, "the hub's cache can't note the revision");
        }
        Ok(snapshot)
    }

    /// Asks which files the model has, and how large they are.
    fn list(&self, client: &Client<'_>, id: &str, revision: &str) -> Result<Listing, HubError> {
        let model = format!("{}/api/models/{id}", self.endpoint);
        let address = format!("{model}/revision/{}", revision.replace('/', "%2F"));
        let asked = Asked::List(revision);
        let mut listing = client.patiently(|| {
            let answer = client.json(asked, &address)?;
            Listing::parse(&answer).ok_or_else(|| {
                let words = "what answered is not the hub: its answer has no list of files";
                Setback::unreachable(words)
            })
        })?;
        // Mirrors need not have it; without it sizes are known file by file.
        let address = format!("{model}/tree/{}?recursive=true", listing.commit);
        match client.json(asked, &address) {
            Ok(tree) => listing.add_tree(&tree),
            Err(Setback { error, .. }) => tracing::debug!(%error, "the hub tells no sizes"),
        }
        Ok(listing)
    }

    /// The first cache that can be written to.
    fn writable_store(&self, id: &str, spare: &Path) -> Result<Store, FetchError> {
        let shared = self.cache.as_ref().map(|root| Store::new(root, id));
        if let Some(store) = shared.filter(|store| store.create().is_ok()) {
            return Ok(store);
        }
        let store = Store::new(spare, id);
        store.create().map_err(FetchError::written(store.folder(), None))?;
        Ok(store)
    }

    /// An error whose words may be shown.
    fn clean(&self, error: HubError) -> HubError {
        match error {
            HubError::Refused(words) => HubError::Refused(self.redacted(&words)),
            HubError::Unreachable(words) => HubError::Unreachable(self.redacted(&words)),
            HubError::Local(error) => HubError::Local(error),
        }
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
