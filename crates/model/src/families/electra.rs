//! ELECTRA (Clark et al., arXiv:2003.10555): BERT whose embeddings may be narrower than its layers.

use super::super::head::Layout;
use super::super::keys::{Rule, row};
use super::super::{Activation, Architecture, Config, Embedding, ModelError};
use super::{Family, Keys, Tensors, bert, roberta};

pub(super) const FAMILY: Family = Family {
    name: "ELECTRA",
    model_types: &["electra"],
    prefixes: &["electra."],
    keys: Keys { embedding: Some(("embedding_size", 128)), ..bert::KEYS },
    rules: &[
        bert::PADDING,
        bert::ABSOLUTE,
        row(
            &["summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout"],
            Rule::Unread("of heads that an embedding doesn't go through"),
        ),
    ],
    classifier: Some(&Layout { activation: Activation::Gelu, ..roberta::CLASSIFIER }),
    read,
    ..bert::FAMILY
};

fn read(config: &Config, tensors: &Tensors<'_>) -> Result<Architecture, ModelError> {
    let body = bert::read(config, tensors)?;
    let project = || tensors.linear("embeddings_project", config.hidden, config.embedding);
    let projection = (config.embedding != config.hidden).then(project).transpose()?;
    Ok(Architecture { embedding: Embedding { projection, ..body.embedding }, ..body })
}
