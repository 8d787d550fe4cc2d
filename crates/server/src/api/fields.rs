//! The fields of a JSON body, taken one by one so that a mistake can be pinned on one of them.
//!
//! A body is first split into raw fields, which costs no memory, then each is parsed by itself.
//! Lists stop at their limit: what a request makes the server hold is bounded by what it may ask.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::value::RawValue;
use vecmill_engine::Input;

use crate::failure::Failure;

const INPUT_FORMS: &str = "a string, an array of strings, an array of token ids \
                           or an array of arrays of token ids";
const INPUT_ITEM: &str = "a string or an array of token ids";
const TOKEN_ID: &str = "a token id, an integer of at least 0";

/// A body as its contract's raw fields.
pub(crate) fn split<'a, T: Deserialize<'a>>(body: &'a str) -> Result<T, Failure> {
    let malformed = |error: serde_json::Error| Failure::Malformed(error.to_string());
    // serde would take an array for a structure's fields in order.
    if body.trim_ascii_start().starts_with('[') {
        return Err(Failure::Malformed("it must be an object with fields".to_owned()));
    }
    serde_json::from_str(body).map_err(malformed)
}

/// One raw field, or its absence; `null` is absence too.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<'a> {
    name: &'static str,
    raw: Option<&'a str>,
}

impl<'a> Field<'a> {
    pub(crate) fn new(name: &'static str, raw: Option<&'a RawValue>) -> Self {
        Self { name, raw: raw.map(RawValue::get) }
    }

    fn raw(self) -> Result<&'a str, Failure> {
        self.raw.ok_or_else(|| wrong(self.name.to_owned(), "is missing"))
    }

    /// The field's value; `form` says what it should look like.
    pub(crate) fn required<T: Deserialize<'a>>(self, form: &str) -> Result<T, Failure> {
        let raw = self.raw()?;
        serde_json::from_str(raw).map_err(|error| misfit(self.name.to_owned(), form, &error))
    }

    /// As `required`, for a field that may be left out.
    pub(crate) fn optional<T: Deserialize<'a>>(self, form: &str) -> Result<Option<T>, Failure> {
        self.raw.map(|_| self.required(form)).transpose()
    }

    /// One or several inputs, at most `limit`, in any form that the contracts know.
    pub(crate) fn inputs(self, limit: usize) -> Result<Vec<Input>, Failure> {
        let raw = self.raw()?;
        let inner = raw.strip_prefix('[').map(str::trim_ascii_start);
        match inner.map(str::as_bytes) {
            Some([b'-' | b'0'..=b'9', ..]) => {
                Ok(vec![Input::Tokens(self.list(raw, TOKEN_ID, usize::MAX)?)])
            }
            Some(_) => {
                let items: Vec<Item> = self.list(raw, INPUT_ITEM, limit)?;
                Ok(items.into_iter().map(|Item(input)| input).collect())
            }
            None => Ok(vec![Input::Text(self.required(INPUT_FORMS)?)]),
        }
    }

    fn list<T: Deserialize<'a>>(
        self,
        raw: &'a str,
        form: &str,
        limit: usize,
    ) -> Result<Vec<T>, Failure> {
        let at = Cell::new(0);
        let list = List { at: &at, limit, of: PhantomData };
        serde_json::Deserializer::from_str(raw).deserialize_seq(list).map_err(|error| {
            if at.get() == limit {
                Failure::TooManyInputs { param: self.name, limit }
            } else {
                misfit(format!("{}[{}]", self.name, at.get()), form, &error)
            }
        })
    }
}

fn wrong(param: String, problem: &str) -> Failure {
    Failure::Field { param, problem: problem.to_owned() }
}

/// Says what the field should have been, or what is wrong with its text. The value itself is not
/// repeated: it can be long, and it is the client's.
fn misfit(param: String, form: &str, error: &serde_json::Error) -> Failure {
    if error.is_data() {
        return wrong(param, &format!("must be {form}"));
    }
    let reason = error.to_string(); // ends in a place within the field, which nobody could find
    let reason = reason.rsplit_once(" at line ").map_or(reason.as_str(), |(reason, _)| reason);
    wrong(param, &format!("is not valid JSON: {reason}"))
}

