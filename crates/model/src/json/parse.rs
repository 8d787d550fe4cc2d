//! From bytes to a [`Json`], as Python's `json` module takes them.
//!
//! Beyond the standard it takes `NaN` and `Infinity`, whole numbers of any size, halves of surrogate
//! pairs and, as people's editors leave it, a byte order mark. Of keys that are there twice the last
//! counts. What it refuses it names, above all what can't be seen.

use std::collections::BTreeMap;

use super::Json;
use crate::file::stand_in;

/// Arrays and objects within each other; honest files have some five.
const DEPTH: usize = 128;

const MARK: &[u8] = b"\xef\xbb\xbf";

/// Why bytes are no JSON, with line and column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(String);

impl Json {
    /// Parses a whole file's contents.
    ///
    /// ```
    /// use vecmill_model::Json;
    ///
    /// let value = Json::parse(b"{\"loss\": NaN, \"size\": 256.0}").unwrap();
    /// assert_eq!(value.get("size").and_then(Json::as_integer), Some(256));
    /// ```
    ///
    /// # Errors
    /// What was expected where, and what is there.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        let whole = |reason: &str| Err(JsonError(reason.to_owned()));
        if let Some(found) = stand_in(bytes) {
            return whole(found);
        }
        if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
            return whole("it is written in UTF-16: save it as UTF-8");
        }
        let bytes = bytes.strip_prefix(MARK).unwrap_or(bytes);
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let reason = format!("byte {} is not UTF-8", error.valid_up_to());
                return Err(JsonError(reason));
            }
        };
        let mut parser = Parser { text, at: 0, depth: 0 };
        parser.space();
        let value = parser.value()?;
        parser.space();
        if parser.rest().is_empty() { Ok(value) } else { Err(parser.unexpected("the end")) }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn next(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    /// Takes `word` if it comes next.
    fn take(&mut self, word: &str) -> bool {
        let comes = self.rest().starts_with(word);
        self.at += if comes { word.len() } else { 0 };
        comes
    }

    fn value(&mut self) -> Result<Json, JsonError> {
        match self.next() {
            Some('{') => self.nested(Self::object),
            Some('[') => self.nested(Self::array),
            Some('"') => self.string().map(|text| match text {
                Text::Whole(text) => Json::Text(text),
                Text::Halves(text) => Json::BrokenText(text),
            }),
            Some('-' | '0'..='9') => self.number(),
            _ => self.word(),
        }
    }

    fn word(&mut self) -> Result<Json, JsonError> {
        for (word, value) in [
            ("null", Json::Null),
            ("true", Json::Bool(true)),
            ("false", Json::Bool(false)),
            ("NaN", Json::Float(f64::NAN)),
            ("Infinity", Json::Float(f64::INFINITY)),
        ] {
            if self.take(word) {
                return Ok(value);
            }
        }
        Err(self.unexpected("a value"))
    }

    fn nested(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<Json, JsonError>,
    ) -> Result<Json, JsonError> {
        if self.depth == DEPTH {
            return Err(self.wrong(&format!("more than {DEPTH} arrays and objects in each other")));
        }
        (self.depth, self.at) = (self.depth + 1, self.at + 1);
        let value = read(self)?;
        self.depth -= 1;
        Ok(value)
    }

    fn array(&mut self) -> Result<Json, JsonError> {
        let mut values = Vec::new();
        self.space();
        if self.take("]") {
            return Ok(Json::Array(values));
        }
        loop {
            self.space();
            values.push(self.value()?);
            if !self.another("]")? {
                return Ok(Json::Array(values));
            }
        }
    }

    fn object(&mut self) -> Result<Json, JsonError> {
        let mut values = BTreeMap::new();
        self.space();
        if self.take("}") {
            return Ok(Json::Object(values));
        }
        loop {
            self.space();
            if self.next() != Some('"') {
                return Err(self.unexpected("a key in double quotes"));
            }
            let (Text::Whole(key) | Text::Halves(key)) = self.string()?;
            self.space();
            if !self.take(":") {
                return Err(self.unexpected("':'"));
            }
            self.space();
            let value = self.value()?;
            values.insert(key, value);
            if !self.another("}")? {
                return Ok(Json::Object(values));
            }
        }
    }

    /// Whether another element follows, or else `end`.
    fn another(&mut self, end: &str) -> Result<bool, JsonError> {
        self.space();
        match self.take(",") {
            true => Ok(true),
            false if self.take(end) => Ok(false),
            false => Err(self.unexpected(&format!("',' or '{end}'"))),
        }
    }

    fn number(&mut self) -> Result<Json, JsonError> {
        let from = self.at;
        if self.take("-") && self.take("Infinity") {
            return Ok(Json::Float(f64::NEG_INFINITY));
        }
        if !self.take("0") {
            self.digits()?;
        }
        let mut whole = true;
        if self.take(".") {
            whole = false;
            self.digits()?;
        }
        if self.take("e") || self.take("E") {
            whole = false;
            let _sign = self.take("+") || self.take("-");
            self.digits()?;
        }
        let text = self.text.get(from..self.at).unwrap_or_default();
        let integer = if whole { text.parse().ok() } else { None };
        // Whole numbers beyond 64 bits are numbers all the same; none is used exactly.
        let float = || text.parse().map_or(Json::Float(f64::NAN), Json::Float);
        Ok(integer.map_or_else(float, Json::Integer))
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let rest = self.rest();
        let count =
            rest.len() - rest.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
        self.at += count;
        if count == 0 { Err(self.unexpected("a digit")) } else { Ok(()) }
    }

    fn string(&mut self) -> Result<Text, JsonError> {
        self.at += 1;
        let (mut text, mut whole) = (String::new(), true);
        loop {
            let rest = self.rest();
            let end = rest.find(|c: char| c == '"' || c == '\\' || c < ' ').unwrap_or(rest.len());
            text.push_str(rest.get(..end).unwrap_or_default());
            self.at += end;
            if self.take("\"") {
                return Ok(if whole { Text::Whole(text) } else { Text::Halves(text) });
            }
            if !self.take("\\") {
                return Err(self.unexpected("the string's closing quote"));
            }
            match self.escape()? {
                Some(character) => text.push(character),
                None => {
                    whole = false;
                    text.push(char::REPLACEMENT_CHARACTER);
                }
            }
        }
    }

    /// The character behind a backslash; `None` for half of a surrogate pair.
    fn escape(&mut self) -> Result<Option<char>, JsonError> {
        for (name, character) in [
            ("\"", '"'),
            ("\\", '\\'),
            ("/", '/'),
            ("b", '\u{8}'),
            ("f", '\u{c}'),
            ("n", '\n'),
            ("r", '\r'),
            ("t", '\t'),
        ] {
            if self.take(name) {
                return Ok(Some(character));
            }
        }
        if !self.take("u") {
            return Err(self.unexpected("one of \"\\/bfnrtu behind '\\'"));
        }
        let first = self.unit()?;
        if !(0xd800..0xdc00).contains(&first) {
            return Ok(char::from_u32(first));
        }
        let behind = self.at;
        if self.take("\\u") {
            let second = self.unit()?;
            if (0xdc00..0xe000).contains(&second) {
                return Ok(char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)));
            }
            self.at = behind;
        }
        Ok(None)
    }

    /// Four hexadecimal digits.
    fn unit(&mut self) -> Result<u32, JsonError> {
        let digits = self.rest().get(..4);
        let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let Some(unit) = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()) else {
            return Err(self.unexpected("four hexadecimal digits"));
        };
        self.at += 4;
        Ok(unit)
    }

    fn unexpected(&self, expected: &str) -> JsonError {
        self.wrong(&format!("expected {expected}, found {}", named(self.next())))
    }

    fn wrong(&self, reason: &str) -> JsonError {
        let before = self.text.get(..self.at).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        JsonError(format!("{reason}, at line {line}, column {column}"))
    }
}

