//! What a request to rank asks for, whichever server's word for it was used: any of them is taken on
//! each route that ranks.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use vecmill_engine::{Info, Priority, RequestError, Truncation};

use super::numbers::Whole;
use super::object::{BOOLEAN, Field, Object, agreed};
use super::options::priority;
use super::truncation::{limit, truncation};
use crate::Settings;
use crate::failure::Failure;

const DOCUMENTS: &str = "a string or an array of strings or of objects with a string `text`";
const DOCUMENT: &str = "a string or an object with a string `text`";

/// Documents to put in the order of their relevance to a query.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ranking {
    pub(crate) query: String,
    pub(crate) documents: Vec<String>,
    /// How many of the best are wanted; all if nothing is said.
    pub(crate) top: Option<usize>,
    /// Whether the reply has the documents' texts, if anything is said.
    pub(crate) returns_documents: Option<bool>,
    pub(crate) scoring: Scoring,
}

/// How texts are scored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scoring {
    /// Whether scores are as the model's head makes them, without the function that it has behind it.
    pub(crate) raw: bool,
    pub(crate) truncation: Truncation,
    pub(crate) priority: Priority,
}

/// What `object` asks to be ranked. `none_is_all`: whether a count of 0 wants all documents.
pub(crate) fn ranking(
    object: &Object<'_>,
    none_is_all: bool,
    info: &Info,
    settings: &Settings,
) -> Result<Ranking, Failure> {
    let field = |name| object.field(name);
    let flag = |name| Ok::<_, Failure>((name, field(name).optional(BOOLEAN)?));
    field("model").optional::<String>("a string")?;
    let query = field("query").required("a string")?;
    let documents = documents(field(object.contract.inputs), settings.max_client_batch_size)?;
    let least = usize::from(!none_is_all);
    let top = agreed([
        ("top_n", count(field("top_n"), least)?),
        ("top_k", count(field("top_k"), least)?),
    ])?;
    let returns_documents = agreed([flag("return_documents")?, flag("return_text")?])?;
    for part in ["max_tokens_per_query", "max_tokens_per_doc"] {
        part_limit(field(part), info)?;
    }
    let top = top.filter(|&top| top > 0);
    let scoring = scoring(object, info, settings)?;
    Ok(Ranking { query, documents, top, returns_documents, scoring })
}

/// How `object` asks for its texts to be scored.
pub(crate) fn scoring(
    object: &Object<'_>,
    info: &Info,
    settings: &Settings,
) -> Result<Scoring, Failure> {
    let activated = object.field("use_activation").optional(BOOLEAN)?;
    let raw = agreed([
        ("raw_scores", object.field("raw_scores").optional(BOOLEAN)?),
        ("use_activation", activated.map(|activated: bool| !activated)),
    ])?;
    Ok(Scoring {
        raw: raw.unwrap_or(false),
        truncation: truncation(object, info, settings)?,
        priority: priority(object)?,
    })
}

/// One document or several.
fn documents(field: Field<'_>, limit: usize) -> Result<Vec<String>, Failure> {
    let documents = match field.sent() {
        Some(raw) if !raw.starts_with('[') => vec![field.required(DOCUMENTS)?],
        _ => field.list(DOCUMENT, limit)?.into_iter().map(|Document(text)| text).collect(),
    };
    if documents.is_empty() { Err(RequestError::NoInputs.into()) } else { Ok(documents) }
}

fn count(field: Field<'_>, least: usize) -> Result<Option<usize>, Failure> {
    let form = format!("a whole number of at least {least}");
    let Some(Whole(count)) = field.optional(&form)? else { return Ok(None) };
    let count = usize::try_from(count).ok().filter(|&count| count >= least);
    count.map(Some).ok_or_else(|| field.misfit(&form))
}

/// A limit on the query or on a document alone: 0 is none, as in vLLM, and otherwise it is as for
/// all limits.
fn part_limit(field: Field<'_>, info: &Info) -> Result<(), Failure> {
    if field.sent() == Some("0") { Ok(()) } else { limit(field, info).map(drop) }
}

/// A document: its text, or an object that has it among others.
struct Document(String);

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DocumentVisitor)
    }
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(DOCUMENT)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Document, E> {
        Ok(Document(text.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let mut text = None;
        while let Some(name) = map.next_key::<String>()? {
            if name == "text" {
                text = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        text.map(Document).ok_or_else(|| Error::missing_field("text"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Vec<String>, String> {
        documents(Field::new("documents", Some(json)), 2).map_err(|failure| failure.to_string())
    }

    #[test]
    fn documents_are_strings_or_have_a_text_among_other_things() {
        for json in [
            r#"["a","b"]"#,
            r#"[ "a", {"text":"b"} ]"#,
            r#"[{"id":{"text":1},"text":"a"},{"text":"b","score":[1]}]"#,
        ] {
            assert_eq!(read(json), Ok(vec!["a".to_owned(), "b".to_owned()]), "{json}");
        }
        assert_eq!(read(r#""a""#), Ok(vec!["a".to_owned()]));
    }

    #[test]
    fn what_is_no_document_is_named() {
        for json in ["5", "{}", r#"{"text":"a"}"#] {
            assert_eq!(read(json), Err(format!("`documents` must be {DOCUMENTS}")), "{json}");
        }
        for json in [r#"["a",5]"#, r#"["a",{}]"#, r#"["a",{"text":5}]"#, r#"["a",["b"]]"#] {
            assert_eq!(read(json), Err(format!("`documents[1]` must be {DOCUMENT}")), "{json}");
        }
        assert!(read(r#"["a","b","c"]"#).unwrap_err().contains("more than 2 entries"));
        assert_eq!(read("[]"), Err(RequestError::NoInputs.to_string()));
    }

    #[test]
    fn counts_begin_where_the_contract_has_them_begin() {
        let read = |json, least| count(Field::new("top_n", Some(json)), least).ok().flatten();
        assert_eq!((read("3", 1), read("3.0", 1), read("0", 0)), (Some(3), Some(3), Some(0)));
        for json in ["0", "-1", "1.5", "\"2\"", "true"] {
            assert_eq!(read(json, 1), None, "{json}");
        }
    }
}
