use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::*;

const MODELS: [&str; 3] = ["bert-mean", "roberta-mean", "xlm-roberta-cls"];

fn file(model: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(model);
    serde_json::from_slice(&std::fs::read(folder.join("tokenizer.json")).unwrap()).unwrap()
}

fn open(json: &Value) -> Result<Tokenizer, Flaw> {
    File::parse(&serde_json::to_vec(json).unwrap())?.build(Vec::new())
}

/// What is said of a tiny model's file with a change in it.
fn flaw(model: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut json = file(model);
    change(&mut json);
    let flaw = open(&json).map(drop).unwrap_err().to_string();
    assert!(flaw.len() < 600, "{} bytes", flaw.len());
    flaw
}

fn repeated(value: &Value, times: usize) -> Value {
    Value::Array(vec![value.clone(); times])
}

/// A character map that makes `b` of `a`, in 512 units.
fn map() -> Vec<u8> {
    const UNITS: usize = 512;
    let mut units = [0_u32; UNITS];
    units[0] = 256 << 10; // the start's state is 256
    units[256 ^ 97] = 97 | 1 << 8 | 256 << 10; // by `a` to 97, where its leaf is
    units[97] = 1 << 31; // the replacement at byte 0
    let size = u32::try_from(UNITS * 4).unwrap();
    let units = units.iter().flat_map(|unit| unit.to_le_bytes());
    size.to_le_bytes().into_iter().chain(units).chain(*b"b\0").collect()
}

