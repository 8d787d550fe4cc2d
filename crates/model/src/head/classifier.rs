//! Heads of classification: a row of scores of one text, or of two side by side.
//!
//! - [`Layout`] is what a family calls its head's parts; it is data in the family's row.
//! - [`Classifier`] is a model's own: tensors, labels, and what is applied to its scores.
//!
//! The choice behind it: heads differ in which layers stand between the first token's row and the
//! scores. So a head is a list of layers, and whoever computes it knows no family.

use std::ops::RangeInclusive;

use crate::config::{Activation, Config};
use crate::json::{Json, JsonFile, shortened};
use crate::{Linear, ModelError, Norm, Pooling, TensorView, Weight, Weights};

const LABELS: RangeInclusive<usize> = 1..=1 << 16;

/// Where `config.json` has none.
const DEFAULT_LABELS: usize = 2;

/// What a family calls the parts of its head, in the order in which a row goes through them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// A layer as wide as the body's.
    pub(crate) dense: Name,
    /// Behind that.
    pub(crate) activation: Activation,
    /// From there to the scores.
    pub(crate) out: Name,
}

/// A layer's name.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Name {
    /// Among the body's, behind what they all begin with.
    Body(&'static str),
    /// Beside the body, whole.
    Head(&'static str),
}

/// A head of classification.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Classifier {
    /// How a text's rows become one.
    pub pooling: Pooling,
    /// What that row goes through; the last one gives a score for each label.
    pub layers: Vec<HeadLayer>,
    /// The labels' names, in the order of the scores.
    pub labels: Vec<String>,
    /// What is applied to a text's scores, unless a request says otherwise.
    pub activation: ScoreActivation,
}

/// A layer of a head.
#[derive(Debug, Clone)]
pub enum HeadLayer {
    /// `activation(weight · row + bias)`
    Linear(Linear, Activation),
    /// Normalises the row.
    Norm(Norm),
}

/// What is applied to a text's scores together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScoreActivation {
    /// Nothing: they are the head's own numbers, called logits.
    Identity,
    /// 1 / (1 + exp(−x)) of each: how sure each label is by itself.
    Sigmoid,
    /// Each exp(x) over the sum of all: how sure one label is rather than the others.
    Softmax,
}

impl ScoreActivation {
    /// By the class that sentence-transformers names, as `torch.nn.modules.activation.Sigmoid`.
    fn from_class(class: &str) -> Option<Self> {
        Some(match class.strip_prefix("torch.nn.")?.rsplit('.').next()? {
            "Identity" => Self::Identity,
            "Sigmoid" => Self::Sigmoid,
            "Softmax" => Self::Softmax,
            _ => return None,
        })
    }

    /// Applies it to the scores of one text.
    ///
    /// ```
    /// use vecmill_model::ScoreActivation;
    ///
    /// let mut scores = [0.0, 0.0];
    /// ScoreActivation::Softmax.apply(&mut scores);
    /// assert_eq!(scores, [0.5, 0.5]);
    /// ```
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
    pub fn apply(self, scores: &mut [f32]) {
        match self {
            Self::Identity => {}
            Self::Sigmoid => {
                for score in scores {
                    *score = (1.0 / (1.0 + (-f64::from(*score)).exp())) as f32;
                }
            }
            Self::Softmax => {
                // Without the largest, exponentials can't overflow.
                let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let power = |score: f32| (f64::from(score) - f64::from(largest)).exp();
                let sum: f64 = scores.iter().map(|&score| power(score)).sum();
                scores.iter_mut().for_each(|score| *score = (power(*score) / sum) as f32);
            }
        }
    }
}

impl Classifier {
    /// Finds the head in a model's files. `general` is what sentence-transformers says of the whole.
    pub(super) fn open(
        layout: &Layout,
        (file, general): (&JsonFile, Option<&JsonFile>),
        config: &Config,
        weights: &Weights,
    ) -> Result<Self, ModelError> {
        let labels = labels(file)?;
        let linear = |name: Name, outputs: usize| {
            let (weight, bias) = match name {
                Name::Body(name) => weights.linear(name, outputs, config.hidden)?,
                Name::Head(name) => weights.whole_names().linear(name, outputs, config.hidden)?,
            };
            let tensor = |tensor: TensorView| Weight::Tensor(tensor);
            Ok::<_, ModelError>(Linear { weight: tensor(weight), bias: Some(tensor(bias)) })
        };
        let layers = vec![
            HeadLayer::Linear(linear(layout.dense, config.hidden)?, layout.activation),
            HeadLayer::Linear(linear(layout.out, labels.len())?, Activation::Identity),
        ];
        let activation = activation(file, general, labels.len())?;
        Ok(Self { pooling: Pooling::Cls, layers, labels, activation })
    }
}

