//! The parts around the model: each is made by its own type, so that an error says what is wrong
//! with it, and lists of them are walked here, so that depth and number are bounded.

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use tokenizers::normalizers::{self, BertNormalizer, Prepend, Replace, Strip};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::delimiter::CharDelimiterSplit;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::fixed_length::FixedLength;
use tokenizers::pre_tokenizers::metaspace::Metaspace;
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::split::Split;
use tokenizers::pre_tokenizers::unicode_scripts::UnicodeScripts;
use tokenizers::pre_tokenizers::whitespace::{Whitespace, WhitespaceSplit};
use tokenizers::processors::bert::BertProcessing;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, pre_tokenizers, processors,
};

use super::{Flaw, charsmap};

/// Members of one list, and lists within lists.
const MEMBERS: usize = 64;
const DEPTH: usize = 8;

/// The most bytes that a normaliser may make of one: what a text becomes must be bounded before it
/// is normalised.
const GROWTH: usize = 1024;

/// The most bytes of a regular expression, and how often it may repeat something counted: the
/// expression is unrolled when it is compiled.
const PATTERN_BYTES: usize = 4096;
const REPEATS: usize = 1000;

/// Pieces of a template, and tokens in one.
const TEMPLATE: usize = 64;

/// A normaliser, and the most bytes that it makes of one.
pub(super) fn normalizer(raw: &RawValue, key: &str) -> Result<(NormalizerWrapper, usize), Flaw> {
    normalizer_of(value(raw, key)?, key, 0)
}

fn normalizer_of(
    value: Value,
    key: &str,
    depth: usize,
) -> Result<(NormalizerWrapper, usize), Flaw> {
    let kind = kind(&value, key)?;
    Ok(match kind.as_str() {
        "BertNormalizer" => (read::<BertNormalizer>(value, key)?.into(), 4),
        "Strip" => (read::<Strip>(value, key)?.into(), 1),
        "StripAccents" => (normalizers::StripAccents.into(), 1),
        // As Unicode's normalisation forms may at most: its report 15, section 9.
        "NFC" => (normalizers::NFC.into(), 3),
        "NFD" => (normalizers::NFD.into(), 3),
        "NFKC" => (normalizers::NFKC.into(), 11),
        "NFKD" => (normalizers::NFKD.into(), 11),
        "Lowercase" => (normalizers::Lowercase.into(), 2),
        "Nmt" => (normalizers::Nmt.into(), 2),
        "ByteLevel" => (normalizers::ByteLevel::new().into(), 2),
        "Precompiled" => {
            let growth = charsmap::check(&value)
                .map_err(|reason| inside(key, "precompiled_charsmap", reason))?;
            // It is read by reference only.
            let made = serde_json::from_str::<normalizers::Precompiled>(&value.to_string());
            (made.map_err(|error| Flaw::new(key, error))?.into(), growth)
        }
        "Prepend" => {
            let prepend: Prepend = read(value, key)?;
            let growth = 1 + prepend.prepend.len();
            (prepend.into(), growth)
        }
        "Replace" => {
            let shortest = pattern(&value, key)?;
            let replace: Replace = read(value, key)?;
            let growth = 1 + replace.content.len().div_ceil(shortest);
            (replace.into(), growth)
        }
        "Sequence" => {
            let mut growth = 1_usize;
            let mut members = Vec::new();
            for (at, member) in list(value, key, "normalizers", depth)? {
                let (member, factor) = normalizer_of(member, &at, depth + 1)?;
                members.push(member);
                growth = growth.saturating_mul(factor);
            }
            (normalizers::Sequence::new(members).into(), bounded(growth, key)?)
        }
        other => return Err(unknown(key, other)),
    })
    .and_then(|(made, growth)| Ok((made, bounded(growth, key)?)))
}

fn bounded(growth: usize, key: &str) -> Result<usize, Flaw> {
    if growth <= GROWTH {
        return Ok(growth);
    }
    Err(Flaw::new(
        key,
        format!("it may make {growth} bytes of one, but at most {GROWTH} are allowed"),
    ))
}

pub(super) fn pre_tokenizer(raw: &RawValue, key: &str) -> Result<PreTokenizerWrapper, Flaw> {
    pre_tokenizer_of(value(raw, key)?, key, 0)
}

fn pre_tokenizer_of(value: Value, key: &str, depth: usize) -> Result<PreTokenizerWrapper, Flaw> {
    let kind = kind(&value, key)?;
    Ok(match kind.as_str() {
        "BertPreTokenizer" => BertPreTokenizer.into(),
        "ByteLevel" => read::<ByteLevel>(value, key)?.into(),
        "CharDelimiterSplit" => read::<CharDelimiterSplit>(value, key)?.into(),
        "Digits" => read::<Digits>(value, key)?.into(),
        "Metaspace" => read::<Metaspace>(value, key)?.into(),
        "Punctuation" => read::<Punctuation>(value, key)?.into(),
        "UnicodeScripts" => read::<UnicodeScripts>(value, key)?.into(),
        "Whitespace" => read::<Whitespace>(value, key)?.into(),
        "WhitespaceSplit" => read::<WhitespaceSplit>(value, key)?.into(),
        "FixedLength" => {
            let fixed: FixedLength = read(value, key)?;
            if fixed.length == 0 {
                return Err(inside(key, "length", "expected at least 1, found 0"));
            }
            PreTokenizerWrapper::FixedLength(fixed)
        }
        "Split" => {
            pattern(&value, key)?;
            read::<Split>(value, key)?.into()
        }
        "Sequence" => {
            let members = list(value, key, "pretokenizers", depth)?.into_iter();
            let members = members.map(|(at, member)| pre_tokenizer_of(member, &at, depth + 1));
            pre_tokenizers::sequence::Sequence::new(members.collect::<Result<_, _>>()?).into()
        }
        other => return Err(unknown(key, other)),
    })
}

