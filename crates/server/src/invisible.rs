//! Characters that can't be seen, by name: an error about one is of no help unless it says so.

use std::fmt;

/// A character that takes no ink, at its place in a text.
///
/// ```
/// use vecmill_server::Invisible;
///
/// let found = Invisible::first_in("a\u{a0}b").unwrap();
/// assert_eq!(found.to_string(), "U+00A0 (a no-break space) at character 2");
/// assert_eq!(Invisible::first_in("a b"), None); // an ordinary space is where one expects it
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invisible {
    character: char,
    name: &'static str,
    /// From 1.
    place: usize,
}

impl Invisible {
    /// The first character of `text` that can't be seen, ordinary spaces aside.
    pub fn first_in(text: &str) -> Option<Self> {
        let mut places = (1..).zip(text.chars());
        places.find_map(|(place, character)| {
            name(character).map(|name| Self { character, name, place })
        })
    }

    /// Which of the text's characters it is, from 1.
    pub fn place(&self) -> usize {
        self.place
    }

    /// What the character is, without its place.
    pub(crate) fn describe(character: char) -> Option<String> {
        name(character).map(|name| format!("U+{:04X} ({name})", u32::from(character)))
    }
}

impl fmt::Display for Invisible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { character, name, place } = self;
        write!(f, "U+{:04X} ({name}) at character {place}", u32::from(*character))
    }
}

/// The usual name of a character that can't be seen; `None` if it can.
fn name(character: char) -> Option<&'static str> {
    let name = match character {
        ' ' => return None,
        '\u{feff}' => "a byte order mark",
        '\u{a0}' => "a no-break space",
        '\u{202f}' => "a narrow no-break space",
        '\u{200b}' => "a zero-width space",
        '\u{200c}' => "a zero-width non-joiner",
        '\u{200d}' => "a zero-width joiner",
        '\u{2060}' => "a word joiner",
        '\u{ad}' => "a soft hyphen",
        '\u{200e}' | '\u{200f}' | '\u{61c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            "a mark of writing direction"
        }
        '\u{fe00}'..='\u{fe0f}' | '\u{e0100}'..='\u{e01ef}' => "a variation selector",
        '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' => "a Hangul filler",
        '\u{34f}' | '\u{180b}'..='\u{180f}' | '\u{2061}'..='\u{2064}' | '\u{206a}'..='\u{206f}' => {
            "an invisible format character"
        }
        '\u{e0000}'..='\u{e007f}' => "an invisible tag",
        '\n' => "a line feed",
        '\r' => "a carriage return",
        '\t' => "a tab",
        '\0' => "a NUL",
        '\u{2028}' | '\u{2029}' | '\u{85}' => "a line separator",
        other if other.is_whitespace() => "an unusual space",
        other if other.is_control() => "a control character",
        _ => return None,
    };
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_named() {
        let found = |text| Invisible::first_in(text).map(|found| found.to_string());
        assert_eq!(found("\u{feff}k").unwrap(), "U+FEFF (a byte order mark) at character 1");
        assert_eq!(found("é\u{200b}").unwrap(), "U+200B (a zero-width space) at character 2");
        assert_eq!(found("k\n").unwrap(), "U+000A (a line feed) at character 2");
        assert_eq!(found("k\u{3000}").unwrap(), "U+3000 (an unusual space) at character 2");
        assert_eq!(found("two words, é 😀 中"), None);
    }
}
