use std::path::Path;
use std::sync::OnceLock;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::request::Truncation;
use crate::tokenize::Tokenizer as Whole;

/// What decides whether a place holds: spaces alone and together, what joins to its neighbours or
/// vanishes, marks, scripts with and without spaces, added tokens and parts of them.
const ODD: &[&str] = &[
    " ",
    " ",
    " ",
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\u{85}",
    "\u{a0}",
    "\u{2003}",
    "\u{3000}",
    "\u{200b}",
    "\u{200d}",
    "\u{ad}",
    "\0",
    "\u{301}",
    "\u{327}\u{301}",
    "\u{345}",
    "\u{37a}",
    "é",
    "e\u{301}",
    "İ",
    "ß",
    "Σ",
    "ς",
    "ﬁ",
    "ﷺ",
    "\u{fc5e}",
    "½",
    "①",
    "中",
    "文",
    "字",
    "、",
    "。",
    "，",
    "が",
    "か\u{3099}",
    "한",
    "\u{1112}\u{1161}\u{11ab}",
    "ไทย",
    "हिन्दी",
    "ि",
    "العربية",
    "ً",
    "😀",
    "👩\u{200d}🚀",
    "▁",
    "Ġ",
    "<s>",
    "</s>",
    "<mask>",
    "<",
    ">",
    "[MASK]",
    "[",
    "]",
    "[SEP",
    "and",
    "be",
    "con",
    "The",
    "I",
    "3",
    "x",
    "q",
    "'",
    "'s",
    "'ll",
    "’",
    ".",
    "..",
    ",",
    "--",
    "—",
    "_",
    "#",
    "##and",
];

fn text() -> impl Strategy<Value = String> {
    let odd = prop::sample::select(ODD).prop_map(str::to_owned);
    let corpus = prop::sample::select(corpus()).prop_map(|text| {
        let cut = text.char_indices().nth(80).map_or(text.len(), |(at, _)| at);
        text[..cut].to_owned()
    });
    let piece = prop_oneof![12 => odd, 1 => any::<char>().prop_map(String::from), 1 => corpus];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

/// Texts in 15 scripts.
fn corpus() -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/corpus/texts.jsonl");
    let lines = std::fs::read_to_string(file).unwrap();
    let text = |line: &str| {
        serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_owned()
    };
    lines.lines().map(text).collect()
}

/// A tiny model's tokenizer, changed, with the shortest pieces that there can be.
fn tokenizer(model: &str, change: impl FnOnce(&mut Value)) -> Whole {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(model);
    let file = std::fs::read(folder.join("tokenizer.json")).unwrap();
    let mut json: Value = serde_json::from_slice(&file).unwrap();
    change(&mut json);
    let inner = Tokenizer::from_bytes(serde_json::to_vec(&json).unwrap()).unwrap();
    let mut whole = Whole::over(inner, (1, true), false, 20).unwrap();
    if let Some(cuts) = &mut whole.cuts {
        cuts.piece = 1;
    }
    whole
}

fn add(json: &mut Value, content: &str, lstrip: bool, single_word: bool, normalized: bool) {
    let id = json["model"]["vocab"].as_object().map_or(384, |vocabulary| vocabulary.len());
    json["added_tokens"].as_array_mut().unwrap().push(json!({
        "id": id, "content": content, "single_word": single_word, "lstrip": lstrip,
        "rstrip": false, "normalized": normalized, "special": false,
    }));
}

