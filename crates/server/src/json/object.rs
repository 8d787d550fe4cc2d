//! A body's fields, each as the JSON text that was sent.
//!
//! Splitting costs no memory; each field that the route's contract reads is then parsed by itself,
//! so that a mistake can be pinned on one of them. What a route does with a field is in the table
//! of [`known`](super::known): what it can't do is refused here, by name, before anything is read.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::fields::Field;
use super::known::{Contract, FIELDS, Treatment, place_of};
use crate::failure::Failure;
use crate::json::malformed::malformed;

/// What was sent, in the order of [`FIELDS`].
type Raw<'a> = [Option<&'a str>; FIELDS.len()];

/// The fields of one request's body.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    pub(crate) contract: &'a Contract,
    raw: Raw<'a>,
}

impl<'a> Object<'a> {
    /// Splits `body` and refuses what `contract` can't do.
    pub(crate) fn parse(body: &'a str, contract: &'a Contract) -> Result<Self, Failure> {
        let body = body.strip_prefix('\u{feff}').unwrap_or(body);
        let mut reader = serde_json::Deserializer::from_str(body);
        let split = Split.deserialize(&mut reader).and_then(|split| reader.end().map(|()| split));
        let (raw, twice) = split.map_err(|error| malformed(body, &error))?;
        if let Some(name) = twice {
            let problem = "is there more than once: send it once".to_owned();
            return Err(Failure::Field { param: name.to_owned(), problem });
        }
        let object = Self { contract, raw };
        object.check()?;
        Ok(object)
    }

    /// The field called `name`, one of [`FIELDS`].
    pub(crate) fn field(&self, name: &'static str) -> Field<'a> {
        let place = place_of(name);
        debug_assert!(place.is_some(), "{name} is not in the table");
        Field::new(name, place.and_then(|place| self.raw[place]))
    }

    fn check(&self) -> Result<(), Failure> {
        let sent = FIELDS.iter().zip(self.raw).filter_map(|(known, raw)| Some((known, raw?)));
        for (known, raw) in sent {
            if let Treatment::Refused { except, because } = self.contract.treatment(known)
                && !except.iter().any(|value| same(raw, value))
            {
                let param = known.0.to_owned();
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
        let mut seen = [false; FIELDS.len()];
        let mut twice = None;
        while let Some(Name(name)) = map.next_key()? {
            let Some(place) = place_of(&name) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let raw = map.next_value::<&RawValue>()?.get();
            if std::mem::replace(&mut seen[place], true) {
                twice = Some(FIELDS[place].0);
            }
            // As everywhere, `null` is taken for absence.
            split[place] = (raw != "null").then_some(raw);
        }
        Ok((split, twice))
    }
}

/// A field's name, which is borrowed unless it has escapes in it.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
