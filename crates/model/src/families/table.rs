//! Models that are a table and no transformer: a text is the mean of its tokens' rows.
//!
//! Two libraries write them: sentence-transformers as `StaticEmbedding` ("embedding.weight"), and
//! Model2Vec, of whose tables a row may stand for several tokens (`mapping`), and which may weigh
//! tokens. What these say is made into a row for each token while the table is loaded.

use safetensors::tensor::Dtype;

use super::super::entry::Entry;
use super::super::tensor::{elements, widened};
use super::super::{
    Activation, Architecture, Config, Embedding, ModelError, TensorView, Weight, Weights, weights,
};
use super::{Family, Tensors, bert};
use crate::config::Biases;

/// Not one of [`ALL`](super::ALL): no `config.json` has its sizes.
pub(crate) static FAMILY: Family = Family {
    name: "static embeddings",
    model_types: &["static"],
    prefixes: &[],
    words: "embedding.weight",
    classifier: None,
    rules: &[],
    read,
    ..bert::FAMILY
};

/// The most bytes that a table takes when each token has a row of its own: the largest have a tenth.
const LIMIT: usize = 4 << 30;

/// As many tokens of a text as nobody has.
const TOKENS: usize = 1 << 20;

/// The names that a table may have.
const NAMES: [&str; 2] = ["embedding.weight", "embeddings"];

/// The sizes of the table among `weights`.
pub(crate) fn config(weights: &Weights) -> Result<Config, ModelError> {
    let table = Table::of(weights)?;
    Ok(Config {
        family: &FAMILY,
        model_type: "static",
        hidden: table.columns,
        embedding: table.columns,
        layers: 0,
        heads: 1,
        head_size: table.columns,
        intermediate: 0,
        vocabulary: table.tokens,
        positions: TOKENS,
        position_offset: 0,
        token_types: 0,
        epsilon: 0.0,
        activation: Activation::Identity,
        relative_buckets: None,
        sights: Vec::new(),
        biases: Biases { attention: false, up: false, down: false, norm: false },
    })
}

fn read(_: &Config, tensors: &Tensors<'_>) -> Result<Architecture, ModelError> {
    let words = Table::of(tensors.weights)?.words(tensors.weights)?;
    let embedding = Embedding { words, positions: None, types: None, norm: None, projection: None };
    Ok(Architecture { embedding, layers: Vec::new(), norm: None })
}

/// A table as it is stored.
struct Table<'a> {
    name: &'static str,
    entry: &'a Entry,
    /// For each token, its row.
    mapping: Option<&'a Entry>,
    /// For each token, what its row is multiplied by.
    scales: Option<&'a Entry>,
    tokens: usize,
    columns: usize,
}

impl<'a> Table<'a> {
    fn of(weights: &'a Weights) -> Result<Self, ModelError> {
        let tensors = &weights.tensors;
        let found = NAMES.into_iter().find_map(|name| Some((name, tensors.get(name)?)));
        let Some((name, entry)) = found else {
            let [tensor, _] = NAMES.map(str::to_owned);
            return Err(ModelError::MissingTensor { path: weights.path.clone(), tensor });
        };
        let of_name =
            |name: &str| tensors.get(name).filter(|_| found.is_some_and(|it| it.0 == NAMES[1]));
        let (mapping, scales) = (of_name("mapping"), of_name("weights"));
        let columns = entry.shape.get(1).copied().unwrap_or(0);
        let rows = entry.shape.first().copied().unwrap_or(0);
        let tokens = mapping.map_or(rows, |mapping| mapping.shape.first().copied().unwrap_or(0));
        let table = Self { name, entry, mapping, scales, tokens, columns };
        let bytes = elements(&[tokens, columns, size_of::<f32>()]);
        if entry.shape.len() != 2 || !bytes.is_some_and(|bytes| (1..=LIMIT).contains(&bytes)) {
            return Err(table.misshapen(weights, name, entry, vec![tokens, columns.max(1)]));
        }
        for (name, per_token) in [("mapping", mapping), ("weights", scales)] {
            if let Some(entry) = per_token.filter(|entry| *entry.shape != [tokens]) {
                return Err(table.misshapen(weights, name, entry, vec![tokens]));
            }
        }
        Ok(table)
    }

    /// A row for each token.
    fn words(&self, weights: &Weights) -> Result<Weight, ModelError> {
        if self.mapping.is_none() && self.scales.is_none() && self.entry.dtype != Dtype::I8 {
            let shape = [self.tokens, self.columns];
            return weights.tensor(self.name, &shape).map(Weight::Tensor);
        }
        let rows = numbers(self.name, self.entry)?;
        let scales = self.scales.map(|entry| numbers("weights", entry)).transpose()?;
        let mut words = Vec::with_capacity(self.tokens * self.columns);
        for token in 0..self.tokens {
            let row = match self.mapping {
                Some(mapping) => index(mapping, token)?,
                None => Some(token),
            };
            let start = row.and_then(|row| row.checked_mul(self.columns));
            let row = start.and_then(|start| rows.get(start..start.checked_add(self.columns)?));
            let Some(row) = row else {
                return Err(self.misshapen(
                    weights,
                    self.name,
                    self.entry,
                    vec![token, self.columns],
                ));
            };
            let scale =
                scales.as_ref().and_then(|scales| scales.get(token)).copied().unwrap_or(1.0);
            words.extend(row.iter().map(|number| number * scale));
        }
        TensorView::from_f32(self.name, &[self.tokens, self.columns], words).map(Weight::Tensor)
    }

    fn misshapen(
        &self,
        weights: &Weights,
        tensor: &str,
        entry: &Entry,
        expected: Vec<usize>,
    ) -> ModelError {
        let (path, tensor) = (weights.path.clone(), tensor.to_owned());
        ModelError::Shape { path, tensor, expected, found: entry.shape.to_vec() }
    }
}

/// The numbers of a tensor in single precision.
fn numbers(name: &str, entry: &Entry) -> Result<Vec<f32>, ModelError> {
    let bytes = entry.bytes();
    match (weights::dtype(entry.dtype), entry.dtype) {
        (Some(dtype), _) => Ok(widened(&bytes, dtype).into_owned()),
        (None, Dtype::I8) => Ok(bytes.iter().map(|&byte| f32::from(byte.cast_signed())).collect()),
        _ => Err(format_of(name, entry)),
    }
}

/// The row of a token; `None` for a negative one.
fn index(mapping: &Entry, token: usize) -> Result<Option<usize>, ModelError> {
    let bytes = mapping.file.get(mapping.range.clone()).unwrap_or_default();
    let row = match mapping.dtype {
        Dtype::I64 => bytes.as_chunks().0.get(token).map(|&row| i64::from_le_bytes(row)),
        Dtype::I32 => bytes.as_chunks().0.get(token).map(|&row| i32::from_le_bytes(row).into()),
        _ => return Err(format_of("mapping", mapping)),
    };
    Ok(row.and_then(|row| usize::try_from(row).ok()))
}

fn format_of(name: &str, entry: &Entry) -> ModelError {
    let (path, tensor) = (entry.path.to_path_buf(), name.to_owned());
    ModelError::NumberFormat { path, tensor, found: format!("{:?}", entry.dtype) }
}
