//! What the transformer computes: `config.json`, checked.

use std::ops::RangeInclusive;

use super::families::{self, Family, Names, Positions};
use super::json::{Json, JsonFile, shortened};
use super::keys::{self, Kind};
use super::{ModelError, Rotary, Warning, Window};

/// Bounds of what is believed; the largest encoders stay far below.
const HIDDEN: RangeInclusive<usize> = 1..=1 << 16;
const LAYERS: RangeInclusive<usize> = 1..=1 << 10;
const HEADS: RangeInclusive<usize> = 1..=1 << 10;
const INTERMEDIATE: RangeInclusive<usize> = 1..=1 << 20;
const VOCABULARY: RangeInclusive<usize> = 1..=1 << 24;
const POSITIONS: RangeInclusive<usize> = 1..=1 << 20;
const TOKEN_TYPES: RangeInclusive<usize> = 0..=1 << 10;
const BUCKETS: RangeInclusive<usize> = 4..=1 << 10;

/// How many times the positions that it was trained with a model sees, where its positions stretch.
const STRETCH: usize = 4;

const EPSILON: f32 = 1e-12;
const DEFAULT_BUCKETS: usize = 32;

/// A function applied to each number between two projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// GELU with the exact error function.
    Gelu,
    /// GELU by its approximation with tanh.
    GeluTanh,
    /// Rectified linear unit.
    Relu,
    /// x · sigmoid(x), also called swish.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
    /// The number itself.
    Identity,
}

impl Activation {
    const SUPPORTED: &str = "gelu, gelu_new, gelu_pytorch_tanh, relu, silu, tanh, linear";

    /// By the name that `config.json` uses.
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_python_tanh" => Self::GeluTanh,
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            "tanh" => Self::Tanh,
            "linear" => Self::Identity,
            _ => return None,
        })
    }

    /// The error that a file names another.
    pub(super) fn unsupported(file: &JsonFile, name: &str) -> ModelError {
        ModelError::Unsupported {
            path: file.path().to_owned(),
            what: "the activation",
            found: shortened(name),
            supported: Self::SUPPORTED.to_owned(),
        }
    }

    /// By the class that a dense module uses, for example `torch.nn.modules.activation.Tanh`.
    pub(super) fn from_class(class: &str) -> Option<Self> {
        // The reference runs no other code without being told to.
        let class = class.strip_prefix("torch.nn.")?;
        Some(match class.rsplit('.').next()? {
            "GELU" => Self::Gelu,
            "ReLU" => Self::Relu,
            "SiLU" => Self::Silu,
            "Tanh" => Self::Tanh,
            "Identity" => Self::Identity,
            _ => return None,
        })
    }
}

/// What the transformer computes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Its family.
    pub family: &'static Family,
    /// What `config.json` calls its architecture; one of the family's.
    pub model_type: &'static str,
    /// Numbers per token between layers.
    pub hidden: usize,
    /// Numbers per token of the embeddings; mostly as many as `hidden`.
    pub embedding: usize,
    /// How many layers there are.
    pub layers: usize,
    /// Attention heads per layer; they divide `hidden` evenly.
    pub heads: usize,
    /// Numbers per token and head: `hidden / heads`.
    pub head_size: usize,
    /// Numbers per token inside the feed-forward part.
    pub intermediate: usize,
    /// How many token ids there are.
    pub vocabulary: usize,
    /// Rows of the position embeddings; where there are none, how many the model was made for.
    pub positions: usize,
    /// The row of a text's first token: 0, or the padding token's id + 1; below `positions`.
    pub position_offset: usize,
    /// Rows of the token type embeddings; 0 where there are none.
    pub token_types: usize,
    /// What layer norms add to the variance.
    pub epsilon: f32,
    /// The function inside the feed-forward part.
    pub activation: Activation,
    /// Rows of the attention bias by distance, in families that have one.
    pub relative_buckets: Option<usize>,
    /// How each layer's attention sees positions.
    pub sights: Vec<Sight>,
    /// Which parts have biases, in families that leave it open.
    pub biases: Biases,
}

/// How a layer's attention sees positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sight {
    /// Turns queries and keys.
    pub rotary: Option<Rotary>,
    /// Which tokens one sees.
    pub window: Window,
}

/// Which parts have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own in files")]
pub struct Biases {
    /// Queries, keys, values and attention's output.
    pub attention: bool,
    /// The first layer of the feed-forward part.
    pub up: bool,
    /// The second one.
    pub down: bool,
    /// Norms.
    pub norm: bool,
}

