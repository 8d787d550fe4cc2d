//! What a model was made for: the head that its files tell of.
//!
//! - [`Task`] is what it is served for; a [`Classifier`] is a head of classification.
//! - `made_for` finds out.
//!
//! A folder with `modules.json` says itself what becomes of its tokens' vectors, whatever head its
//! weights once had. One without says only which class saved it. The reference puts mean pooling on
//! any; but a reranker's tokens were never trained for that, and the vectors look like vectors. So a
//! head of classification is computed, one of a task that isn't is refused by name, and a language
//! model asks for a word from its user: a pooling of their choice.

mod classifier;

use std::path::Path;

pub use classifier::{Classifier, HeadLayer, ScoreActivation};
pub(super) use classifier::{Layout, Name};

use super::json::{Json, JsonFile, shortened};
use super::modules::Modules;
use super::{Config, ModelError, Warning, Weights, files};

/// What a model is served for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Task {
    /// A vector of each text.
    Embed,
    /// A score for each label, of a text or of two side by side.
    Classify(Classifier),
}

/// What the bodies of all families are called where they were saved without a head.
const BODIES: &[&str] = &[
    "BertModel",
    "ErnieModel",
    "RobertaModel",
    "XLMRobertaModel",
    "CamembertModel",
    "XLMModel",
    "DistilBertModel",
    "MPNetModel",
    "ElectraModel",
    "NomicBertModel",
    "NewModel",
    "GteModel",
    "ModernBertModel",
];

/// How the classes end that have a head of classification.
const CLASSIFIES: &str = "ForSequenceClassification";

/// What models were made for, by parts of the names of classes, the more special first.
const CLASSES: [(&str, Made); 16] = [
    ("ColBERT", Made::LateInteraction),
    ("ForRetrieval", Made::LateInteraction),
    ("MultiVector", Made::LateInteraction),
    ("Splade", Made::Sparse),
    ("Sparse", Made::Sparse),
    ("CrossEncoder", Made::Classify),
    (CLASSIFIES, Made::Classify),
    ("ForTokenClassification", Made::Tag),
    ("ForQuestionAnswering", Made::Answer),
    ("ForMultipleChoice", Made::Choose),
    ("ForCausalLM", Made::Generate),
    ("ForConditionalGeneration", Made::Generate),
    ("ForMaskedLM", Made::Language),
    ("ForPreTraining", Made::Language),
    ("ForNextSentencePrediction", Made::Language),
    ("LMHeadModel", Made::Generate),
];

/// The same, by tensors of their heads.
const TENSORS: [(&str, Made); 16] = [
    ("classifier.weight", Made::Classify),
    ("classifier.out_proj.weight", Made::Classify),
    ("classifier.dense.weight", Made::Classify),
    ("pre_classifier.weight", Made::Classify),
    ("score.weight", Made::Classify),
    ("qa_outputs.weight", Made::Answer),
    ("linear.weight", Made::LateInteraction),
    ("colbert_linear.weight", Made::LateInteraction),
    ("sparse_linear.weight", Made::Sparse),
    ("cls.predictions.transform.dense.weight", Made::Language),
    ("cls.seq_relationship.weight", Made::Language),
    ("lm_head.dense.weight", Made::Language),
    ("vocab_transform.weight", Made::Language),
    ("vocab_projector.weight", Made::Language),
    ("discriminator_predictions.dense.weight", Made::Language),
    ("generator_predictions.dense.weight", Made::Language),
];

/// What a class or a tensor says that a model was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Classify,
    Tag,
    Answer,
    Choose,
    Generate,
    LateInteraction,
    Sparse,
    /// To guess words, as all these bodies are trained first.
    Language,
    Unknown,
}

impl Made {
    fn words(self) -> &'static str {
        match self {
            Self::Classify => "classifies texts or ranks pairs of them",
            Self::Tag => "tags tokens",
            Self::Answer => "finds answers in texts",
            Self::Choose => "chooses between texts",
            Self::Generate => "generates text",
            Self::LateInteraction => "gives a vector for each token (late interaction)",
            Self::Sparse => "gives sparse vectors",
            Self::Language => "guesses words and was not trained to embed texts",
            Self::Unknown => "is of a kind that vecmill doesn't know",
        }
    }

    /// Whether a user may say that its body embeds all the same.
    fn may_embed(self) -> bool {
        matches!(self, Self::Language | Self::Unknown)
    }
}

