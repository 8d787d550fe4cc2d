//! What an engine makes sure of before it is ready: that the tokenizer and the weights belong
//! together, and that each device makes numbers of texts.
//!
//! The choice behind it: a model that can serve no text is refused at the start, in words; one that
//! can't serve some is served, and those inputs are refused one by one.

use crate::error::{RequestError, StartError};
use crate::request::Truncation;
use crate::tokenize::Tokenizer;

/// What every model should make something of.
const TEXTS: [&str; 3] = ["Hello, world!", "good morning", "1 2 3"];

/// The ids of practice texts, for a model with `rows` embeddings.
pub(crate) fn texts(tokenizer: &Tokenizer, rows: usize) -> Result<Vec<Vec<u32>>, StartError> {
    let (tokens, last) = tokenizer.vocabulary();
    if tokens > rows {
        return Err(StartError::Vocabulary { tokens, rows });
    }
    if let Some((id, token)) = last.filter(|(id, _)| *id as usize >= rows) {
        let token: String = token.chars().take(40).collect();
        tracing::warn!(
            id,
            token,
            rows,
            "the tokenizer has added tokens that the model has no embeddings for: texts with them are refused"
        );
    }
    let known = |ids: &Vec<u32>| !ids.is_empty() && ids.iter().all(|&id| (id as usize) < rows);
    let ids = TEXTS.map(|text| tokenizer.ids(text, Truncation::End));
    let refused = ids.iter().find_map(|ids| ids.as_ref().err()).map(RequestError::to_string);
    let ids: Vec<_> = ids.into_iter().flatten().filter(known).collect();
    if ids.is_empty() {
        let reason = refused.unwrap_or_else(|| "it has no embeddings for their tokens".to_owned());
        return Err(StartError::Practice { reason });
    }
    Ok(ids)
}

/// Has a device, which computes in `format`, embed them: some of the vectors must be finite.
pub(crate) fn practise(
    name: &str,
    format: &str,
    texts: &[Vec<u32>],
    embed: impl FnOnce(&[Vec<u32>]) -> Result<Vec<Vec<f32>>, String>,
) -> Result<(), StartError> {
    let vectors = embed(texts).map_err(|error| StartError::NoDevice {
        device: name.to_owned(),
        reason: format!("the practice texts failed: {error}"),
    })?;
    let is_finite = |vector: &&Vec<f32>| vector.iter().all(|value| value.is_finite());
    match vectors.iter().filter(is_finite).count() {
        0 => Err(StartError::NotFinite { device: name.to_owned(), format: format.to_owned() }),
        finite => {
            if finite < texts.len() {
                tracing::warn!(
                    device = name,
                    finite,
                    of = texts.len(),
                    "the model's vectors for some practice texts are not finite numbers"
                );
            }
            Ok(())
        }
    }
}