/// One of several inputs.
struct Item(Input);

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(INPUT_ITEM)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Item, E> {
        Ok(Item(Input::Text(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Item, A::Error> {
        let mut tokens = Vec::new();
        while let Some(token) = seq.next_element()? {
            tokens.push(token);
        }
        Ok(Item(Input::Tokens(tokens)))
    }
}

/// A list that knows, when it fails, at which of its elements.
struct List<'c, T> {
    at: &'c Cell<usize>,
    limit: usize,
    of: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for List<'_, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let mut items = Vec::new();
        while items.len() < self.limit {
            let Some(item) = seq.next_element()? else { return Ok(items) };
            items.push(item);
            self.at.set(items.len());
        }
        match seq.next_element::<serde::de::IgnoredAny>()? {
            None => Ok(items),
            Some(_) => Err(A::Error::custom("too many")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(json: &str, limit: usize) -> Result<Vec<Input>, Failure> {
        let raw: Box<RawValue> = serde_json::from_str(json).unwrap();
        Field::new("input", Some(&raw)).inputs(limit)
    }

    fn complaint(json: &str) -> String {
        inputs(json, 4).unwrap_err().to_string()
    }

    #[test]
    fn all_forms_of_input_are_understood() {
        let text = |text: &str| Input::from(text);
        let tokens = |ids: &[u32]| Input::Tokens(ids.to_vec());
        assert_eq!(inputs(r#""a\u0000é😀\ud83d\ude00""#, 1), Ok(vec![text("a\0é😀😀")]));
        assert_eq!(inputs(r#" [ "a" , "b" ] "#, 2), Ok(vec![text("a"), text("b")]));
        assert_eq!(inputs("[ 1,2,3 ]", 1), Ok(vec![tokens(&[1, 2, 3])]));
        assert_eq!(
            inputs("[[1],[2,4294967295]]", 2),
            Ok(vec![tokens(&[1]), tokens(&[2, u32::MAX])])
        );
        assert_eq!(inputs(r#"["a",[7]]"#, 2), Ok(vec![text("a"), tokens(&[7])]));
        assert_eq!(inputs("[]", 2), Ok(vec![]));
        assert_eq!(inputs("[[]]", 2), Ok(vec![tokens(&[])]));
        assert_eq!(inputs(r#""""#, 2), Ok(vec![text("")]));
    }

    #[test]
    fn the_element_at_fault_is_named() {
        assert_eq!(complaint("5"), format!("`input` must be {INPUT_FORMS}"));
        assert_eq!(complaint("{}"), format!("`input` must be {INPUT_FORMS}"));
        assert_eq!(complaint(r#"["a","b",3]"#), format!("`input[2]` must be {INPUT_ITEM}"));
        assert_eq!(complaint(r#"["a",null]"#), format!("`input[1]` must be {INPUT_ITEM}"));
        assert_eq!(complaint("[[1],[-2]]"), format!("`input[1]` must be {INPUT_ITEM}"));
        assert_eq!(complaint("[1,2.5]"), format!("`input[1]` must be {TOKEN_ID}"));
        assert_eq!(complaint("[4294967296]"), format!("`input[0]` must be {TOKEN_ID}"));
        assert_eq!(complaint("[-1]"), format!("`input[0]` must be {TOKEN_ID}"));
        let lone = complaint(r#"["a","\ud800"]"#);
        assert!(lone.starts_with("`input[1]` is not valid JSON: "), "{lone}");
        assert!(!lone.contains("line"), "{lone}");
    }

    #[test]
    fn lists_end_at_the_limit() {
        assert_eq!(inputs(r#"["a","b"]"#, 2).unwrap().len(), 2);
        let failure = Failure::TooManyInputs { param: "input", limit: 2 };
        assert_eq!(inputs(r#"["a","b","c"]"#, 2), Err(failure.clone()));
        assert_eq!(inputs(r#"["a","b",3]"#, 2), Err(failure));
        let ids = format!("[{}]", vec!["7"; 5000].join(","));
        assert_eq!(inputs(&ids, 2), Ok(vec![Input::Tokens(vec![7; 5000])]));
    }

    #[test]
    fn null_is_absence() {
        let none = Field::new("dimensions", None);
        assert_eq!(none.optional::<usize>("an integer"), Ok(None));
        let failure = none.required::<usize>("an integer").unwrap_err();
        assert_eq!(failure.to_string(), "`dimensions` is missing");
    }
}
