//! `/tokenize` by a real engine over HTTP: texts and places against the `tokenizers` crate's own.

#![expect(clippy::unwrap_used, reason = "a test says what must hold by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};
use support::TestServer;
use support::engine::{serve, tiny};
use tempfile::TempDir;
use vecmill_server::Settings;

const PROMPT: &str = "Quêry: ";

/// Texts that change their length when they are normalised.
const CHANGING: [&str; 9] = [
    "İstanbul İİ ŞİİR",
    "ﬁnding the ﬁ",
    "e\u{301}tude née",
    "ﷺ and ½ ①",
    "ΟΔΟΣ ΣΑΣ",
    "a\u{200b}b\u{ad}c \u{feff}d",
    "👩\u{200d}🚀 😀!",
    "한 \u{1112}\u{1161}\u{11ab}",
    "[MASK] and <s> \u{0} x  y",
];

/// A server with a tiny model that has prompts; with `lowercase`, its texts are put in lower case
/// before they are tokenised.
fn start(model: &str, lowercase: bool) -> (TestServer, TempDir) {
    let folder = TempDir::new().unwrap();
    let put = |name: &str, contents: Value| {
        let path = folder.path().join(name);
        let _ = fs::remove_file(&path);
        fs::write(path, contents.to_string()).unwrap();
    };
    for entry in fs::read_dir(tiny(model)).unwrap() {
        let entry = entry.unwrap();
        symlink(fs::canonicalize(entry.path()).unwrap(), folder.path().join(entry.file_name()))
            .unwrap();
    }
    put("config_sentence_transformers.json", json!({"prompts": {"query": PROMPT}}));
    put("sentence_bert_config.json", json!({"max_seq_length": 64, "do_lower_case": lowercase}));
    (serve(folder.path(), Settings::default()), folder)
}

fn corpus() -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/corpus/texts.jsonl");
    let lines = fs::read_to_string(file).unwrap();
    let text = |line: &str| {
        serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_owned()
    };
    lines.lines().map(text).collect()
}

/// What the crate says of a text, in whole characters.
fn expected(tokenizer: &tokenizers::Tokenizer, text: &str, special: bool) -> Vec<Value> {
    let encoding = tokenizer.encode(text, special).unwrap();
    let tokens = (0..encoding.len()).map(|n| {
        let id = encoding.get_ids()[n];
        if encoding.get_special_tokens_mask()[n] == 1 {
            let text = &encoding.get_tokens()[n];
            return json!({"id": id, "text": text, "special": true, "start": null, "stop": null});
        }
        let (mut start, mut stop) = encoding.get_offsets()[n];
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        while !text.is_char_boundary(stop) {
            stop += 1;
        }
        let characters = |byte: usize| text[..byte].chars().count();
        json!({
            "id": id, "text": text[start..stop], "special": false,
            "start": characters(start), "stop": characters(stop),
        })
    });
    tokens.collect()
}

#[test]
fn texts_and_places_are_those_of_the_crate_in_prompt_and_text() {
    for model in ["bert-mean", "roberta-mean", "xlm-roberta-cls"] {
        let (server, folder) = start(model, false);
        let tokenizer =
            tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        let mut texts = corpus();
        texts.extend(CHANGING.map(str::to_owned));
        texts.push(texts.join(" ")); // in many pieces
        for (prompt, front) in [(Value::Null, ""), (json!("query"), PROMPT)] {
            let special = front.is_empty();
            let body =
                json!({"inputs": texts, "prompt_name": prompt, "add_special_tokens": special});
            let answer = server.post("/tokenize", body.to_string()).json();
            let answer = answer.as_array().unwrap();
            assert_eq!(answer.len(), texts.len());
            for (text, tokens) in texts.iter().zip(answer) {
                let expected = expected(&tokenizer, &format!("{front}{text}"), special);
                let tokens = tokens.as_array().unwrap();
                let differ = tokens.iter().zip(&expected).find(|(ours, theirs)| ours != theirs);
                let shown: String = text.chars().take(80).collect();
                assert!(differ.is_none(), "{model}, {shown:?}: {differ:?}");
                assert_eq!(tokens.len(), expected.len(), "{model}, {shown:?}");
            }
        }
    }
}

#[test]
fn places_are_in_the_text_that_was_sent_where_it_is_put_in_lower_case_first() {
    for model in ["bert-mean", "roberta-mean", "xlm-roberta-cls"] {
        let (server, folder) = start(model, true);
        let tokenizer =
            tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        for text in CHANGING {
            let answer = server.post(
                "/tokenize",
                json!({"inputs": text, "add_special_tokens": false}).to_string(),
            );
            let answer = answer.json();
            let ours = answer[0].as_array().unwrap();
            let lowered = text.to_lowercase();
            let theirs = expected(&tokenizer, &lowered, false);
            assert_eq!(ours.len(), theirs.len(), "{text:?}");
            for (ours, theirs) in ours.iter().zip(&theirs) {
                let place = |key: &str| usize::try_from(ours[key].as_u64().unwrap()).unwrap();
                let part: String = text.chars().take(place("stop")).skip(place("start")).collect();
                assert_eq!(ours["text"], json!(part), "{text:?}");
                assert_eq!(ours["id"], theirs["id"], "{text:?}");
                // Whole characters, so it may be more than their part of one.
                let (part, theirs) = (part.to_lowercase(), theirs["text"].as_str().unwrap());
                assert!(
                    part.replace('ς', "σ").contains(&theirs.replace('ς', "σ")),
                    "{part:?} {theirs:?}"
                );
            }
        }
    }
}

#[test]
fn a_long_reply_comes_in_parts_and_a_short_one_whole() {
    let (server, _folder) = start("bert-mean", false);
    let short = server.post("/tokenize", r#"{"inputs":["and","","be"]}"#);
    assert_eq!(short.header("content-length"), Some(&*short.body.len().to_string()));
    let counts: Vec<_> =
        short.json().as_array().unwrap().iter().map(|it| it.as_array().unwrap().len()).collect();
    assert_eq!(counts, [3, 2, 3]);

    let long = server.post("/tokenize", json!({"inputs": [".".repeat(20_000), "and"]}).to_string());
    assert_eq!((long.status, long.header("content-length")), (200, None));
    let answer = long.json();
    let dots = answer[0].as_array().unwrap();
    assert_eq!(dots.len(), 20_002);
    let dot = |n: usize| json!({"id": dots[1]["id"], "text": ".", "special": false, "start": n, "stop": n + 1});
    assert_eq!((&dots[1], &dots[20_000]), (&dot(0), &dot(19_999)));
    assert_eq!(answer[1].as_array().unwrap().len(), 3);
}