fn precompiled(map: &[u8]) -> Value {
    json!({"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(map)})
}

#[test]
fn files_mean_what_the_crate_makes_of_them() {
    for model in MODELS {
        let mut json = file(model);
        let theirs = Tokenizer::from_bytes(serde_json::to_vec(&json).unwrap()).unwrap();
        json["decoder"] = json!({"type": "Whatever"});
        json["truncation"] = json!({"max_length": 0});
        json["unheard of"] = json!([]);
        json["model"]["unheard of"] = json!({"a": 1});
        let ours = open(&json).unwrap();
        let mut nameless = json.clone();
        nameless["model"].as_object_mut().unwrap().remove("type");
        let nameless = open(&nameless).unwrap();
        for text in ["Everyone has the right to life.", "", " née [MASK]<s> 中文", "a\tb\u{0}c "]
        {
            let ids =
                |tokenizer: &Tokenizer| tokenizer.encode(text, true).unwrap().get_ids().to_vec();
            assert_eq!(ids(&ours), ids(&theirs), "{model}");
            assert_eq!(ids(&nameless), ids(&theirs), "{model}");
        }
    }
    let marked =
        [b"\xef\xbb\xbf".as_slice(), &serde_json::to_vec(&file("bert-mean")).unwrap()].concat();
    assert!(File::parse(&marked).is_ok());
}

#[test]
fn what_is_wrong_is_named_by_its_key() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change, &str); 37] = [
        ("bert-mean", |it| *it = json!([]), "'the whole file'"),
        ("bert-mean", |it| it["version"] = json!("2.0"), "'version'"),
        ("bert-mean", |it| it["model"] = Value::Null, "'model'"),
        ("bert-mean", |it| it["model"] = json!([1]), "'model'"),
        ("bert-mean", |it| it["model"]["type"] = json!("x".repeat(100_000)), "'model.type'"),
        ("bert-mean", |it| it["model"]["vocab"] = json!([]), "'model.vocab'"),
        ("bert-mean", |it| it["model"]["vocab"]["and"] = json!(-1), "'model.vocab'"),
        ("bert-mean", |it| it["model"]["vocab"]["and"] = json!(u32::MAX), "'model.vocab'"),
        (
            "bert-mean",
            |it| it["model"]["vocab"]["and"] = json!(3),
            "'model.vocab': id 3 is there twice",
        ),
        (
            "bert-mean",
            |it| it["model"]["vocab"]["x".repeat(2000)] = json!(999),
            "'model.vocab': token 999",
        ),
        (
            "bert-mean",
            |it| it["model"]["unk_token"] = json!("?".repeat(100_000)),
            "'model.unk_token'",
        ),
        (
            "bert-mean",
            |it| it["model"]["max_input_chars_per_word"] = json!(1_u64 << 40),
            "'model.max_input",
        ),
        (
            "bert-mean",
            |it| it["model"]["max_input_chars_per_word"] = json!("9".repeat(100_000)),
            "'model'",
        ),
        ("roberta-mean", |it| it["model"]["dropout"] = json!(0.5), "'model.dropout'"),
        ("roberta-mean", |it| it["model"]["unk_token"] = json!("?!"), "'model.unk_token'"),
        (
            "roberta-mean",
            |it| it["model"]["merges"] = json!([["<mask>", "x".repeat(999)]]),
            "'model.merges': merge 0",
        ),
        ("roberta-mean", |it| it["model"]["merges"] = json!(["a"]), "'model"),
        ("roberta-mean", |it| it["model"]["merges"] = json!({"a": "b"}), "'model.merges'"),
        (
            "roberta-mean",
            |it| it["model"]["continuing_subword_prefix"] = json!("##"),
            "'model.merges': merge 0",
        ),
        ("xlm-roberta-cls", |it| it["model"]["unk_id"] = json!(9999), "'model'"),
        (
            "xlm-roberta-cls",
            |it| it["model"]["vocab"][7][0] = json!("x".repeat(600)),
            "'model.vocab': piece 7",
        ),
        (
            "bert-mean",
            |it| it["normalizer"] = json!({"type": "x".repeat(100_000)}),
            "'normalizer.type'",
        ),
        ("bert-mean", |it| it["normalizer"] = json!({}), "'normalizer.type'"),
        (
            "bert-mean",
            |it| it["normalizer"] = json!({"type": "Prepend", "prepend": "x".repeat(2000)}),
            "'normalizer'",
        ),
        (
            "bert-mean",
            |it| {
                it["normalizer"] = json!({"type": "Sequence", "normalizers": repeated(&json!({"type": "NFKC"}), 65)});
            },
            "'normalizer.normalizers'",
        ),
        (
            "bert-mean",
            |it| {
                it["normalizer"] = json!({"type": "Sequence", "normalizers": repeated(&json!({"type": "NFKC"}), 4)});
            },
            "'normalizer'",
        ),
        (
            "bert-mean",
            |it| {
                it["normalizer"] =
                    json!({"type": "Replace", "pattern": {"String": ""}, "content": "a"});
            },
            "'normalizer.pattern'",
        ),
        (
            "bert-mean",
            |it| it["normalizer"] = json!({"type": "Replace", "pattern": {"Regex": "(?:(?:(?=a).){999}){999}"}, "content": "a"}),
            "'normalizer.pattern'",
        ),
        (
            "bert-mean",
            |it| {
                it["normalizer"] =
                    json!({"type": "Replace", "pattern": {"Regex": "("}, "content": "a"});
            },
            "'normalizer'",
        ),
        (
            "bert-mean",
            |it| it["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0}),
            "'pre_tokenizer.length'",
        ),
        (
            "bert-mean",
            |it| it["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
            "'pre_tokenizer'",
        ),
        ("bert-mean", |it| it["pre_tokenizer"]["type"] = json!("None"), "'pre_tokenizer.type'"),
        (
            "bert-mean",
            |it| it["post_processor"]["special_tokens"] = json!({}),
            "'post_processor.single'",
        ),
        (
            "bert-mean",
            |it| it["post_processor"]["single"][1]["Sequence"]["id"] = json!("B"),
            "'post_processor.single'",
        ),
        (
            "bert-mean",
            |it| {
                it["post_processor"]["single"] =
                    repeated(&json!({"Sequence": {"id": "A", "type_id": 0}}), 65);
            },
            "'post_processor.single'",
        ),
        (
            "bert-mean",
            |it| it["added_tokens"][0]["id"] = json!(77),
            "'added_tokens': '[PAD]' has id 77",
        ),
        (
            "bert-mean",
            |it| it["added_tokens"][1]["id"] = json!(0),
            "'added_tokens': id 0 is there twice",
        ),
    ];
    for (model, change, expected) in changes {
        let said = flaw(model, change);
        assert!(said.starts_with(expected), "expected {expected}, found {said}");
    }
}

#[test]
fn lists_within_lists_end() {
    let mut normalizer = json!({"type": "NFC"});
    let mut pre_tokenizer = json!({"type": "Whitespace"});
    for _ in 0..20 {
        normalizer = json!({"type": "Sequence", "normalizers": [normalizer]});
        pre_tokenizer = json!({"type": "Sequence", "pretokenizers": [pre_tokenizer]});
    }
    assert!(flaw("bert-mean", |it| it["normalizer"] = normalizer).contains("at most 8 lists"));
    assert!(
        flaw("bert-mean", |it| it["pre_tokenizer"] = pre_tokenizer).contains("at most 8 lists")
    );
    let deep = [b"{\"model\":".as_slice(), &[b'['; 1 << 20]].concat();
    assert!(File::parse(&deep).unwrap_err().to_string().starts_with("'the whole file'"));
}

#[test]
fn a_character_map_is_walked_before_it_is_used() {
    let mut json = file("xlm-roberta-cls");
    json["normalizer"] = precompiled(&map());
    let tokenizer = open(&json).unwrap();
    let ids = |text: &str| tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec();
    assert_eq!(ids("aca"), ids("bcb"));

    let with = |place: usize, bytes: &[u8]| {
        let mut map = map();
        map[place..place + bytes.len()].copy_from_slice(bytes);
        map
    };
    let unit = |place: usize, unit: u32| with(4 + 4 * place, &unit.to_le_bytes());
    let broken = [
        (vec![], "fewer than 4 bytes"),
        (with(0, &u32::MAX.to_le_bytes()), "more bytes than there are"),
        (with(0, &0_u32.to_le_bytes()), "multiple of 4"),
        (with(0, &2047_u32.to_le_bytes()), "multiple of 4"),
        (unit(0, u32::MAX >> 1), "leads to unit"),
        (unit(256 ^ 97, 97 | 1 << 8 | 4096 << 10), "leads to unit"),
        (unit(97, 1 << 31 | 99), "names a replacement at byte 99"),
        (with(4 + 2048, b"\xff"), "invalid utf-8"),
    ];
    for (map, expected) in broken {
        let said = flaw("xlm-roberta-cls", |it| it["normalizer"] = precompiled(&map));
        assert!(said.starts_with("'normalizer.precompiled_charsmap'"), "{said}");
        assert!(said.contains(expected), "expected {expected}, found {said}");
    }
    let text = json!({"type": "Precompiled", "precompiled_charsmap": "%"});
    assert!(flaw("xlm-roberta-cls", |it| it["normalizer"] = text).contains("base64"));
    let growing = [map(), vec![b'c'; 5000]].concat();
    let growing = [&growing[..4 + 2048], b"d", &growing[4 + 2050..]].concat();
    let said = flaw("xlm-roberta-cls", |it| it["normalizer"] = precompiled(&growing));
    assert!(said.contains("bytes of one"), "{said}");
}

/// The values, under any key, that something may not expect.
fn odd(choices: &mut fastrand::Rng) -> Value {
    const LONG: usize = 3000;
    match choices.u8(0..14) {
        0 => Value::Null,
        1 => json!(choices.bool()),
        2 => json!(0),
        3 => json!(-1),
        4 => json!(u64::MAX),
        5 => json!(1e300),
        6 => json!(""),
        7 => json!("\u{301}"),
        8 => json!("x".repeat(LONG)),
        9 => json!([]),
        10 => json!({}),
        11 => repeated(&json!([""]), 70),
        12 => json!({"Regex": "a*"}),
        _ => json!(["a", "b"]),
    }
}

/// Changes something, anywhere in a value.
fn mutate(value: &mut Value, choices: &mut fastrand::Rng) {
    let deeper = choices.u8(0..8) > 0;
    match value {
        Value::Object(object) if deeper && !object.is_empty() => {
            let place = choices.usize(..object.len());
            let key = object.keys().nth(place).cloned().unwrap();
            match choices.u8(0..16) {
                0 => drop(object.remove(&key)),
                1 => {
                    let value = object[&key].clone();
                    object.insert("\u{e9}".repeat(choices.usize(0..3)), value);
                }
                _ => mutate(&mut object[&key], choices),
            }
        }
        Value::Array(array) if deeper && !array.is_empty() => {
            let place = choices.usize(..array.len());
            match choices.u8(0..16) {
                0 => drop(array.remove(place)),
                1 => array.push(array[place].clone()),
                2 => array.reverse(),
                _ => mutate(&mut array[place], choices),
            }
        }
        other => *other = odd(choices),
    }
}

#[test]
fn no_change_of_a_file_is_more_than_an_error() {
    let mut choices = fastrand::Rng::with_seed(18);
    let mut files: Vec<Value> = MODELS.into_iter().map(file).collect();
    let mut mapped = file("xlm-roberta-cls");
    mapped["normalizer"] = json!({"type": "Sequence", "normalizers": [
        precompiled(&map()), {"type": "Strip", "strip_left": false, "strip_right": true},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
        {"type": "Prepend", "prepend": "▁"}]});
    files.push(mapped);
    let mut opened = 0;
    for round in 0..500 {
        let mut json = files[round % files.len()].clone();
        let parts = ["normalizer", "pre_tokenizer", "post_processor", "added_tokens", "model"];
        for _ in 0..choices.usize(1..4) {
            match choices.usize(0..8) {
                part @ 0..5 => mutate(&mut json[parts[part]], &mut choices),
                _ => mutate(&mut json, &mut choices),
            }
            if !json.is_object() {
                break;
            }
        }
        let Ok(tokenizer) = open(&json) else { continue };
        opened += 1;
        // One that opens answers or refuses; `Tokenizer` in the module above catches what panics.
        let encode = || {
            let text = "Everyone has  the right [MASK]<s> to Éducation 中文, aéa\u{301}.";
            tokenizer.encode(text, true).map(drop).map_err(|error| Flaw::new("text", error))
        };
        if let Err(flaw) = caught("text", encode) {
            assert!(flaw.to_string().len() < 600, "{} bytes", flaw.to_string().len());
        }
    }
    assert!(opened > 40, "{opened}");
}
