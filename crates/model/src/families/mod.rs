//! Families of encoders: everything in which they differ, a row for each.
//!
//! - [`Family`] is a row: how its `config.json` is read, and a function that yields its
//!   [`Architecture`]; [`ALL`] has them.
//! - `rope` reads what several say of rotary positions, in older files and in newer ones.
//! - `Tensors` finds tensors under the names that a row spells, checked against the sizes in
//!   [`Config`].
//!
//! The choice behind it: a further family is a file here and a line of [`ALL`]. Its row may begin
//! with another's and say in what it is unlike that.

mod bert;
mod distilbert;
mod electra;
mod ernie;
mod gte;
mod modernbert;
mod mpnet;
mod nomic;
mod roberta;
mod rope;

use std::fmt;

use super::head::Layout;
use super::json::JsonFile;
use super::keys::Row;
use super::{Architecture, Config, Linear, ModelError, Norm, Pooling, Weight, Weights};

/// All families.
pub static ALL: &[&Family] = &[
    &bert::FAMILY,
    &roberta::FAMILY,
    &distilbert::FAMILY,
    &mpnet::FAMILY,
    &electra::FAMILY,
    &ernie::FAMILY,
    &nomic::FAMILY,
    &gte::FAMILY,
    &modernbert::FAMILY,
];

/// A family of encoders that the forward pass computes.
#[non_exhaustive]
pub struct Family {
    /// What it is called.
    pub name: &'static str,
    /// Each `model_type` in `config.json` that is of it.
    pub model_types: &'static [&'static str],
    /// What its checkpoints put in front of the names that it spells, where they do.
    pub prefixes: &'static [&'static str],
    /// The tensor by which a file's prefix is found.
    pub(crate) words: &'static str,
    /// Classes of code that its checkpoints may bring with them: this is what they compute.
    pub(crate) code: &'static [&'static str],
    /// How token vectors become one where a model's files don't say.
    pub pooling: Pooling,
    /// What the keys of its `config.json` are called.
    pub(crate) keys: Keys,
    /// Where its positions start.
    pub(crate) positions: Positions,
    /// What is done about the keys of its `config.json`, beside those that all families have.
    pub(crate) rules: &'static [Row],
    /// What its head of classification is called, where it has one that is computed.
    pub(crate) classifier: Option<&'static Layout>,
    /// Reads what its `config.json` says beyond its keys, and checks it.
    pub(crate) settle: fn(&JsonFile, &mut Config) -> Result<(), ModelError>,
    /// Finds its tensors.
    pub(crate) read: fn(&Config, &Tensors<'_>) -> Result<Architecture, ModelError>,
}

impl Family {
    /// The keys of `config.json` that its own settings are read from.
    pub(crate) fn reads(&self) -> impl Iterator<Item = &'static str> {
        let Keys { hidden, layers, heads, intermediate, positions, .. } = self.keys;
        let Keys { activation, epsilon, token_types, embedding, relative_buckets, .. } = self.keys;
        let padding: &[_] = match self.positions {
            Positions::AfterPadding(_) => &["pad_token_id"],
            _ => &[],
        };
        let always = [hidden, layers, heads, intermediate, positions, activation.0, padding];
        let others = [epsilon.map(|(keys, _)| keys), token_types.map(|(keys, _)| keys)];
        let single = [embedding.map(|(key, _)| key), relative_buckets];
        let several = always.into_iter().chain(others.into_iter().flatten()).flatten().copied();
        several.chain(single.into_iter().flatten())
    }

    /// The family of this `model_type`, and the type.
    pub(crate) fn of(model_type: &str) -> Option<(&'static Self, &'static str)> {
        ALL.iter().copied().find_map(|family| {
            Some((family, *family.model_types.iter().find(|known| **known == model_type)?))
        })
    }
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.model_types == other.model_types
    }
}

impl Eq for Family {}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// The names of one key: the first that is there is read, and another must say the same.
pub(crate) type Names = &'static [&'static str];