enum Text {
    Whole(String),
    /// With halves of surrogate pairs, which are replaced.
    Halves(String),
}

/// A character as errors name it: what can't be seen by its number.
fn named(character: Option<char>) -> String {
    let Some(character) = character else { return "the end of the file".to_owned() };
    let name = match character {
        '\u{feff}' => "a byte order mark",
        '\u{a0}' | '\u{202f}' => "a no-break space",
        '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{ad}' => "of no width",
        '\u{2028}' | '\u{2029}' => "a line's end that is not JSON's",
        '\n' | '\r' => return "the end of the line".to_owned(),
        _ if character.is_control() => "a control character",
        _ if character.is_whitespace() => "a space that is not JSON's",
        _ => return format!("'{character}'"),
    };
    format!("the character U+{:04X} ({name}), which editors do not show", u32::from(character))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Json {
        Json::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refused(bytes: &[u8]) -> String {
        Json::parse(bytes).expect_err("it should be refused").to_string()
    }

    /// What another parser makes of JSON, in our terms.
    fn ours(value: &serde_json::Value) -> Json {
        match value {
            serde_json::Value::Null => Json::Null,
            serde_json::Value::Bool(value) => Json::Bool(*value),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(integer) => Json::Integer(integer),
                None => Json::Float(number.as_f64().unwrap()),
            },
            serde_json::Value::String(text) => Json::Text(text.clone()),
            serde_json::Value::Array(values) => Json::Array(values.iter().map(ours).collect()),
            serde_json::Value::Object(values) => {
                let member = |(key, value): (&String, _)| (key.clone(), ours(value));
                Json::Object(values.iter().map(member).collect())
            }
        }
    }

    #[test]
    fn what_python_writes_is_read() {
        assert!(matches!(parse("NaN"), Json::Float(number) if number.is_nan()));
        assert_eq!(
            parse(" [Infinity, -Infinity]\n"),
            Json::Array(vec![Json::Float(f64::INFINITY), Json::Float(f64::NEG_INFINITY),])
        );
        assert_eq!(parse("1000000000000000019884624838656"), Json::Float(1e30));
        assert_eq!(parse("1e999"), Json::Float(f64::INFINITY));
        assert_eq!(parse("256.0").as_integer(), Some(256));
        assert_eq!(parse("-0").as_integer(), Some(0));
        assert_eq!(parse("{\"a\": 1, \"b\": 2, \"a\": 3}").get("a"), Some(&Json::Integer(3)));
        assert_eq!(parse("\"\\ud83d\\ude00\""), Json::Text("😀".into()));
        for half in ["\\ud83d", "\\ude00", "\\ud83d\\u0041", "\\ude00\\ud83d"] {
            let value = parse(&format!("\"a{half}\""));
            assert!(matches!(&value, Json::BrokenText(text) if text.starts_with('a')), "{half}");
            assert_eq!(value.as_text(), None);
        }
        assert_eq!(Json::parse(b"\xef\xbb\xbf{}").unwrap(), Json::Object(BTreeMap::new()));
    }

    #[test]
    fn what_is_no_json_is_named_with_its_place() {
        for (text, found) in [
            ("", "empty"),
            ("  \n", "the end of the file"),
            ("{\"a\": 1,}", "a key in double quotes, found '}', at line 1, column 9"),
            ("{\n \"a\" 1}", "expected ':', found '1', at line 2, column 6"),
            ("[1 2]", "',' or ']'"),
            ("[01]", "',' or ']'"),
            ("1.", "a digit"),
            ("+1", "a value"),
            ("\"\\x\"", "behind '\\'"),
            ("\"\\u12\u{e9}4\"", "hexadecimal"),
            ("\"a", "the end of the file"),
            ("\"a\nb\"", "the end of the line"),
            ("{} {}", "expected the end, found '{'"),
            ("{\u{a0}}", "U+00A0 (a no-break space), which editors do not show"),
            ("{\u{200b}}", "U+200B"),
            ("{}\u{feff}", "U+FEFF (a byte order mark)"),
            ("{\"a\": \0}", "U+0000 (a control character)"),
            ("<!DOCTYPE html><html>", "web page"),
            ("version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS"),
        ] {
            let message = refused(text.as_bytes());
            assert!(message.contains(found), "{text:?}: {message}");
            assert!(message.len() < 200, "{message}");
        }
        assert!(refused(b"\xff\xfe{\0}\0").contains("UTF-16"));
        assert!(refused(b"{\"a\": \"\xe9\"}").contains("byte 7 is not UTF-8"));
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(refused("[".repeat(1_000_000).as_bytes()).contains("more than 128"));
        assert!(refused(deep(DEPTH + 1).as_bytes()).contains("more than 128"));
        parse(&deep(DEPTH));
    }

    /// JSON with some damage.
    fn texts() -> impl Strategy<Value = String> {
        let pieces = prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "\\",
            "\\u",
            "d83d",
            "\\ude00",
            "0",
            "1",
            "12",
            "-",
            ".",
            "e",
            "E+",
            " ",
            "\n",
            "null",
            "true",
            "false",
            "\"a\"",
            "é",
            "\u{feff}",
            "\u{7}",
            "\"a\":",
            "9223372036854775808",
            "1e400",
            "NaN",
            "Infinity",
        ]);
        prop::collection::vec(pieces, 0..14).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn it_reads_all_that_the_standard_has_as_another_parser_does(text in texts()) {
            prop_assume!(!text.contains("-0")); // Python's is the integer
            match (serde_json::from_str::<serde_json::Value>(&text), Json::parse(text.as_bytes())) {
                (Ok(theirs), read) => prop_assert_eq!(read, Ok(ours(&theirs))),
                (Err(_), Ok(_)) => {
                    let beyond = ["NaN", "Infinity", "\\u", "e", "E", "\u{feff}"];
                    prop_assert!(beyond.iter().any(|part| text.contains(part)), "{}", text);
                }
                (Err(_), Err(_)) => {}
            }
        }

        #[test]
        fn any_bytes_give_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Json::parse(&bytes);
        }
    }
}
