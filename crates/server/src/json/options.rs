//! What the fields of a request ask for, whichever server's word for it was used.
//!
//! Contracts have several words for one thing (`dimensions`, `output_dimension`). Any of them is
//! taken on each route that makes vectors; of two that contradict each other the request is refused.

use vecmill_engine::{Info, Priority, Prompt, Request, RequestError, Truncation};

use super::fields::{Field, Whole, wrong};
use super::object::Object;
use crate::Settings;
use crate::failure::Failure;

pub(crate) const BOOLEAN: &str = "true or false";
const DIMENSIONS: &str = "a whole number of at least 1";
const SIDE: &str = "'left' or 'right'";
const CUT: &str = "true, false, 'NONE', 'START' or 'END'";

/// Words for tasks that a model may have a prompt for, in groups that mean the same.
const TASKS: [&[&str]; 2] = [
    &["query", "search_query", "retrieval.query"],
    &["document", "passage", "search_document", "retrieval.passage", "retrieval.document"],
];

/// Words for tasks that no prompt is needed for if the model has none of that name.
const PLAIN_TASKS: [&str; 5] =
    ["classification", "clustering", "text-matching", "separation", "embed"];

/// What is asked for beside the inputs.
pub(crate) fn request(
    object: &Object<'_>,
    info: &Info,
    settings: &Settings,
) -> Result<Request, Failure> {
    Ok(Request {
        truncation: truncation(object, info, settings)?,
        normalize: normalize(object)?,
        dimensions: dimensions(object, info)?,
        prompt: prompt(object, info)?,
        priority: priority(object)?,
        ..Request::default()
    })
}

/// What the fields that were sent agree on.
fn agreed<T: PartialEq>(
    words: impl IntoIterator<Item = (&'static str, Option<T>)>,
) -> Result<Option<T>, Failure> {
    let mut agreed: Option<(&str, T)> = None;
    for (name, value) in words {
        match (&agreed, value) {
            (Some((first, held)), Some(value)) if *held != value => {
                return Err(wrong(name, &format!("contradicts `{first}`: send one of them")));
            }
            (None, Some(value)) => agreed = Some((name, value)),
            _ => {}
        }
    }
    Ok(agreed.map(|(_, value)| value))
}

fn normalize(object: &Object<'_>) -> Result<Option<bool>, Failure> {
    let flag = |name| Ok::<_, Failure>((name, object.field(name).optional(BOOLEAN)?));
    let norm = object.field("embd_normalize").optional::<Whole>("2, or -1")?;
    let norm = norm.map(|norm| match norm.0 {
        2 => Ok(true),
        -1 => Ok(false),
        _ => Err(wrong("embd_normalize", "must be 2, or -1 for vectors as they are")),
    });
    agreed([
        flag("normalize")?,
        flag("normalized")?,
        flag("use_activation")?,
        ("embd_normalize", norm.transpose()?),
    ])
}

fn dimensions(object: &Object<'_>, info: &Info) -> Result<Option<usize>, Failure> {
    let available = info.dimensions;
    let caps = object.contract.caps_dimensions;
    let count = |name| {
        let asked = object.field(name).optional::<Whole>(DIMENSIONS)?;
        let asked = asked.map(|Whole(asked)| match usize::try_from(asked) {
            Ok(asked) if (1..=available).contains(&asked) => Ok(asked),
            Ok(1..) if caps => Ok(available),
            Ok(asked) => {
                let error = RequestError::Dimensions { asked, available };
                Err(wrong(name, &format!("can't be had: {error}")))
            }
            Err(_) => Err(wrong(name, &format!("must be {DIMENSIONS}"))),
        });
        Ok::<_, Failure>((name, asked.transpose()?))
    };
    agreed([count("dimensions")?, count("output_dimension")?])
}

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

fn priority(object: &Object<'_>) -> Result<Priority, Failure> {
    let priority = object.field("priority").optional::<Whole>("a whole number")?;
    Ok(match priority {
        Some(Whole(1..)) => Priority::Bulk,
        _ => Priority::Interactive,
    })
}

/// Which end is cut.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Start,
    End,
}

fn truncation(
    object: &Object<'_>,
    info: &Info,
    settings: &Settings,
) -> Result<Truncation, Failure> {
    let (cut, side) = cut(object.field("truncate"))?;
    let limited = limit(object.field("truncate_prompt_tokens"), info)?;
    limit(object.field("max_tokens"), info)?;
    let cut = agreed([
        ("truncate", cut),
        ("truncation", object.field("truncation").optional(BOOLEAN)?),
        ("truncate_prompt_tokens", limited.then_some(true)),
    ])?;
    let side = agreed([
        ("truncate", side),
        ("truncation_direction", end(object.field("truncation_direction"))?),
        ("truncation_side", end(object.field("truncation_side"))?),
    ])?;
    Ok(match (cut.unwrap_or(settings.auto_truncate), side) {
        (false, _) => Truncation::Refuse,
        (true, Some(Side::Start)) => Truncation::Start,
        (true, _) => Truncation::End,
    })
}

/// `truncate`: whether to cut and, in Cohere's words, where.
fn cut(field: Field<'_>) -> Result<(Option<bool>, Option<Side>), Failure> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Cut {
        Flag(bool),
        Word(String),
    }
    let Some(cut) = field.optional::<Cut>(CUT)? else { return Ok((None, None)) };
    Ok(match cut {
        Cut::Flag(cut) => (Some(cut), None),
        Cut::Word(word) => match word.as_str() {
            "NONE" => (Some(false), None),
            "START" => (Some(true), Some(Side::Start)),
            "END" => (Some(true), Some(Side::End)),
            _ => return Err(field.misfit(CUT)),
        },
    })
}

fn end(field: Field<'_>) -> Result<Option<Side>, Failure> {
    let Some(word) = field.optional::<String>(SIDE)? else { return Ok(None) };
    match word.as_str() {
        "left" | "Left" => Ok(Some(Side::Start)),
        "right" | "Right" => Ok(Some(Side::End)),
        _ => Err(field.misfit(SIDE)),
    }
}

/// Whether a limit was sent: the model's own, or one beyond it. Texts are cut nowhere else.
pub(crate) fn limit(field: Field<'_>, info: &Info) -> Result<bool, Failure> {
    let most = info.max_input_tokens;
    let form = format!("-1 or at least {most}, the model's limit: texts are cut only there");
    let asked = field.optional::<Whole>(&form)?;
    let too_small = |Whole(asked)| asked != -1 && usize::try_from(asked).is_ok_and(|it| it < most);
    match asked {
        Some(asked) if asked.0 < -1 || too_small(asked) => Err(field.misfit(&form)),
        asked => Ok(asked.is_some()),
    }
}