pub(super) fn post_processor(raw: &RawValue, key: &str) -> Result<PostProcessorWrapper, Flaw> {
    post_processor_of(value(raw, key)?, key, 0)
}

fn post_processor_of(value: Value, key: &str, depth: usize) -> Result<PostProcessorWrapper, Flaw> {
    let kind = kind(&value, key)?;
    Ok(match kind.as_str() {
        "BertProcessing" => read::<BertProcessing>(value, key)?.into(),
        "RobertaProcessing" => read::<RobertaProcessing>(value, key)?.into(),
        "ByteLevel" => read::<ByteLevel>(value, key)?.into(),
        "TemplateProcessing" => {
            template(&value, key)?;
            read::<TemplateProcessing>(value, key)?.into()
        }
        "Sequence" => {
            let members = list(value, key, "processors", depth)?.into_iter();
            let members = members.map(|(at, member)| post_processor_of(member, &at, depth + 1));
            processors::sequence::Sequence::new(members.collect::<Result<_, _>>()?).into()
        }
        other => return Err(unknown(key, other)),
    })
}

/// Checks that a template names one text, and only tokens that it explains.
fn template(value: &Value, key: &str) -> Result<(), Flaw> {
    let explained = value.get("special_tokens").and_then(Value::as_object);
    for (_, token) in explained.into_iter().flatten() {
        let long =
            |list: &str| token.get(list).and_then(Value::as_array).map_or(0, Vec::len) > TEMPLATE;
        if long("ids") || long("tokens") {
            return Err(inside(key, "special_tokens", format!("one has more than {TEMPLATE} ids")));
        }
    }
    for (name, texts) in [("single", ["A"].as_slice()), ("pair", &["A", "B"])] {
        let pieces =
            value.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        if pieces.len() > TEMPLATE {
            return Err(inside(key, name, format!("it has more than {TEMPLATE} pieces")));
        }
        let id = |piece: &Value, kind: &str| {
            piece
                .get(kind)
                .and_then(|piece| piece.get("id"))
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        for piece in pieces {
            if let Some(text) = id(piece, "Sequence").filter(|text| !texts.contains(&text.as_str()))
            {
                return Err(inside(
                    key,
                    name,
                    format!("it names the text ${text}, which isn't there"),
                ));
            }
            let token = id(piece, "SpecialToken");
            let missing =
                token.filter(|token| !explained.is_some_and(|known| known.contains_key(token)));
            if let Some(token) = missing {
                let token = super::shortened(&token);
                return Err(inside(
                    key,
                    name,
                    format!("'{token}' is not among the special_tokens"),
                ));
            }
        }
    }
    Ok(())
}

/// Checks the `pattern` of a part; gives the fewest bytes that it may match, or 1.
fn pattern(value: &Value, key: &str) -> Result<usize, Flaw> {
    let part =
        |kind: &str| value.get("pattern").and_then(|it| it.get(kind)).and_then(Value::as_str);
    let text = part("String").or_else(|| part("Regex")).unwrap_or_default();
    if text.is_empty() || text.len() > PATTERN_BYTES {
        return Err(inside(
            key,
            "pattern",
            format!("expected a String or Regex of 1 to {PATTERN_BYTES} bytes"),
        ));
    }
    if part("String").is_none() {
        let repeats = repeats(text);
        if repeats > REPEATS {
            return Err(inside(
                key,
                "pattern",
                format!("it repeats a part more than {REPEATS} times"),
            ));
        }
        return Ok(1);
    }
    Ok(text.len())
}

/// How often something in a regular expression may be unrolled: the product of all that is counted,
/// as if it were nested.
fn repeats(pattern: &str) -> usize {
    let counted = pattern.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
    let counts = counted.filter_map(|(counts, _)| {
        let mut numbers = counts.split(',').map(|number| number.trim().parse::<usize>().ok());
        numbers.next_back().flatten().or_else(|| numbers.next().flatten())
    });
    counts.fold(1, |all, count| all.saturating_mul(count.max(1)))
}

/// The members of a list, each with its key.
fn list(
    mut value: Value,
    key: &str,
    name: &str,
    depth: usize,
) -> Result<impl IntoIterator<Item = (String, Value)> + use<>, Flaw> {
    let Some(Value::Array(members)) = value.get_mut(name).map(Value::take) else {
        return Err(inside(key, name, "expected a list"));
    };
    if members.len() > MEMBERS || depth >= DEPTH {
        let reason = format!("expected at most {MEMBERS} members, in at most {DEPTH} lists");
        return Err(inside(key, name, reason));
    }
    let at = format!("{key}.{name}");
    Ok(members.into_iter().enumerate().map(move |(n, member)| (format!("{at}[{n}]"), member)))
}

fn value(raw: &RawValue, key: &str) -> Result<Value, Flaw> {
    serde_json::from_str(raw.get()).map_err(|error| Flaw::new(key, error))
}

fn kind(value: &Value, key: &str) -> Result<String, Flaw> {
    let kind = value.get("type").and_then(Value::as_str).map(str::to_owned);
    kind.ok_or_else(|| inside(key, "type", "expected a kind of part, found none"))
}

fn read<T: DeserializeOwned>(value: Value, key: &str) -> Result<T, Flaw> {
    serde_json::from_value(value).map_err(|error| Flaw::new(key, error))
}

fn unknown(key: &str, kind: &str) -> Flaw {
    inside(key, "type", format!("'{}' is not known", super::shortened(kind)))
}

fn inside(key: &str, name: &str, reason: impl std::fmt::Display) -> Flaw {
    Flaw::new(format!("{key}.{name}"), reason)
}
