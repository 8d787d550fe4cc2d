//! `modules.json`: the folders and the order of what a model does.
//!
//! The order is fixed: transformer, pooling, dense layers, normalising; or, of a model that
//! classifies, a transformer with its head alone. That is what every published sentence-transformers
//! model of these families uses; others are refused by name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::file::{SETTINGS_LIMIT, read_optional_file};
use super::json::{self, Json, JsonFile, join_inside, shortened};
use super::keys::{self, Kind};
use super::{CONFIG_FILE, MODULES_FILE, ModelError, Warning, files};

const LIMIT: usize = 64;

/// What sentence-transformers calls models that embed, and those that classify.
const EMBEDS: &str = "SentenceTransformer";
const CLASSIFIES: &str = "CrossEncoder";

/// What modules do that vecmill doesn't, by the ends of their classes' names.
const OTHERS: [(&str, &str); 16] = [
    ("SpladePooling", "sparse vectors"),
    ("SparseStaticEmbedding", "sparse vectors"),
    ("SparseAutoEncoder", "sparse vectors"),
    ("MLMTransformer", "sparse vectors"),
    ("CSRSparsity", "sparse vectors"),
    ("IDF", "sparse vectors"),
    ("BoW", "sparse vectors"),
    ("MultiVectorMask", "late interaction"),
    ("LogitScore", "ranking"),
    ("CrossEncoder", "ranking"),
    ("CLIPModel", "images"),
    ("Router", "an encoder for each kind of text"),
    ("Asym", "an encoder for each kind of text"),
    ("WordEmbeddings", "a table of words without a transformer"),
    ("WeightedLayerPooling", "several layers' vectors"),
    ("LayerNorm", "a norm behind pooling"),
];

/// The folders that `modules.json` names.
#[derive(Debug, Default)]
pub(super) struct Modules {
    pub(super) folder: PathBuf,
    /// Whether there is a `modules.json`: without one the folder is a bare transformer.
    pub(super) listed: bool,
    transformer: Option<PathBuf>,
    pub(super) pooling: Option<PathBuf>,
    /// Whether in place of transformer and pooling there is a table: a text is the mean of its rows.
    pub(super) table: bool,
    pub(super) dense: Vec<PathBuf>,
    pub(super) normalize: bool,
    /// Folders of modules without weights.
    others: Vec<PathBuf>,
    names: BTreeSet<String>,
}

impl Modules {
    /// Reads `modules.json` in `folder`.
    pub(super) fn open(folder: &Path, warnings: &mut Vec<Warning>) -> Result<Self, ModelError> {
        let mut modules = Self { folder: folder.to_owned(), ..Self::default() };
        let path = folder.join(MODULES_FILE);
        let Some(bytes) = read_optional_file(&path, SETTINGS_LIMIT)? else { return Ok(modules) };
        modules.listed = true;
        let list = match json::value(&path, &bytes)? {
            Json::Array(list) if list.len() <= LIMIT => list,
            _ => {
                let reason = format!("it should be an array of at most {LIMIT} modules");
                return Err(ModelError::Json { path, reason });
            }
        };
        for module in list {
            modules.add(&JsonFile::part(&path, module)?, warnings)?;
        }
        let general = JsonFile::open_optional(&folder.join(files::PROMPTS))?;
        let key = "model_type";
        match (general.text(key)?.unwrap_or(EMBEDS), &modules.pooling) {
            (EMBEDS, Some(_)) => Ok(modules),
            (EMBEDS, None) if modules.table => Ok(modules),
            (CLASSIFIES, None) if modules.transformer.is_some() => Ok(modules),
            (EMBEDS, None) => {
                let reason = "it should name a Transformer module, then a Pooling module";
                Err(ModelError::Json { path, reason: reason.to_owned() })
            }
            _ => {
                let alone = "of a Transformer module alone";
                Err(general.wrong(key, format!("'{EMBEDS}', or '{CLASSIFIES}' {alone}")))
            }
        }
    }

    /// Whether the model classifies; `None` if no `modules.json` says so.
    pub(super) fn classifies(&self) -> Option<bool> {
        self.listed.then_some(self.pooling.is_none() && !self.table)
    }

    fn add(&mut self, module: &JsonFile, warnings: &mut Vec<Warning>) -> Result<(), ModelError> {
        keys::check(module, Kind::Module, warnings)?;
        let Some(class) = module.text("type")? else {
            return Err(module.wrong("type", "a module's class"));
        };
        let path = module.text("path")?.unwrap_or_default();
        let folder = join_inside(&self.folder, path, module.path())?;
        // The reference keeps modules by name: of two with one name only the second would run.
        if module.text("name")?.is_some_and(|name| !self.names.insert(name.to_owned())) {
            return Err(module.wrong("name", "another for each module"));
        }
        let (library, name) = class.rsplit_once('.').unwrap_or(("", class));
        if library.split('.').next() != Some("sentence_transformers") {
            return Err(unsupported(module, class, "its code is not sentence-transformers' own"));
        }
        let pooled = self.pooling.is_some() || self.table;
        match name {
            "StaticEmbedding" if self.transformer.is_none() => {
                self.transformer = Some(folder);
                self.table = true;
            }
            "Transformer" if self.transformer.is_none() && self.pooling.is_none() => {
                self.transformer = Some(folder);
            }
            "Pooling" if self.transformer.is_some() && !pooled => {
                self.pooling = Some(folder);
            }
            "Dense" if pooled && !self.normalize => self.dense.push(folder),
            "Normalize" if pooled => {
                // In the model's own folder `config.json` is the transformer's.
                if !path.is_empty() {
                    let file = JsonFile::open_optional(&folder.join(CONFIG_FILE))?;
                    keys::check(&file, Kind::Normalize, warnings)?;
                }
                self.normalize = true;
                self.others.push(folder);
            }
            "Dropout" if pooled => self.others.push(folder), // of training alone
            "StaticEmbedding" | "Transformer" | "Pooling" | "Dense" | "Normalize" | "Dropout" => {
                return Err(unsupported(module, class, "it stands at another place"));
            }
            _ => {
                let other = OTHERS.into_iter().find(|(other, _)| *other == name);
                let what = other.map_or("no such module is computed", |(_, what)| what);
                return Err(unsupported(module, class, what));
            }
        }
        Ok(())
    }

    /// The transformer's folder.
    pub(super) fn transformer(&self) -> &Path {
        self.transformer.as_deref().unwrap_or(&self.folder)
    }

    /// The folders that `modules.json` names.
    pub(super) fn folders(&self) -> impl Iterator<Item = &Path> {
        let named = self.transformer.iter().chain(&self.pooling).chain(&self.dense);
        named.chain(&self.others).map(PathBuf::as_path)
    }
}

fn unsupported(module: &JsonFile, class: &str, what: &str) -> ModelError {
    ModelError::Unsupported {
        path: module.path().to_owned(),
        what: "the module",
        found: format!("{}: {what}", shortened(class)),
        supported: "sentence-transformers' Transformer, Pooling, Dense, Normalize, in this order"
            .to_owned(),
    }
}
