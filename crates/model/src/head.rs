//! What a bare transformer was made for: the head that its files tell of.
//!
//! A folder with `modules.json` says itself how its tokens' vectors become an embedding, whatever
//! head its weights once had. One without says only which class saved it. The reference puts mean
//! pooling on any; but a reranker's tokens were never trained for that, and the vectors look like
//! vectors. So a head of another task is refused, and a language model asks for a word from its
//! user: a pooling of their choice.

use std::path::Path;

use super::json::{Json, JsonFile, shortened};
use super::{ModelError, Warning, Weights};

/// What the bodies of all families are called where they were saved without a head.
const BODIES: [&str; 9] = [
    "BertModel",
    "ErnieModel",
    "RobertaModel",
    "XLMRobertaModel",
    "CamembertModel",
    "XLMModel",
    "DistilBertModel",
    "MPNetModel",
    "ElectraModel",
];

/// Tasks by parts of the names of classes, the more special first.
const CLASSES: [(&str, Task); 16] = [
    ("ColBERT", Task::LateInteraction),
    ("ForRetrieval", Task::LateInteraction),
    ("MultiVector", Task::LateInteraction),
    ("Splade", Task::Sparse),
    ("Sparse", Task::Sparse),
    ("CrossEncoder", Task::Classify),
    ("ForSequenceClassification", Task::Classify),
    ("ForTokenClassification", Task::Tag),
    ("ForQuestionAnswering", Task::Answer),
    ("ForMultipleChoice", Task::Choose),
    ("ForCausalLM", Task::Generate),
    ("ForConditionalGeneration", Task::Generate),
    ("ForMaskedLM", Task::Language),
    ("ForPreTraining", Task::Language),
    ("ForNextSentencePrediction", Task::Language),
    ("LMHeadModel", Task::Generate),
];

/// Tasks by tensors of their heads.
const TENSORS: [(&str, Task); 16] = [
    ("classifier.weight", Task::Classify),
    ("classifier.out_proj.weight", Task::Classify),
    ("classifier.dense.weight", Task::Classify),
    ("pre_classifier.weight", Task::Classify),
    ("score.weight", Task::Classify),
    ("qa_outputs.weight", Task::Answer),
    ("linear.weight", Task::LateInteraction),
    ("colbert_linear.weight", Task::LateInteraction),
    ("sparse_linear.weight", Task::Sparse),
    ("cls.predictions.transform.dense.weight", Task::Language),
    ("cls.seq_relationship.weight", Task::Language),
    ("lm_head.dense.weight", Task::Language),
    ("vocab_transform.weight", Task::Language),
    ("vocab_projector.weight", Task::Language),
    ("discriminator_predictions.dense.weight", Task::Language),
    ("generator_predictions.dense.weight", Task::Language),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
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

impl Task {
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

/// Refuses a folder without `modules.json` that was made for something else than embedding;
/// `chosen` says that its user has chosen a pooling.
pub(super) fn check(
    config: &JsonFile,
    weights: &Weights,
    folder: &Path,
    chosen: bool,
    warnings: &mut Vec<Warning>,
) -> Result<(), ModelError> {
    let mut refuse = |path: &Path, found: String, task: Task| {
        if chosen && task.may_embed() {
            let what = format!("{found} says that the model {}", task.words());
            warnings.push(Warning::new(path, what));
            return Ok(());
        }
        let path = path.to_owned();
        Err(ModelError::Task { path, found, task: task.words(), may_embed: task.may_embed() })
    };
    let mut body = false;
    for class in architectures(config)? {
        match task_of(class) {
            Some(task) => {
                refuse(config.path(), format!("the architecture '{}'", shortened(class)), task)?;
            }
            None => body = true,
        }
    }
    for key in ["sbert_ce_default_activation_function", "sentence_transformers"] {
        if config.get(key).is_some() {
            refuse(config.path(), format!("the key '{key}'"), Task::Classify)?;
        }
    }
    let metadata = folder.join(super::files::COLBERT);
    if super::file::has_file(&metadata)? {
        refuse(&metadata, "this file".to_owned(), Task::LateInteraction)?;
    }
    for (tensor, task) in TENSORS {
        // What is left of training in the file of a body is of no concern.
        if weights.has(tensor) && !(body && task.may_embed()) {
            refuse(&weights.path, format!("the tensor '{tensor}'"), task)?;
        }
    }
    Ok(())
}

fn architectures(config: &JsonFile) -> Result<Vec<&str>, ModelError> {
    let key = "architectures";
    let Some(value) = config.get(key) else { return Ok(Vec::new()) };
    let classes = value.as_array().map(|classes| classes.iter().map(Json::as_text).collect());
    classes.flatten().ok_or_else(|| config.wrong(key, "an array of strings"))
}

/// `None` for a body without a head.
fn task_of(class: &str) -> Option<Task> {
    let plain = class.strip_prefix("TF").or(class.strip_prefix("Flax")).unwrap_or(class);
    if BODIES.contains(&plain) {
        return None;
    }
    let task = CLASSES.into_iter().find(|(part, _)| class.contains(part));
    Some(task.map_or(Task::Unknown, |(_, task)| task))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_told_apart() {
        for (class, task) in [
            ("BertModel", None),
            ("TFXLMRobertaModel", None),
            ("XLMRobertaForSequenceClassification", Some(Task::Classify)),
            ("BertForTokenClassification", Some(Task::Tag)),
            ("DistilBertForMaskedLM", Some(Task::Language)),
            ("BertForPreTraining", Some(Task::Language)),
            ("BertLMHeadModel", Some(Task::Generate)),
            ("Qwen3ForCausalLM", Some(Task::Generate)),
            ("HF_ColBERT", Some(Task::LateInteraction)),
            ("Contriever", Some(Task::Unknown)),
        ] {
            assert_eq!(task_of(class), task, "{class}");
        }
    }
}
