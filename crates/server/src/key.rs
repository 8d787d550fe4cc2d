//! API keys, kept as digests.
//!
//! Only a key's SHA-256 is stored: nothing that prints, logs or dumps the settings can give the key
//! away, and comparing digests takes the same time whatever was sent, however long it was.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::Invisible;

/// A key that clients send as `authorization: Bearer KEY`.
///
/// ```
/// use vecmill_server::ApiKey;
///
/// let key: ApiKey = "s3cret\n".parse().unwrap(); // the newline of a key file does no harm
/// assert_eq!(format!("{key:?}"), "ApiKey(…)");
/// assert!(" ".parse::<ApiKey>().is_err());
/// ```
#[derive(Clone)]
pub struct ApiKey {
    digest: [u8; 32],
}

/// Why a text can't be an API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiKeyError {
    /// There is nothing but white space.
    #[error("an API key can't be empty")]
    Empty,
    /// An HTTP header could not carry it.
    #[error("expected visible ASCII characters without spaces, found {0}")]
    Characters(WrongCharacter),
}

/// A character that an API key can't have, and where, from 1. What can be seen of it is not said: it
/// is part of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongCharacter {
    place: usize,
    invisible: Option<Invisible>,
}

impl WrongCharacter {
    fn first_in(key: &str) -> Option<Self> {
        let place = 1 + key.chars().position(|c| !c.is_ascii_graphic())?;
        let invisible = Invisible::first_in(key).filter(|found| found.place() == place);
        Some(Self { place, invisible })
    }
}

impl fmt::Display for WrongCharacter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.invisible {
            Some(invisible) => invisible.fmt(f),
            None => write!(f, "a space, or something beyond ASCII, at character {}", self.place),
        }
    }
}

impl FromStr for ApiKey {
    type Err = ApiKeyError;

    /// Takes the key without the white space around it.
    fn from_str(text: &str) -> Result<Self, ApiKeyError> {
        let key = text.trim();
        if key.is_empty() {
            return Err(ApiKeyError::Empty);
        }
        match WrongCharacter::first_in(key) {
            Some(wrong) => Err(ApiKeyError::Characters(wrong)),
            None => Ok(Self { digest: digest(key) }),
        }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// Whether `sent` is one of `keys`. Every key is compared, to the end.
pub(crate) fn is_among(keys: &[ApiKey], sent: &str) -> bool {
    let sent = digest(sent);
    let none = Choice::from(0);
    keys.iter().fold(none, |found, key| found | key.digest.ct_eq(&sent)).into()
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_key_is_accepted() {
        let keys: Vec<ApiKey> = ["first", " second\n"].map(|key| key.parse().unwrap()).into();
        assert!(is_among(&keys, "first"));
        assert!(is_among(&keys, "second"));
        for wrong in ["", "firs", "firstt", "FIRST", " first"] {
            assert!(!is_among(&keys, wrong), "{wrong:?}");
        }
        assert!(!is_among(&[], ""));
    }

    #[test]
    fn keys_that_no_client_could_send_are_refused() {
        assert_eq!("".parse::<ApiKey>().unwrap_err(), ApiKeyError::Empty);
        for (key, complaint) in [
            ("two words", "a space, or something beyond ASCII, at character 4"),
            ("schlüssel", "a space, or something beyond ASCII, at character 5"),
            ("\u{feff}key", "found U+FEFF (a byte order mark) at character 1"),
            ("ke\u{200b}y", "found U+200B (a zero-width space) at character 3"),
            ("a\nb", "found U+000A (a line feed) at character 2"),
        ] {
            let error = key.parse::<ApiKey>().unwrap_err().to_string();
            assert!(error.ends_with(complaint), "{error}");
        }
    }
}
