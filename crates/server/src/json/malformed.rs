//! Why a body is not JSON, in words that help: the reader's own, or the name of what can't be seen.

use crate::failure::Failure;
use crate::invisible::Invisible;

/// What Python's `json` writes and no other reader takes.
const PYTHON_ONLY: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// The failure for `error`, which came of reading `body` as an object.
pub(crate) fn malformed(body: &str, error: &serde_json::Error) -> Failure {
    if error.is_data() {
        return Failure::Malformed("it must be an object with fields".to_owned());
    }
    let at = offset(body, error);
    let place = format!("at line {} column {}", error.line(), error.column());
    let rest = body.get(at..).unwrap_or_default();
    // Readers stop at a sign's number, not at the sign.
    let signed = body.get(at.saturating_sub(1)..).unwrap_or_default();
    let number = PYTHON_ONLY.iter().rev().find(|word| {
        rest.starts_with(**word) || (word.starts_with('-') && signed.starts_with(**word))
    });
    if let Some(number) = number {
        return Failure::Malformed(format!("{number} {place}, which JSON does not have"));
    }
    let invisible = rest.chars().next().and_then(Invisible::describe);
    Failure::Malformed(match invisible {
        Some(invisible) => format!("{place} stands {invisible}, which can't be seen: remove it"),
        None => error.to_string(),
    })
}

/// Where in `body` the reader stopped, in bytes, moved back to the start of a character.
fn offset(body: &str, error: &serde_json::Error) -> usize {
    let before = body.split_inclusive('\n').take(error.line().saturating_sub(1));
    let start: usize = before.map(str::len).sum();
    let mut at = (start + error.column().saturating_sub(1)).min(body.len());
    while !body.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Why bytes that are no UTF-8 are refused.
pub(crate) fn not_utf8(body: &[u8], valid_up_to: usize) -> Failure {
    Failure::Malformed(match body {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            "it begins with the byte order mark of UTF-16: send UTF-8".to_owned()
        }
        _ => format!("byte {valid_up_to} is not UTF-8"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::IgnoredAny;
    use serde_json::value::RawValue;
    use std::collections::BTreeMap;

    fn complaint(body: &str) -> String {
        let read = serde_json::from_str::<BTreeMap<String, &RawValue>>(body).map(|_| IgnoredAny);
        malformed(body, &read.unwrap_err()).to_string()
    }

    #[test]
    fn what_python_writes_is_named() {
        for number in PYTHON_ONLY {
            for body in [format!(r#"{{"a":{number}}}"#), format!("{{\"é\":\n [1, {number}]}}")] {
                let found = complaint(&body);
                assert!(found.contains(&format!(": {number} at line ")), "{body} {found}");
            }
        }
    }

    #[test]
    fn what_cannot_be_seen_is_named() {
        for (body, name) in [
            ("\u{feff}{}", "at line 1 column 1 stands U+FEFF (a byte order mark)"),
            ("{\u{a0}\"a\":1}", "U+00A0 (a no-break space)"),
            ("{\"a\":\n\u{200b}1}", "at line 2 column 1 stands U+200B"),
            ("{\"a\":1}\u{2060}", "U+2060"),
            ("{\"a\u{0}\":1}", "U+0000 (a NUL)"),
        ] {
            let found = complaint(body);
            assert!(found.contains(name), "{body:?} {found}");
        }
    }

    #[test]
    fn other_mistakes_are_told_in_the_reader_s_words() {
        assert!(complaint("{'a':1}").contains("at line 1 column 2"));
        assert!(complaint("{").contains("EOF"));
        assert!(complaint("[]").contains("must be an object"));
    }
}
