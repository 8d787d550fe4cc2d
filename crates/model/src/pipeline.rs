//! What happens around the transformer, as its modules' own files say.

use std::collections::BTreeMap;
use std::path::Path;

use super::files::{self, CONFIG_FILE};
use super::json::{Json, JsonFile, shortened};
use super::keys::{self, Kind};
use super::modules::Modules;
use super::pooling;
use super::weights::Weights;
use super::{Activation, Config, ModelError, Pooling, Poolings, TensorView, Warning};

const DENSE_FEATURES: usize = 1 << 16;

/// A dense layer behind pooling.
#[derive(Debug, Clone)]
pub struct Dense {
    /// `[outputs, inputs]`.
    pub weight: TensorView,
    /// `[outputs]`.
    pub bias: Option<TensorView>,
    /// What is applied to its result.
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
    pub pooling: Poolings,
    /// Whether the prompt's tokens take part in pooling.
    pub pool_prompt: bool,
    /// Dense layers in order.
    pub dense: Vec<Dense>,
    /// Whether embeddings are scaled to length one at the end.
    pub normalize: bool,
    /// How many leading numbers of an embedding are kept, after it was normalised.
    pub truncate: Option<usize>,
}

impl Pipeline {
    /// Reads what the files of `modules` say; a `chosen` pooling is in place of theirs.
    pub(super) fn open(
        modules: &Modules,
        config: &Config,
        chosen: Option<Pooling>,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self, ModelError> {
        let (max_tokens, lowercase) = limits(modules, config, warnings)?;
        let general = General::open(modules, warnings)?;
        let (pooling, pool_prompt) = match &modules.pooling {
            Some(folder) => pooling::open(folder, config.hidden, warnings)?,
            None => (config.family.pooling.into(), true),
        };
        let pooling = chosen.map_or(pooling, Poolings::from);
        let mut dense: Vec<Dense> = Vec::with_capacity(modules.dense.len());
        for folder in &modules.dense {
            let pooled = config.hidden * pooling.count();
            let inputs = dense.last().map_or(pooled, Dense::outputs);
            dense.push(self::dense(folder, inputs, warnings)?);
        }
        Ok(Self {
            max_tokens,
            lowercase,
            prompts: general.prompts,
            default_prompt: general.default_prompt,
            pooling,
            pool_prompt,
            dense,
            normalize: modules.normalize,
            truncate: general.truncate,
        })
    }
}

/// The most tokens of an input, and whether text is put in lower case first.
fn limits(
    modules: &Modules,
    config: &Config,
    warnings: &mut Vec<Warning>,
) -> Result<(usize, bool), ModelError> {
    let folder = modules.transformer();
    let tokenizer = JsonFile::open_optional(&folder.join(files::TOKENIZER_CONFIG))?;
    keys::check(&tokenizer, Kind::Tokenizer, warnings)?;
    let special = JsonFile::open_optional(&folder.join(files::SPECIAL_TOKENS))?;
    keys::check(&special, Kind::SpecialTokens, warnings)?;
    let (mut limit, mut lowercase) = (None, false);
    if modules.listed {
        let file = transformer_file(folder)?;
        keys::check(&file, Kind::Transformer, warnings)?;
        check_output(&file, modules.classifies() == Some(true))?;
        refuse_members(&file, "config_kwargs")?;
        refuse_members(&file, "config_args")?;
        lowercase = file.flag("do_lower_case")?.unwrap_or(false);
        limit = tokenizer_limit(&file)?.or(file.integer("max_seq_length", 1..=usize::MAX)?);
    }
    if limit.is_none() {
        limit = match unlimited(&tokenizer, "model_max_length")? {
            None => unlimited(&tokenizer, "max_len")?,
            limit => limit,
        };
    }
    Ok((limit.unwrap_or(config.usual_tokens()).min(config.max_tokens()), lowercase))
}

/// The transformer's settings: the first file that is there and says something.
fn transformer_file(folder: &Path) -> Result<JsonFile, ModelError> {
    let [newest, ..] = files::TRANSFORMER;
    for name in files::TRANSFORMER {
        let file = JsonFile::open_optional(&folder.join(name))?;
        if file.members().next().is_some() {
            return Ok(file);
        }
    }
    JsonFile::open_optional(&folder.join(newest))
}

/// The length limit at `key`. Tokenizers without one say 10³⁰, or that it is infinite.
fn unlimited(file: &JsonFile, key: &str) -> Result<Option<usize>, ModelError> {
    const NONE: f64 = 1e9;
    match file.get(key) {
        Some(&Json::Float(number)) if number >= NONE => Ok(None),
        _ => file.integer(key, 1..=usize::MAX),
    }
}

/// What the transformer's settings hand to the tokenizer: a length limit, and nothing else that is
/// known to change ids.
fn tokenizer_limit(file: &JsonFile) -> Result<Option<usize>, ModelError> {
    const HARMLESS: [&str; 7] = [
        "model_max_length",
        "trust_remote_code",
        "use_fast",
        "padding_side",
        "cache_dir",
        "revision",
        "token",
    ];
    for key in ["processor_kwargs", "tokenizer_args"] {
        let Some(value) = file.get(key) else { continue };
        let part = JsonFile::part(file.path(), value.clone())?;
        if let Some((other, _)) = part.members().find(|(name, _)| !HARMLESS.contains(name)) {
            return Err(part.wrong(other, format!("in tokenizer_config.json, not in '{key}'")));
        }
        if let Some(limit) = unlimited(&part, "model_max_length")? {
            return Ok(Some(limit));
        }
    }
    Ok(None)
}

/// Refuses settings at `key` that change what the transformer computes.
fn refuse_members(file: &JsonFile, key: &str) -> Result<(), ModelError> {
    const HARMLESS: [&str; 4] = ["trust_remote_code", "cache_dir", "revision", "use_cache"];
    let Some(value) = file.get(key) else { return Ok(()) };
    let part = JsonFile::part(file.path(), value.clone())?;
    match part.members().find(|(name, _)| !HARMLESS.contains(name)) {
        Some((other, _)) => Err(part.wrong(other, format!("in config.json, not in '{key}'"))),
        None => Ok(()),
    }
}

/// Refuses transformers of which something else is read than the last layer, or the head's scores
/// where the model classifies.
fn check_output(file: &JsonFile, classifies: bool) -> Result<(), ModelError> {
    let [task, read, name] = match classifies {
        false => ["feature-extraction", "last_hidden_state", "token_embeddings"],
        true => ["sequence-classification", "logits", "scores"],
    };
    for (key, computed) in [("transformer_task", task), ("module_output_name", name)] {
        if file.text(key)?.is_some_and(|found| found != computed) {
            return Err(file.wrong(key, format!("'{computed}'")));
        }
    }
    let key = "modality_config";
    let Some(value) = file.get(key) else { return Ok(()) };
    let text = value.get("text");
    let method = text.and_then(|text| text.get("method")).and_then(Json::as_text);
    let output = text.and_then(|text| text.get("method_output_name"));
    let output = match output {
        Some(Json::Array(names)) if names.len() == 1 => names.first(),
        output => output,
    };
    if method == Some("forward") && output.and_then(Json::as_text) == Some(read) {
        return Ok(());
    }
    Err(file.wrong(key, format!("the forward method's {read} for 'text'")))
}

/// What `config_sentence_transformers.json` says of the whole.
#[derive(Default)]
struct General {
    prompts: BTreeMap<String, String>,
    default_prompt: Option<String>,
    truncate: Option<usize>,
}

impl General {
    fn open(modules: &Modules, warnings: &mut Vec<Warning>) -> Result<Self, ModelError> {
        if !modules.listed {
            return Ok(Self::default());
        }
        let file = JsonFile::open_optional(&modules.folder.join(files::PROMPTS))?;
        keys::check(&file, Kind::SentenceTransformers, warnings)?;
        let mut prompts = BTreeMap::new();
        if let Some(value) = file.get("prompts") {
            let wrong = || file.wrong("prompts", "an object from names to strings");
            for (name, text) in value.as_object().ok_or_else(wrong)? {
                let text = if *text == Json::Null { Some("") } else { text.as_text() };
                prompts.insert(name.clone(), text.ok_or_else(wrong)?.to_owned());
            }
        }
        let default_prompt = file.text("default_prompt_name")?.map(str::to_owned);
        if default_prompt.as_ref().is_some_and(|name| !prompts.contains_key(name)) {
            return Err(file.wrong("default_prompt_name", "one of the names under 'prompts'"));
        }
        if modules.classifies() == Some(true) && default_prompt.is_some() {
            return Err(file.wrong("default_prompt_name", "null, as no prompt goes before pairs"));
        }
        let truncate = file.integer("truncate_dim", 1..=usize::MAX)?;
        Ok(Self { prompts, default_prompt, truncate })
    }
}

/// The dense layer in `folder`, which takes `inputs` numbers.
fn dense(folder: &Path, inputs: usize, warnings: &mut Vec<Warning>) -> Result<Dense, ModelError> {
    let file = JsonFile::open(&folder.join(CONFIG_FILE))?;
    keys::check(&file, Kind::Dense, warnings)?;
    file.required_integer("in_features", inputs..=inputs)?;
    let outputs = file.required_integer("out_features", 1..=DENSE_FEATURES)?;
    let class = file.text("activation_function")?.unwrap_or("torch.nn.Tanh");
    let activation = Activation::from_class(class).ok_or_else(|| ModelError::Unsupported {
        path: file.path().to_owned(),
        what: "the activation",
        found: shortened(class),
        supported: "torch.nn's Tanh, Identity, ReLU, GELU, SiLU".to_owned(),
    })?;
    let weights = Weights::open(folder)?;
    let weight = weights.tensor("linear.weight", &[outputs, inputs])?;
    let bias = match file.flag("bias")?.unwrap_or(true) {
        true => Some(weights.tensor("linear.bias", &[outputs])?),
        false => None,
    };
    let known: &[&str] =
        if bias.is_some() { &["linear.weight", "linear.bias"] } else { &["linear.weight"] };
    match weights.names().find(|name| !known.contains(name)) {
        Some(other) => Err(ModelError::Unsupported {
            path: weights.path.clone(),
            what: "the dense layer's tensor",
            found: shortened(other),
            supported: known.join(", "),
        }),
        None => Ok(Dense { weight, bias, activation }),
    }
}
