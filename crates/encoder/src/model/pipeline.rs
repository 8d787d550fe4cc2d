//! What happens around the transformer: `modules.json` and the files it names.
//!
//! The order is fixed: transformer, pooling, dense layers, normalising. That is what every
//! published sentence-transformers model of these families uses; others are refused by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::Value;

use super::file::has_file;
use super::json::{JsonFile, join_inside};
use super::weights::Weights;
use super::{Activation, Config, ModelError, TensorView};

const MODULES_LIMIT: usize = 64;
const DENSE_FEATURES: usize = 1 << 16;

/// Where sentence-transformers keeps the length limit, by the age and family of the model.
const LIMIT_FILES: [&str; 5] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
];

/// A name that no pooling has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown pooling {0:?}: expected mean, cls, max or last-token")]
pub struct UnknownPooling(String);

/// How token vectors become one.
///
/// ```
/// assert_eq!("last-token".parse(), Ok(vecmill_encoder::Pooling::LastToken));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first token's.
    Cls,
    /// The maximum in each dimension.
    Max,
    /// The last token's.
    LastToken,
}

impl FromStr for Pooling {
    type Err = UnknownPooling;

    /// From its name, as people and models write it.
    fn from_str(text: &str) -> Result<Self, UnknownPooling> {
        let name = if text == "last-token" { Self::LastToken.name() } else { text };
        let known = Self::ALL.into_iter().find(|pooling| pooling.name() == name);
        known.ok_or_else(|| UnknownPooling(text.to_owned()))
    }
}

impl Pooling {
    const ALL: [Self; 4] = [Self::Mean, Self::Cls, Self::Max, Self::LastToken];

    /// Whether it takes one token's vector as it is.
    pub fn picks_a_row(self) -> bool {
        match self {
            Self::Cls | Self::LastToken => true,
            Self::Mean | Self::Max => false,
        }
    }

    /// Its name in `pooling_mode`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Max => "max",
            Self::LastToken => "lasttoken",
        }
    }
}

/// A dense layer behind pooling.
#[derive(Debug, Clone)]
pub struct Dense {
    /// `[outputs, inputs]`.
    pub weight: TensorView,
    /// `[outputs]`.
    pub bias: Option<TensorView>,
    /// Applied to the outputs.
    pub activation: Activation,
}

impl Dense {
    /// Numbers that it takes.
    pub fn inputs(&self) -> usize {
        self.weight.shape().last().copied().unwrap_or(0)
    }

    /// Numbers that it gives.
    pub fn outputs(&self) -> usize {
        self.weight.shape().first().copied().unwrap_or(0)
    }
}

/// What happens before and after the transformer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Pipeline {
    /// The most tokens of an input, special tokens included; at most what positions allow.
    pub max_tokens: usize,
    /// Whether text is put in lower case before it is tokenised.
    pub lowercase: bool,
    /// Prompts by name.
    pub prompts: BTreeMap<String, String>,
    /// The prompt that goes in front when none is asked for; one of `prompts`.
    pub default_prompt: Option<String>,
    /// How token vectors become one.
    pub pooling: Pooling,
    /// Whether the prompt's tokens take part in pooling.
    pub pool_prompt: bool,
    /// Dense layers in order.
    pub dense: Vec<Dense>,
    /// Whether embeddings are scaled to length one at the end.
    pub normalize: bool,
}

/// The folders that `modules.json` names.
#[derive(Debug, Default)]
pub(super) struct Modules {
    folder: PathBuf,
    transformer: Option<PathBuf>,
    pooling: Option<PathBuf>,
    dense: Vec<PathBuf>,
    normalize: bool,
}

impl Modules {
    /// Reads `modules.json` in `folder`; without one, the folder is a bare transformer.
    pub(super) fn open(folder: &Path) -> Result<Self, ModelError> {
        let mut modules = Self { folder: folder.to_owned(), ..Self::default() };
        let path = folder.join("modules.json");
        if !has_file(&path)? {
            return Ok(modules);
        }
        let list = match JsonFile::open(&path)?.into_value() {
            Value::Array(list) if list.len() <= MODULES_LIMIT => list,
            _ => {
                let reason = format!("it should be an array of at most {MODULES_LIMIT} modules");
                return Err(ModelError::Json { path, reason });
            }
        };
        for module in list {
            modules.add(&JsonFile::part(&path, module))?;
        }
        if modules.pooling.is_none() {
            let reason = "it should name a Transformer module, then a Pooling module".to_owned();
            return Err(ModelError::Json { path, reason });
        }
        Ok(modules)
    }

    fn add(&mut self, module: &JsonFile) -> Result<(), ModelError> {
        let Some(class) = module.text("type")? else {
            return Err(module.wrong("type", "a module's class"));
        };
        let folder =
            join_inside(&self.folder, module.text("path")?.unwrap_or_default(), module.path())?;
        match class.rsplit('.').next().unwrap_or_default() {
            "Transformer" if self.transformer.is_none() => self.transformer = Some(folder),
            "Pooling" if self.transformer.is_some() && self.pooling.is_none() => {
                self.pooling = Some(folder);
            }
            "Dense" if self.pooling.is_some() && !self.normalize => self.dense.push(folder),
            "Normalize" if self.pooling.is_some() => self.normalize = true,
            _ => {
                return Err(ModelError::Unsupported {
                    path: module.path().to_owned(),
                    what: "the module (or its place)",
                    found: class.to_owned(),
                    supported: "Transformer, Pooling, Dense, Normalize, in this order".to_owned(),
                });
            }
        }
        Ok(())
    }

    /// The transformer's folder.
    pub(super) fn transformer(&self) -> &Path {
        self.transformer.as_deref().unwrap_or(&self.folder)
    }