/// What the model is for; `chosen` says that its user has chosen a pooling.
///
/// # Errors
/// When that is nothing that is served.
pub(super) fn made_for(
    modules: &Modules,
    file: &JsonFile,
    (config, weights): (&Config, &Weights),
    chosen: bool,
    warnings: &mut Vec<Warning>,
) -> Result<Task, ModelError> {
    let classifies = match modules.classifies() {
        Some(classifies) => classifies,
        None => bare(file, (config, weights), modules.transformer(), chosen, warnings)?,
    };
    if !classifies {
        return Ok(Task::Embed);
    }
    let general = JsonFile::open_optional(&modules.folder.join(files::PROMPTS))?;
    let general = Some(&general).filter(|_| modules.listed);
    match config.family.classifier.filter(|_| !chosen) {
        Some(layout) => {
            Classifier::open(layout, (file, general), config, weights).map(Task::Classify)
        }
        None => Err(refusal(file.path(), "modules.json".to_owned(), Made::Classify)),
    }
}

fn refusal(path: &Path, found: String, made: Made) -> ModelError {
    let path = path.to_owned();
    ModelError::Task { path, found, task: made.words(), may_embed: made.may_embed() }
}

/// Whether a folder without `modules.json` classifies. One that was made for something that is not
/// served is refused.
fn bare(
    file: &JsonFile,
    (config, weights): (&Config, &Weights),
    folder: &Path,
    chosen: bool,
    warnings: &mut Vec<Warning>,
) -> Result<bool, ModelError> {
    let mut refuse = |path: &Path, found: String, made: Made| {
        if chosen && made.may_embed() {
            let what = format!("{found} says that the model {}", made.words());
            warnings.push(Warning::new(path, what));
            return Ok(());
        }
        Err(refusal(path, found, made))
    };
    let (mut body, mut classifies) = (false, false);
    for class in architectures(file)? {
        match made(class) {
            Some(Made::Classify)
                if class.ends_with(CLASSIFIES) && config.family.classifier.is_some() && !chosen =>
            {
                classifies = true;
            }
            Some(made) => {
                refuse(file.path(), format!("the architecture '{}'", shortened(class)), made)?;
            }
            None => body = true,
        }
    }
    for key in ["sbert_ce_default_activation_function", "sentence_transformers"] {
        if file.get(key).is_some() && !classifies {
            refuse(file.path(), format!("the key '{key}'"), Made::Classify)?;
        }
    }
    let metadata = folder.join(files::COLBERT);
    if super::file::has_file(&metadata)? {
        refuse(&metadata, "this file".to_owned(), Made::LateInteraction)?;
    }
    for (tensor, made) in TENSORS {
        // What is left of training in a file is of no concern where a class says what it is.
        let left = (body || classifies) && made.may_embed();
        let own = classifies && made == Made::Classify;
        if weights.has(tensor) && !left && !own {
            refuse(&weights.path, format!("the tensor '{tensor}'"), made)?;
        }
    }
    Ok(classifies)
}

fn architectures(config: &JsonFile) -> Result<Vec<&str>, ModelError> {
    let key = "architectures";
    let Some(value) = config.get(key) else { return Ok(Vec::new()) };
    let classes = value.as_array().map(|classes| classes.iter().map(Json::as_text).collect());
    classes.flatten().ok_or_else(|| config.wrong(key, "an array of strings"))
}

/// `None` for a body without a head.
fn made(class: &str) -> Option<Made> {
    let plain = class.strip_prefix("TF").or(class.strip_prefix("Flax")).unwrap_or(class);
    if BODIES.contains(&plain) {
        return None;
    }
    let made = CLASSES.into_iter().find(|(part, _)| class.contains(part));
    Some(made.map_or(Made::Unknown, |(_, made)| made))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_told_apart() {
        for (class, expected) in [
            ("BertModel", None),
            ("TFXLMRobertaModel", None),
            ("XLMRobertaForSequenceClassification", Some(Made::Classify)),
            ("BertForTokenClassification", Some(Made::Tag)),
            ("DistilBertForMaskedLM", Some(Made::Language)),
            ("BertForPreTraining", Some(Made::Language)),
            ("BertLMHeadModel", Some(Made::Generate)),
            ("Qwen3ForCausalLM", Some(Made::Generate)),
            ("HF_ColBERT", Some(Made::LateInteraction)),
            ("Contriever", Some(Made::Unknown)),
        ] {
            assert_eq!(made(class), expected, "{class}");
        }
    }
}