/// All kinds of tokenizers whose texts are cut.
fn kinds() -> &'static [(&'static str, Whole)] {
    static KINDS: OnceLock<Vec<(&str, Whole)>> = OnceLock::new();
    KINDS.get_or_init(|| {
        let space = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
        let spaces = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "});
        let right = json!({"type": "Strip", "strip_left": false, "strip_right": true});
        vec![
            ("BERT", tokenizer("bert-mean", |_| {})),
            ("BERT, cased", tokenizer("bert-mean", |json| {
                json["normalizer"]["lowercase"] = false.into();
                json["normalizer"]["handle_chinese_chars"] = false.into();
            })),
            ("BERT with tokens", tokenizer("bert-mean", |json| {
                add(json, "<tag>", true, false, true);
                add(json, "x.", false, true, false);
            })),
            ("BERT without cleaning", tokenizer("bert-mean", |json| {
                json["normalizer"]["clean_text"] = false.into();
                json["normalizer"]["strip_accents"] = false.into();
            })),
            ("RoBERTa", tokenizer("roberta-mean", |_| {})),
            ("RoBERTa with a space in front", tokenizer("roberta-mean", |json| {
                json["pre_tokenizer"]["add_prefix_space"] = true.into();
                add(json, "<mask>", true, false, false);
            })),
            ("RoBERTa, normalised", tokenizer("roberta-mean", |json| {
                json["normalizer"] = json!({"type": "Sequence", "normalizers": [
                    {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"}]});
            })),
            ("XLM-RoBERTa", tokenizer("xlm-roberta-cls", |_| {})),
            ("XLM-RoBERTa by its spaces", tokenizer("xlm-roberta-cls", move |json| {
                json["normalizer"] = json!({"type": "Sequence", "normalizers": [
                    {"type": "Nmt"}, {"type": "NFKC"}, right, spaces]});
                json["pre_tokenizer"] = space;
            })),
            ("words and digits", tokenizer("xlm-roberta-cls", |json| {
                json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
                    {"type": "Whitespace"}, {"type": "Digits", "individual_digits": true},
                    {"type": "Punctuation", "behavior": "Isolated"}]});
            })),
        ]
    })
}

fn ids(tokenizer: &Whole, text: &str) -> Vec<u32> {
    tokenizer.inner.encode_fast(text, false).unwrap().get_ids().to_vec()
}

fn check(name: &str, tokenizer: &Whole, text: &str) -> Result<(), TestCaseError> {
    let expected = ids(tokenizer, text);
    let cuts = tokenizer.cuts.as_ref().unwrap();
    for from in [From::Start, From::End] {
        let mut pieces: Vec<&str> = cuts.pieces(&tokenizer.inner, text, from).collect();
        if from == From::End {
            pieces.reverse();
        }
        prop_assert_eq!(pieces.concat(), text);
        let made: Vec<u32> = pieces.iter().flat_map(|piece| ids(tokenizer, piece)).collect();
        prop_assert_eq!(&made, &expected, "{} {:?} {:?}", name, from, pieces);
    }
    let room = tokenizer.max_tokens - tokenizer.frame.len();
    let kept = expected.len().min(room);
    for (truncation, kept) in [
        (Truncation::End, &expected[..kept]),
        (Truncation::Start, &expected[expected.len() - kept..]),
    ] {
        let tokens = tokenizer.encode(0, text, truncation).unwrap();
        let body = &tokens.ids[tokenizer.frame.before.len()..];
        prop_assert_eq!(&body[..body.len() - tokenizer.frame.after.len()], kept, "{}", name);
        prop_assert_eq!(tokens.truncated, expected.len() > room);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn pieces_have_the_tokens_of_the_whole(text in text()) {
        for (name, tokenizer) in kinds() {
            check(name, tokenizer, &text)?;
        }
    }
}

#[test]
fn real_texts_have_the_same_tokens_in_pieces() {
    let texts = corpus();
    let long = texts.join(" ");
    for (name, tokenizer) in kinds() {
        for text in texts.iter().chain([&long]) {
            check(name, tokenizer, text).unwrap();
        }
        let pieces = tokenizer.cuts.as_ref().unwrap().pieces(&tokenizer.inner, &long, From::Start);
        let longest = pieces.map(str::len).max().unwrap();
        assert!(longest < long.len() / 4, "{name}: {longest} bytes of {}", long.len());
    }
}

#[test]
fn tokenizers_that_see_a_whole_text_are_left_alone() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 8] = [
        ("roberta-mean", |json| json["pre_tokenizer"]["use_regex"] = false.into()),
        ("roberta-mean", |json| json["pre_tokenizer"] = Value::Null),
        ("xlm-roberta-cls", |json| {
            json["pre_tokenizer"] = json!({"type": "Digits", "individual_digits": true});
        }),
        ("xlm-roberta-cls", |json| json["normalizer"] = json!({"type": "Prepend", "prepend": "▁"})),
        ("xlm-roberta-cls", |json| {
            json["normalizer"] =
                json!({"type": "Replace", "pattern": {"String": "a b"}, "content": "c"});
        }),
        ("xlm-roberta-cls", |json| {
            json["normalizer"] =
                json!({"type": "Replace", "pattern": {"Regex": "[a-z]"}, "content": ""});
        }),
        ("bert-mean", |json| add(json, "<a tag>", false, false, false)),
        ("bert-mean", |json| json["pre_tokenizer"] = json!({"type": "FixedLength", "length": 3})),
    ];
    for (model, change) in changes {
        assert!(tokenizer(model, change).cuts.is_none());
    }
}