/// What the keys of a family's `config.json` are called; without a key, it is as said here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keys {
    pub(crate) hidden: Names,
    pub(crate) layers: Names,
    pub(crate) heads: Names,
    pub(crate) intermediate: Names,
    pub(crate) positions: Names,
    /// And its default.
    pub(crate) activation: (Names, &'static str),
    /// What norms add to the variance, and its default: 1e-12.
    pub(crate) epsilon: Option<(Names, f64)>,
    /// Rows of the token type embeddings, and their default: none.
    pub(crate) token_types: Option<(Names, usize)>,
    /// Width of the embeddings, and its default: that of the layers.
    pub(crate) embedding: Option<(&'static str, usize)>,
    /// Rows of the attention bias by distance: none.
    pub(crate) relative_buckets: Option<&'static str>,
}

/// Where a family's positions start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Positions {
    /// At 0.
    FromZero,
    /// Behind this id, whatever `config.json` says.
    After(usize),
    /// Behind the padding token's id; this one where `config.json` is silent.
    AfterPadding(usize),
}

/// A model's tensors, found by name and checked against the sizes that they should have.
#[derive(Debug)]
pub(crate) struct Tensors<'a> {
    weights: &'a Weights,
    /// In front of all names.
    path: String,
    /// Of all norms.
    epsilon: f32,
}

impl<'a> Tensors<'a> {
    pub(crate) fn new(weights: &'a Weights, epsilon: f32) -> Self {
        Self { weights, path: String::new(), epsilon }
    }

    /// Those whose names begin with `part` and a full stop.
    fn under(&self, part: &str) -> Self {
        Self { path: format!("{}{part}.", self.path), ..*self }
    }

    /// A matrix.
    fn table(&self, name: &str, rows: usize, columns: usize) -> Result<Weight, ModelError> {
        let name = format!("{}{name}.weight", self.path);
        Ok(Weight::Tensor(self.weights.tensor(&name, &[rows, columns])?))
    }

    /// A linear layer, with a bias or without.
    fn layer(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
        bias: bool,
    ) -> Result<Linear, ModelError> {
        let bias = bias.then(|| {
            let name = format!("{}{name}.bias", self.path);
            self.weights.tensor(&name, &[outputs]).map(Weight::Tensor)
        });
        Ok(Linear { weight: self.table(name, outputs, inputs)?, bias: bias.transpose()? })
    }

    /// The first row of a matrix, where that is among the weights.
    fn first_row(&self, name: &str, columns: usize) -> Result<Option<Vec<f32>>, ModelError> {
        let whole = format!("{name}.weight");
        let Some(&[rows, _]) = self.weights.shape(&format!("{}{whole}", self.path)) else {
            return Ok(None);
        };
        let table = self.table(name, rows, columns)?;
        Ok(table.to_f32().get(..columns).map(<[f32]>::to_vec))
    }

    /// A linear layer with a bias.
    fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear, ModelError> {
        let (weight, bias) =
            self.weights.linear(&format!("{}{name}", self.path), outputs, inputs)?;
        Ok(Linear { weight: Weight::Tensor(weight), bias: Some(Weight::Tensor(bias)) })
    }

    /// Linear layers that read the same, as one: their outputs lie beside each other. Each has as
    /// many as inputs.
    fn stack(&self, names: &[&str], inputs: usize) -> Result<Linear, ModelError> {
        let part =
            |name: &&str| self.weights.linear(&format!("{}{name}", self.path), inputs, inputs);
        let parts = names.iter().map(part).collect::<Result<Vec<_>, _>>()?;
        let (weights, biases) = parts.into_iter().unzip();
        Ok(Linear { weight: Weight::Stack(weights), bias: Some(Weight::Stack(biases)) })
    }

    /// A layer normalisation that only scales.
    fn scale(&self, name: &str, columns: usize) -> Result<Norm, ModelError> {
        let gain = self.weights.tensor(&format!("{}{name}.weight", self.path), &[columns])?;
        Ok(Norm { gain: Weight::Tensor(gain), bias: None, epsilon: self.epsilon })
    }

    /// A layer normalisation.
    fn norm(&self, name: &str, columns: usize) -> Result<Norm, ModelError> {
        let (gain, bias) = self.weights.norm(&format!("{}{name}", self.path), columns)?;
        let (gain, bias) = (Weight::Tensor(gain), Some(Weight::Tensor(bias)));
        Ok(Norm { gain, bias, epsilon: self.epsilon })
    }
}
