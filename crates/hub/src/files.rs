//! Which files a model consists of.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde_json::Value;
use vecmill_model::{
    Json, MODULES_FILE, OPTIONAL_FILES, WEIGHTS_FILE, WEIGHTS_FILES, Weights, has_file,
};

use super::{FetchError, stays_inside};
use vecmill_model::disk;

const MODULES_LIMIT: usize = 64;
const SHARDS_LIMIT: usize = 1024;
/// The most of a JSON file that is read.
pub(super) const JSON_LIMIT: u64 = 8 << 20;
/// The most that a header of safetensors may have, by its definition.
const HEADER_LIMIT: u64 = 100_000_000;

/// The folders of a model, relative to its root, which is `""`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Folders {
    pub(super) transformer: String,
    /// Whether in place of a transformer there is a table of words, which has no settings.
    table: bool,
    modules: Vec<(String, Needs)>,
}

/// What a module's folder must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Nothing: a `config.json` counts if it is there (normalising).
    Nothing,
    /// A `config.json` (pooling).
    Settings,
    /// That, and weights (dense).
    Weights,
}

impl Folders {
    /// By the contents of `modules.json`; `None` where the model has none.
    pub(super) fn parse(modules: Option<&[u8]>) -> Result<Self, String> {
        let mut folders = Self { transformer: String::new(), table: false, modules: Vec::new() };
        let Some(modules) = modules else { return Ok(folders) };
        let modules = Json::parse(modules)
            .map_err(|error| format!("{MODULES_FILE} is not valid JSON: {error}"))?;
        let modules = modules.as_array().filter(|modules| modules.len() <= MODULES_LIMIT);
        for module in modules.ok_or_else(|| format!("{MODULES_FILE} is not a list of modules"))? {
            let text = |key: &str| module.get(key).and_then(Json::as_text).unwrap_or_default();
            let (class, folder) = (text("type"), text("path").to_owned());
            let folder = if folder == "." { String::new() } else { folder };
            if !stays_inside(&folder) {
                return Err(format!(
                    "{MODULES_FILE} names a folder outside of the model: {folder:?}"
                ));
            }
            match class.rsplit('.').next().unwrap_or_default() {
                "Transformer" => folders.transformer = folder,
                "StaticEmbedding" => (folders.transformer, folders.table) = (folder, true),
                "Pooling" => folders.modules.push((folder, Needs::Settings)),
                "Dense" => folders.modules.push((folder, Needs::Weights)),
                "Normalize" if !folder.is_empty() => folders.modules.push((folder, Needs::Nothing)),
                _ => {} // without files, or refused when the model is opened
            }
        }
        Ok(folders)
    }

    /// Whether `file`, named relative to the root, may belong to the model whose repository has the
    /// files `listed`. Of weights in several forms only the preferred one does.
    pub(super) fn want(&self, file: &str, listed: &[&str]) -> bool {
        let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
        let in_module = self.modules.iter().any(|(module, _)| module == folder);
        let is_listed = |name: &&str| listed.contains(&join(folder, name).as_str());
        let is_weights = || {
            let form = WEIGHTS_FILES.iter().find(|names| names.iter().any(is_listed));
            form.is_some_and(|names| names.contains(&name) || is_shard(name, names[0]))
        };
        let in_transformer =
            folder == self.transformer && (name == "tokenizer.json" || is_weights());
        in_transformer
            || (in_module && is_weights())
            || ((folder.is_empty() || folder == self.transformer || in_module)
                && (name == "config.json" || OPTIONAL_FILES.contains(&name)))
    }
}

/// Whether `name` is that of a part of `file`: `model-00001-of-00002.safetensors`.
fn is_shard(name: &str, file: &str) -> bool {
    let parts = file.rsplit_once('.').and_then(|(stem, extension)| {
        name.strip_prefix(stem)?.strip_suffix(extension)?.strip_suffix('.')
    });
    parts.is_some_and(|part| part.starts_with('-'))
}

/// The files of a model, relative to its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// Configurations, the tokenizer, prompts: all but weights.
    pub settings: Vec<String>,
    /// Weights by the folders of the modules that they belong to.
    pub weights: Vec<(String, Vec<String>)>,
}