impl Config {
    /// Reads `config.json`.
    pub(super) fn read(file: &JsonFile, warnings: &mut Vec<Warning>) -> Result<Self, ModelError> {
        let (family, model_type) = family(file)?;
        keys::check(file, Kind::Config(family), warnings)?;
        refuse_code(file, family)?;
        let keys = &family.keys;
        let size = |names, range| file.required_integer(name(file, names)?, range);
        let (hidden, heads) = (size(keys.hidden, HIDDEN)?, size(keys.heads, HEADS)?);
        if !hidden.is_multiple_of(heads) {
            return Err(file.wrong(name(file, keys.heads)?, format!("a divisor of {hidden}")));
        }
        let (layers, positions) = (size(keys.layers, LAYERS)?, size(keys.positions, POSITIONS)?);
        let vocabulary = file.required_integer("vocab_size", VOCABULARY)?;
        let token_types = match keys.token_types {
            Some((keys, default)) => {
                file.integer(name(file, keys)?, TOKEN_TYPES)?.unwrap_or(default)
            }
            None => 0,
        };
        let relative_buckets = match keys.relative_buckets {
            Some(key) => Some(file.integer(key, BUCKETS)?.unwrap_or(DEFAULT_BUCKETS)),
            None => None,
        };
        let embedding = match keys.embedding {
            Some((key, default)) => file.integer(key, HIDDEN)?.unwrap_or(default),
            None => hidden,
        };
        let mut config = Self {
            family,
            model_type,
            hidden,
            embedding,
            layers,
            heads,
            head_size: hidden / heads,
            intermediate: size(keys.intermediate, INTERMEDIATE)?,
            vocabulary,
            positions,
            position_offset: position_offset(file, family, vocabulary.min(positions - 1))?,
            token_types,
            epsilon: epsilon(file, family)?,
            activation: activation(file, keys.activation)?,
            relative_buckets,
            sights: vec![Sight { rotary: None, window: Window::FULL }; layers],
            biases: Biases { attention: true, up: true, down: true, norm: true },
        };
        (family.settle)(file, &mut config)?;
        Ok(config)
    }

    /// The most tokens of an input where nothing is said of that.
    pub fn usual_tokens(&self) -> usize {
        self.positions - self.position_offset
    }

    /// The most tokens that have a position.
    pub fn max_tokens(&self) -> usize {
        let stretches =
            |sight: &Sight| sight.rotary.is_some_and(|rotary| rotary.depends_on_length());
        if self.sights.iter().any(stretches) {
            STRETCH * self.positions
        } else {
            self.usual_tokens()
        }
    }
}

/// The name by which `file` has a key: the first of `names` that is there. Another must say the same.
fn name(file: &JsonFile, names: Names) -> Result<&'static str, ModelError> {
    let mut there = names.iter().copied().filter(|name| file.get(name).is_some());
    let first = there.next().or(names.first().copied()).unwrap_or_default();
    match there.find(|other| file.get(other) != file.get(first)) {
        Some(other) => Err(file.wrong(other, format!("the same as '{first}'"))),
        None => Ok(first),
    }
}

fn family(file: &JsonFile) -> Result<(&'static Family, &'static str), ModelError> {
    let supported = || {
        let names = families::ALL.iter().flat_map(|family| family.model_types);
        names.copied().collect::<Vec<_>>().join(", ")
    };
    let Some(found) = file.text("model_type")? else {
        return Err(file.wrong("model_type", format!("one of {}", supported())));
    };
    Family::of(found).ok_or_else(|| ModelError::Unsupported {
        path: file.path().to_owned(),
        what: "the architecture",
        found: shortened(found),
        supported: supported(),
    })
}

/// Refuses models whose body is code of their own, whatever family they say they are; unless it is known to
/// compute what the family does.
fn refuse_code(file: &JsonFile, family: &Family) -> Result<(), ModelError> {
    let key = "auto_map";
    let Some(map) = file.get(key) else { return Ok(()) };
    let map = map.as_object().ok_or_else(|| file.wrong(key, "an object"))?;
    let known = |class: &Json| {
        let class = class.as_text().and_then(|class| class.rsplit('.').next());
        class.is_some_and(|class| family.code.contains(&class))
    };
    match map.get("AutoModel").filter(|class| !known(class)) {
        Some(class) => Err(ModelError::Unsupported {
            path: file.path().to_owned(),
            what: "the model's own code",
            found: class.excerpt(),
            supported: "the architectures as transformers has them".to_owned(),
        }),
        None => Ok(()),
    }
}

/// Where positions start, at most `limit`.
fn position_offset(file: &JsonFile, family: &Family, limit: usize) -> Result<usize, ModelError> {
    let key = "pad_token_id";
    let padding = match family.positions {
        Positions::FromZero => return Ok(0),
        Positions::After(padding) => padding,
        Positions::AfterPadding(default) => {
            file.integer(key, 0..=*VOCABULARY.end())?.unwrap_or(default)
        }
    };
    let expected = || format!("an id below the vocabulary's and positions' ends, {limit}");
    if padding < limit { Ok(padding + 1) } else { Err(file.wrong(key, expected())) }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "single precision is what layer norms compute in"
)]
fn epsilon(file: &JsonFile, family: &Family) -> Result<f32, ModelError> {
    let Some((keys, default)) = family.keys.epsilon else { return Ok(EPSILON) };
    let key = name(file, keys)?;
    let epsilon = file.number(key)?.unwrap_or(default) as f32;
    if epsilon > 0.0 && epsilon <= 1.0 {
        Ok(epsilon)
    } else {
        Err(file.wrong(key, "a number above 0 and up to 1"))
    }
}

fn activation(file: &JsonFile, (keys, default): (Names, &str)) -> Result<Activation, ModelError> {
    let name = file.text(name(file, keys)?)?.unwrap_or(default);
    Activation::from_name(name).ok_or_else(|| Activation::unsupported(file, name))
}
