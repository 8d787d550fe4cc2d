//! Which of the model's prompts a request means, by whichever server's word for it.

use vecmill_engine::{Info, Prompt};

use super::object::{Object, agreed, wrong};
use crate::failure::Failure;

/// Words for tasks that a model may have a prompt for, in groups that mean the same.
const TASKS: [&[&str]; 2] = [
    &["query", "search_query", "retrieval.query"],
    &["document", "passage", "search_document", "retrieval.passage", "retrieval.document"],
];

/// Words for tasks that no prompt is needed for if the model has none of that name.
const PLAIN_TASKS: [&str; 5] =
    ["classification", "clustering", "text-matching", "separation", "embed"];

/// The prompt that is named, or written out, or that the model has for the task.
pub(crate) fn prompt(object: &Object<'_>, info: &Info) -> Result<Prompt, Failure> {
    let text = |name| object.field(name).optional::<String>("a string");
    let task = |name| match text(name)? {
        Some(word) => Ok::<_, Failure>((name, of_task(name, &word, info)?)),
        None => Ok((name, None)),
    };
    let prompt = agreed([
        ("prompt_name", text("prompt_name")?.map(|name| Prompt::Named(short(name, info)))),
        ("prompt", text("prompt")?.map(Prompt::Text)),
        task("input_type")?,
        task("task")?,
    ])?;
    Ok(prompt.unwrap_or_default())
}

/// A prompt's name, cut if it is too long to be repeated in an error: then there is no such prompt.
fn short(name: String, info: &Info) -> String {
    const LONG: usize = 80;
    if name.len() <= LONG || info.prompts.contains_key(&name) {
        return name;
    }
    name.chars().take(LONG).chain(['…']).collect()
}

/// The model's prompt for a task; `None` if the task says nothing to this model. A model without
/// prompts takes any task, because clients of Cohere and Voyage always send one.
fn of_task(field: &'static str, word: &str, info: &Info) -> Result<Option<Prompt>, Failure> {
    let named =
        |name: &str| info.prompts.contains_key(name).then(|| Prompt::Named(name.to_owned()));
    if let Some(prompt) = named(word) {
        return Ok(Some(prompt));
    }
    let same = TASKS.iter().find(|words| words.contains(&word));
    if let Some(prompt) = same.and_then(|words| words.iter().find_map(|word| named(word))) {
        return Ok(Some(prompt));
    }
    if same.is_none() && !PLAIN_TASKS.contains(&word) {
        let known = TASKS.concat();
        let own = info.prompts.keys().map(String::as_str);
        let known: Vec<&str> = own.chain(known).chain(PLAIN_TASKS).collect();
        return Err(wrong(field, &format!("must be one of {}", known.join(", "))));
    }
    Ok((!info.prompts.is_empty()).then_some(Prompt::None))
}
