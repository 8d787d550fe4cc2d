//! A body's fields, each as the JSON text that was sent, and reading one.
//!
//! Splitting costs no memory; each field that the route's contract reads is then parsed by itself,
//! so that a mistake can be pinned on one of them. What a route does with a field is in the table
//! of [`known`](super::known): what it can't do is refused here, by name, before anything is read.
//!
//! Lists stop at their limit: what a request makes the server hold is bounded by what it may ask.
//! Nothing is taken for what it is not: `"8"` is no number, and 1 no truth.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use vecmill_engine::Input;

use super::known::{FIELDS, Known, Treatment, place_of};
use super::malformed::malformed;
use super::numbers::TokenId;
use crate::failure::Failure;

/// What one kind of body may have in it.
#[derive(Debug)]
pub(crate) struct Contract {
    /// What is made of them, which decides on most fields.
    pub(crate) makes: Makes,
    /// The field with the inputs.
    pub(crate) inputs: &'static str,
    /// Bytes that the work holds for each byte of a body, at most, the body included.
    pub(crate) held_per_byte: usize,
    /// Whether token ids may be OpenAI's, where the settings say so.
    pub(crate) takes_openai_ids: bool,
    /// Whether more dimensions than the model has are all that it has.
    pub(crate) caps_dimensions: bool,
    /// Whether a body is read as JSON whatever type it says it has, but for a browser's.
    pub(crate) any_media_type: bool,
    /// What it does otherwise than most, by the fields' names.
    pub(crate) own: &'static [(&'static [&'static str], Treatment)],
}

impl Contract {
    /// What most contracts for vectors have in common.
    pub(crate) const VECTORS: Self = Self {
        makes: Makes::Vectors,
        inputs: "input",
        // The body, the texts or ids in it, and room to unescape or to grow them.
        held_per_byte: 5,
        takes_openai_ids: false,
        caps_dimensions: false,
        any_media_type: false,
        own: &[],
    };

    /// What contracts for scores have in common.
    pub(crate) const SCORES: Self = Self { makes: Makes::Scores, ..Self::VECTORS };

    /// What becomes of a field.
    pub(crate) fn treatment(&self, known: &Known) -> Treatment {
        let own = self.own.iter().find(|(names, _)| names.contains(&known.name));
        let usual = match self.makes {
            Makes::Vectors => known.vectors,
            Makes::Scores => known.scores,
        };
        own.map_or(usual, |(_, own)| *own)
    }
}

/// What a request has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Makes {
    Vectors,
    Scores,
}

/// What was sent, in the order of [`FIELDS`].
type Raw<'a> = [Option<&'a str>; FIELDS.len()];

/// The fields of one request's body.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    pub(crate) contract: &'static Contract,
    raw: Raw<'a>,
}

impl<'a> Object<'a> {
    /// Splits `body` and refuses what `contract` can't do.
    pub(crate) fn parse(body: &'a str, contract: &'static Contract) -> Result<Self, Failure> {
        Self::split(body, contract)?.under(contract)
    }

    /// As `parse`, but refuses nothing yet: which contract it is may depend on the fields.
    pub(crate) fn split(body: &'a str, contract: &'static Contract) -> Result<Self, Failure> {
        let body = body.strip_prefix('\u{feff}').unwrap_or(body);
        let mut reader = serde_json::Deserializer::from_str(body);
        let split = Split.deserialize(&mut reader).and_then(|split| reader.end().map(|()| split));
        let (raw, twice) = split.map_err(|error| malformed(body, &error))?;
        if let Some(name) = twice {
            let problem = "is there more than once: send it once".to_owned();
            return Err(Failure::Field { param: name.to_owned(), problem });
        }
        Ok(Self { contract, raw })
    }

    /// The same fields, of which `contract` refuses what it can't do.
    pub(crate) fn under(self, contract: &'static Contract) -> Result<Self, Failure> {
        let object = Self { contract, ..self };
        object.check()?;
        Ok(object)
    }

    /// Whether the field called `name` is there, be it `null`.
    pub(crate) fn mentions(&self, name: &str) -> bool {
        place_of(name).is_some_and(|place| self.raw[place].is_some())
    }