impl ModelFiles {
    /// Those of the model in `folder`, or what is missing.
    pub fn of(folder: &Path) -> Result<Self, String> {
        let there = |file: &str| has_file(&folder.join(file)).map_err(|error| error.to_string());
        let modules = if there(MODULES_FILE)? { Some(read(folder, MODULES_FILE)?) } else { None };
        let folders = Folders::parse(modules.as_deref())?;
        let transformer = folders.transformer.as_str();
        let mut settings = vec![need(folder, join(transformer, "tokenizer.json"))?];
        let mut optional = Vec::new();
        match join(transformer, "config.json") {
            config if folders.table => optional.push(config),
            config => settings.push(need(folder, config)?),
        }
        let mut weights = vec![(transformer.to_owned(), weights(folder, transformer)?)];
        for (module, needs) in &folders.modules {
            let config = join(module, "config.json");
            match needs {
                Needs::Nothing => optional.push(config),
                Needs::Settings | Needs::Weights => settings.push(need(folder, config)?),
            }
            if *needs == Needs::Weights {
                weights.push((module.clone(), self::weights(folder, module)?));
            }
        }
        let named = |name: &&str| [join("", name), join(transformer, name)];
        for file in optional.into_iter().chain(OPTIONAL_FILES.iter().flat_map(named)) {
            if there(&file)? {
                settings.push(file);
            }
        }
        settings.sort_unstable();
        settings.dedup();
        Ok(Self { settings, weights })
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &String> {
        self.settings.iter().chain(self.weights.iter().flat_map(|(_, files)| files))
    }
}

/// The weights in a module's folder: one file, or an index and its shards.
fn weights(folder: &Path, module: &str) -> Result<Vec<String>, String> {
    for [single, index] in WEIGHTS_FILES.map(|names| names.map(|name| join(module, name))) {
        if folder.join(&single).exists() {
            return need(folder, single).map(|single| vec![single]);
        }
        if folder.join(&index).exists() {
            return shards(folder, module, index);
        }
    }
    need(folder, join(module, WEIGHTS_FILE)).map(|single| vec![single])
}

/// An index of weights, and the files that it names.
fn shards(folder: &Path, module: &str, index: String) -> Result<Vec<String>, String> {
    let contents = Json::parse(&read(folder, &index)?)
        .map_err(|error| format!("{index} is not valid JSON: {error}"))?;
    let map = contents.get("weight_map").and_then(Json::as_object);
    let mut shards: Vec<&str> =
        map.into_iter().flat_map(|map| map.values()).filter_map(Json::as_text).collect();
    shards.sort_unstable();
    shards.dedup();
    if shards.is_empty() || shards.len() > SHARDS_LIMIT || !shards.iter().all(|s| stays_inside(s)) {
        return Err(format!("{index} does not name the files of the weights"));
    }
    let mut files = vec![index];
    for shard in shards {
        files.push(need(folder, join(module, shard))?);
    }
    Ok(files)
}

/// The file `name` in a module's folder.
pub fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn need(folder: &Path, file: String) -> Result<String, String> {
    if folder.join(&file).is_file() { Ok(file) } else { Err(format!("{file} is missing")) }
}

fn read(folder: &Path, file: &str) -> Result<Vec<u8>, String> {
    let read = disk::read_regular(&folder.join(file), JSON_LIMIT);
    read.map_err(|error| format!("{file} can't be read: {error}"))
}

/// Finds files of weights that end before their last tensor does, as a copy that broke off leaves
/// them.
pub(super) fn check_weights(folder: &Path, files: &ModelFiles) -> Result<(), FetchError> {
    let weights = files.weights.iter().flat_map(|(_, files)| files);
    for file in weights.filter(|file| !file.ends_with(".json")) {
        let path = folder.join(file);
        if !file.ends_with(".safetensors") {
            let opened = Weights::open_file(&path).map_err(|error| error.to_string());
            opened.map_err(|reason| FetchError::Damaged { path, reason })?;
            continue;
        }
        let (found, stated) = match (path.metadata(), stated_size(&path)) {
            (Ok(metadata), Ok(stated)) => (metadata.len(), stated),
            (Err(error), _) | (_, Err(error)) => {
                return Err(FetchError::Damaged { path, reason: error.to_string() });
            }
        };
        if found != stated {
            let reason = format!("it has {found} bytes, but {stated} by its own header");
            return Err(FetchError::Damaged { path, reason });
        }
    }
    Ok(())
}

/// How long a file of safetensors should be: its header says where each tensor ends.
fn stated_size(path: &Path) -> io::Result<u64> {
    let wrong = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    let mut file = File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_LIMIT || length > file.metadata()?.len() {
        return Err(wrong("its header is longer than the file, or than any may be"));
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    let header: Value = serde_json::from_slice(&header)
        .map_err(|error| wrong(&format!("its header is not valid JSON: {error}")))?;
    let tensors = header.as_object().into_iter().flatten();
    let end = |tensor: &Value| tensor.get("data_offsets")?.get(1)?.as_u64();
    let last = tensors.filter_map(|(_, tensor)| end(tensor)).max().unwrap_or(0);
    last.checked_add(8 + length).ok_or_else(|| wrong("its tensors end nowhere"))
}