    /// Reads what the modules' own files say.
    pub(super) fn pipeline(&self, config: &Config) -> Result<Pipeline, ModelError> {
        let (max_tokens, lowercase) = limits(self.transformer(), config)?;
        let (prompts, default_prompt) = prompts(&self.folder)?;
        let (pooling, pool_prompt) = match &self.pooling {
            Some(folder) => pooling(folder, config.hidden)?,
            None => (Pooling::Mean, true),
        };
        let mut dense: Vec<Dense> = Vec::with_capacity(self.dense.len());
        for folder in &self.dense {
            let inputs = dense.last().map_or(config.hidden, Dense::outputs);
            dense.push(self::dense(folder, inputs)?);
        }
        let normalize = self.normalize;
        Ok(Pipeline {
            max_tokens,
            lowercase,
            prompts,
            default_prompt,
            pooling,
            pool_prompt,
            dense,
            normalize,
        })
    }
}

/// The most tokens of an input, and whether text is put in lower case first.
fn limits(folder: &Path, config: &Config) -> Result<(usize, bool), ModelError> {
    let [newest, ..] = LIMIT_FILES;
    let mut path = folder.join(newest);
    for name in LIMIT_FILES {
        if has_file(&folder.join(name))? {
            path = folder.join(name);
            break;
        }
    }
    let file = JsonFile::open_optional(&path)?;
    let stated = file.integer("max_seq_length", 1..=usize::MAX)?;
    let lowercase = file.flag("do_lower_case")?.unwrap_or(false);
    // Tokenizers without a limit say 10³⁰, which is no integer here and so counts as none.
    let tokenizer = JsonFile::open_optional(&folder.join("tokenizer_config.json"))?;
    let of_tokenizer = || tokenizer.integer("model_max_length", 1..=usize::MAX).ok().flatten();
    let limit = stated.or_else(of_tokenizer).unwrap_or(usize::MAX);
    Ok((limit.min(config.max_tokens()), lowercase))
}

type Prompts = (BTreeMap<String, String>, Option<String>);

fn prompts(folder: &Path) -> Result<Prompts, ModelError> {
    let file = JsonFile::open_optional(&folder.join("config_sentence_transformers.json"))?;
    let expected = "an object from names to strings";
    let mut prompts = BTreeMap::new();
    if let Some(value) = file.get("prompts") {
        let object = value.as_object().ok_or_else(|| file.wrong("prompts", expected))?;
        for (name, text) in object {
            let text = text.as_str().ok_or_else(|| file.wrong("prompts", expected))?;
            prompts.insert(name.clone(), text.to_owned());
        }
    }
    let default = file.text("default_prompt_name")?.map(str::to_owned);
    if default.as_ref().is_some_and(|name| !prompts.contains_key(name)) {
        return Err(file.wrong("default_prompt_name", "one of the names under 'prompts'"));
    }
    Ok((prompts, default))
}

/// How token vectors become one, and whether the prompt's tokens take part.
fn pooling(folder: &Path, hidden: usize) -> Result<(Pooling, bool), ModelError> {
    let file = JsonFile::open(&folder.join("config.json"))?;
    for key in ["word_embedding_dimension", "embedding_dimension"] {
        file.integer(key, hidden..=hidden)?;
    }
    let modes = match file.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode.clone()],
        Some(_) => return Err(file.wrong("pooling_mode", "a string")),
        None => modes_by_flags(&file)?,
    };
    let found = modes.join(" + ");
    let pooling = Pooling::ALL.into_iter().find(|pooling| pooling.name() == found);
    let pooling = pooling.ok_or_else(|| ModelError::Unsupported {
        path: file.path().to_owned(),
        what: "pooling by",
        found,
        supported: Pooling::ALL.map(Pooling::name).join(", "),
    })?;
    Ok((pooling, file.flag("include_prompt")?.unwrap_or(true)))
}

/// The modes that are switched on, where each has a key of its own.
fn modes_by_flags(file: &JsonFile) -> Result<Vec<String>, ModelError> {
    const FLAGS: [(&str, &str); 6] = [
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_max_tokens", "max"),
        ("pooling_mode_lasttoken", "lasttoken"),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len"),
        ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ];
    let mut modes = Vec::new();
    for (key, mode) in FLAGS {
        if file.flag(key)? == Some(true) {
            modes.push(mode.to_owned());
        }
    }
    if modes.is_empty() {
        let [(key, _), ..] = FLAGS;
        return Err(file.wrong(key, "true, or another pooling mode should be"));
    }
    Ok(modes)
}

/// The dense layer in `folder`, which takes `inputs` numbers.
fn dense(folder: &Path, inputs: usize) -> Result<Dense, ModelError> {
    let file = JsonFile::open(&folder.join("config.json"))?;
    file.required_integer("in_features", inputs..=inputs)?;
    let outputs = file.required_integer("out_features", 1..=DENSE_FEATURES)?;
    for key in ["module_input_name", "module_output_name"] {
        if file.text(key)?.is_some_and(|name| name != "sentence_embedding") {
            return Err(file.wrong(key, "sentence_embedding"));
        }
    }
    let class = file.text("activation_function")?.unwrap_or("torch.nn.Tanh");
    let activation = Activation::from_class(class).ok_or_else(|| ModelError::Unsupported {
        path: file.path().to_owned(),
        what: "the activation",
        found: class.to_owned(),
        supported: "Tanh, Identity, ReLU, GELU, SiLU".to_owned(),
    })?;
    let weights = Weights::open(folder)?;
    let weight = weights.tensor("linear.weight", &[outputs, inputs])?;
    let bias = match file.flag("bias")?.unwrap_or(true) {
        true => Some(weights.tensor("linear.bias", &[outputs])?),
        false => None,
    };
    Ok(Dense { weight, bias, activation })
}
