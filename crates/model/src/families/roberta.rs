//! RoBERTa (Liu et al., arXiv:1907.11692), XLM-RoBERTa (Conneau et al., arXiv:1911.02116) and CamemBERT
//! (Martin et al., arXiv:1911.03894): BERT whose positions start behind the padding's.

use super::super::Activation;
use super::super::head::{Layout, Name};
use super::{Family, Positions, bert};

pub(super) const FAMILY: Family = Family {
    name: "RoBERTa, XLM-RoBERTa and CamemBERT",
    model_types: &["roberta", "xlm-roberta", "camembert"],
    prefixes: &["roberta."],
    positions: Positions::AfterPadding(1),
    rules: &[bert::ABSOLUTE],
    classifier: Some(&CLASSIFIER),
    ..bert::FAMILY
};

pub(super) const CLASSIFIER: Layout = Layout {
    dense: Name::Head("classifier.dense"),
    activation: Activation::Tanh,
    out: Name::Head("classifier.out_proj"),
};