    /// The field called `name`, one of [`FIELDS`].
    pub(crate) fn field(&self, name: &'static str) -> Field<'a> {
        let place = place_of(name);
        debug_assert!(place.is_some(), "{name} is not in the table");
        Field::new(name, place.and_then(|place| self.raw[place]))
    }

    fn check(&self) -> Result<(), Failure> {
        let sent = FIELDS.iter().zip(self.raw).filter_map(|(known, raw)| Some((known, raw?)));
        for (known, raw) in sent.filter(|(_, raw)| *raw != "null") {
            if let Treatment::Refused { except, because } = self.contract.treatment(known)
                && !except.iter().any(|value| same(raw, value))
            {
                let param = known.name.to_owned();
                return Err(Failure::Field { param, problem: because.to_owned() });
            }
        }
        Ok(())
    }
}

/// Whether two JSON texts differ in nothing but white space between their parts.
fn same(raw: &str, value: &str) -> bool {
    let inked = |byte: &u8| !byte.is_ascii_whitespace();
    raw.bytes().filter(inked).eq(value.bytes().filter(inked))
}

/// Splits an object; with it comes a field that is there twice.
struct Split;

impl<'de> DeserializeSeed<'de> for Split {
    type Value = (Raw<'de>, Option<&'static str>);

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Split {
    type Value = (Raw<'de>, Option<&'static str>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut split: Raw<'_> = [None; FIELDS.len()];
        let mut twice = None;
        while let Some(Name(name)) = map.next_key()? {
            let Some(place) = place_of(&name) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let raw = map.next_value::<&RawValue>()?.get();
            if split[place].replace(raw).is_some() {
                twice = Some(FIELDS[place].name);
            }
        }
        Ok((split, twice))
    }
}

/// A field's name, which is borrowed unless it has escapes in it.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

pub(crate) const BOOLEAN: &str = "true or false";
const INPUT_FORMS: &str = "a string, an array of strings, an array of token ids \
                           or an array of arrays of token ids";
const INPUT_ITEM: &str = "a string or an array of token ids";
const TOKEN_ID: &str = "a token id, an integer of at least 0";

/// One raw field, or its absence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<'a> {
    name: &'static str,
    raw: Option<&'a str>,
}

impl<'a> Field<'a> {
    /// The field that was sent as `raw`, if it was. As all servers do, `null` is taken for absence.
    pub(crate) fn new(name: &'static str, raw: Option<&'a str>) -> Self {
        Self { name, raw: raw.filter(|raw| *raw != "null") }
    }

    /// Its JSON text, if it was sent.
    pub(crate) fn sent(self) -> Option<&'a str> {
        self.raw
    }

    fn raw(self) -> Result<&'a str, Failure> {
        self.raw.ok_or_else(|| wrong(self.name, "is missing"))
    }

    /// The failure for a value that is not of this form.
    pub(crate) fn misfit(self, form: &str) -> Failure {
        wrong(self.name, &format!("must be {form}"))
    }

    /// The field's value; `form` says what it should look like.
    pub(crate) fn required<T: Deserialize<'a>>(self, form: &str) -> Result<T, Failure> {
        let raw = self.raw()?;
        serde_json::from_str(raw).map_err(|error| misfit(self.name, form, &error))
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
                let ids: Vec<TokenId> = self.list(TOKEN_ID, usize::MAX)?;
                Ok(vec![Input::Tokens(ids.into_iter().map(|TokenId(id)| id).collect())])
            }
            Some(_) => {
                let items: Vec<Item> = self.list(INPUT_ITEM, limit)?;
                Ok(items.into_iter().map(|Item(input)| input).collect())
            }
            None => Ok(vec![Input::Text(self.required(INPUT_FORMS)?)]),
        }
    }

    /// An array of at most `limit` elements, of which each should look like `form`.
    pub(crate) fn list<T: Deserialize<'a>>(
        self,
        form: &str,
        limit: usize,
    ) -> Result<Vec<T>, Failure> {
        let raw = self.raw()?;
        let at = Cell::new(0);
        let list = List { at: &at, limit, of: PhantomData };
        serde_json::Deserializer::from_str(raw).deserialize_seq(list).map_err(|error| {
            if at.get() == limit {
                Failure::TooManyInputs { param: self.name, limit }
            } else {
                misfit(&format!("{}[{}]", self.name, at.get()), form, &error)
            }
        })
    }
}

/// What the fields that were sent agree on.
pub(super) fn agreed<T: PartialEq>(
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

/// The failure for a field, with what is to be read behind its name.
pub(crate) fn wrong(param: &str, problem: &str) -> Failure {
    Failure::Field { param: param.to_owned(), problem: problem.to_owned() }
}

/// Says what the field should have been, or what is wrong with its text. The value itself is not
/// repeated: it can be long, and it is the client's.
fn misfit(param: &str, form: &str, error: &serde_json::Error) -> Failure {
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
        while let Some(TokenId(token)) = seq.next_element()? {
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
        match seq.next_element::<IgnoredAny>()? {
            None => Ok(items),
            Some(_) => Err(A::Error::custom("too many")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::numbers::Whole;
    use super::*;

    fn inputs(json: &str, limit: usize) -> Result<Vec<Input>, Failure> {
        Field::new("input", Some(json.trim())).inputs(limit)
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
    fn whole_numbers_may_have_an_empty_fraction() {
        let whole = |json| Field::new("dimensions", Some(json)).optional::<Whole>("a whole number");
        for (json, number) in [("256", 256), ("256.0", 256), ("2.56e2", 256), ("-1.0", -1)] {
            assert_eq!(whole(json), Ok(Some(Whole(number))), "{json}");
        }
        for json in ["256.5", "1e300", "1e999", "18446744073709551615", "\"8\"", "true", "[1]"] {
            assert!(whole(json).is_err(), "{json}");
        }
        let ids = Input::Tokens(vec![101, 102]);
        assert_eq!(inputs("[101.0, 102]", 1), Ok(vec![ids.clone()]));
        assert_eq!(inputs("[[101, 1.02e2]]", 1), Ok(vec![ids]));
    }

    #[test]
    fn what_was_not_sent_is_missing() {
        let none = Field::new("dimensions", None);
        assert_eq!(none.optional::<usize>("an integer"), Ok(None));
        let failure = none.required::<usize>("an integer").unwrap_err();
        assert_eq!(failure.to_string(), "`dimensions` is missing");
    }
}