/// The labels' names: as many as the head has outputs.
fn labels(file: &JsonFile) -> Result<Vec<String>, ModelError> {
    let key = "id2label";
    let Some(value) = file.get(key) else {
        let count = match file.integer("num_labels", LABELS)? {
            None => file.integer("_num_labels", LABELS)?,
            count => count,
        };
        return Ok((0..count.unwrap_or(DEFAULT_LABELS)).map(|id| format!("LABEL_{id}")).collect());
    };
    let wrong = || {
        let expected = format!("an object from {} to {} ids, from 0 on, to names", 1, LABELS.end());
        file.wrong(key, expected)
    };
    let names = value.as_object().ok_or_else(wrong)?;
    if !LABELS.contains(&names.len()) {
        return Err(wrong());
    }
    // A file may say numbers where transformers says names.
    let name = |id: usize| match names.get(&id.to_string())? {
        Json::Text(name) => Some(name.clone()),
        other => other.as_integer().map(|number| number.to_string()),
    };
    (0..names.len()).map(|id| name(id).ok_or_else(wrong)).collect()
}

/// What the files say is applied to scores; where they are silent, what transformers does.
fn activation(
    file: &JsonFile,
    general: Option<&JsonFile>,
    labels: usize,
) -> Result<ScoreActivation, ModelError> {
    let key = "activation_fn";
    let own = match file.get("sentence_transformers") {
        Some(value) => Some(JsonFile::part(file.path(), value.clone())?),
        None => None,
    };
    let said =
        [(general, key), (own.as_ref(), key), (Some(file), "sbert_ce_default_activation_function")];
    for (file, key) in said {
        if let Some(file) = file
            && let Some(class) = file.text(key)?
        {
            let known = ScoreActivation::from_class(class);
            return known.ok_or_else(|| ModelError::Unsupported {
                path: file.path().to_owned(),
                what: "the activation of scores",
                found: shortened(class),
                supported: "torch.nn's Identity, Sigmoid, Softmax".to_owned(),
            });
        }
    }
    Ok(match file.text("problem_type")? {
        Some("regression") => ScoreActivation::Identity,
        Some("multi_label_classification") => ScoreActivation::Sigmoid,
        _ if labels == 1 => ScoreActivation::Sigmoid,
        _ => ScoreActivation::Softmax,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn file(text: &str) -> JsonFile {
        JsonFile::parse(Path::new("config.json"), text.as_bytes()).unwrap()
    }

    #[test]
    fn labels_are_counted_by_their_names() {
        let named = |text| labels(&file(text)).map_err(|error| error.to_string());
        assert_eq!(named("{}").unwrap(), ["LABEL_0", "LABEL_1"]);
        assert_eq!(named(r#"{"num_labels": 1}"#).unwrap(), ["LABEL_0"]);
        let several = r#"{"id2label": {"1": "no", "0": "yes", "2": 7}, "num_labels": 9}"#;
        assert_eq!(named(several).unwrap(), ["yes", "no", "7"]);
        for wrong in [r#"{"id2label": {}}"#, r#"{"id2label": {"1": "a"}}"#, r#"{"id2label": 3}"#] {
            assert!(named(wrong).unwrap_err().contains("id2label"), "{wrong}");
        }
    }

    #[test]
    fn the_activation_is_what_files_say_in_their_order() {
        use ScoreActivation::{Identity, Sigmoid, Softmax};
        let old = r#""sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity""#;
        let own = r#""sentence_transformers": {"activation_fn": "torch.nn.Softmax"}"#;
        let general = r#"{"activation_fn": "torch.nn.modules.activation.Sigmoid"}"#;
        for (config, general, labels, expected) in [
            ("{}".to_owned(), "{}", 1, Sigmoid),
            ("{}".to_owned(), "{}", 3, Softmax),
            (r#"{"problem_type": "multi_label_classification"}"#.to_owned(), "{}", 3, Sigmoid),
            (r#"{"problem_type": "regression"}"#.to_owned(), "{}", 1, Identity),
            (format!("{{{old}}}"), "{}", 1, Identity),
            (format!("{{{old}, {own}}}"), "{}", 1, Softmax),
            (format!("{{{old}, {own}}}"), general, 3, Sigmoid),
        ] {
            let found = activation(&file(&config), Some(&file(general)), labels).unwrap();
            assert_eq!(found, expected, "{config} {general}");
        }
        let foreign = file(r#"{"activation_fn": "modeling.Steps"}"#);
        let error = activation(&file("{}"), Some(&foreign), 1).unwrap_err().to_string();
        assert!(error.contains("modeling.Steps"), "{error}");
    }

    #[test]
    fn large_scores_stay_numbers() {
        let mut scores = [1000.0, 1000.0, -1000.0];
        ScoreActivation::Softmax.apply(&mut scores);
        assert_eq!(scores, [0.5, 0.5, 0.0]);
        let mut scores = [1000.0, -1000.0];
        ScoreActivation::Sigmoid.apply(&mut scores);
        assert_eq!(scores, [1.0, 0.0]);
        let mut scores = [f32::NAN, 1.0];
        ScoreActivation::Softmax.apply(&mut scores);
        assert!(scores.iter().all(|score| score.is_nan()), "a fault doesn't pass for a score");
    }
}
