//! Whether a request has its texts cut and at which end, by whichever server's word for it.

use vecmill_engine::{Info, Truncation};

use super::numbers::Whole;
use super::object::{BOOLEAN, Field, Object, agreed};
use crate::Settings;
use crate::failure::Failure;

const SIDE: &str = "'left' or 'right'";
const CUT: &str = "true, false, 'NONE', 'START' or 'END'";

/// Which end is cut.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Start,
    End,
}

pub(crate) fn truncation(
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
