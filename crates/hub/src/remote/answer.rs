//! What came of one request, in words: a sentence for each answer that users meet.
//!
//! The hub says why it refuses, in a header or in JSON. What has neither is taken for a proxy, a
//! login page or another program that stands between.

use std::fmt;
use std::io::ErrorKind;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use ureq::http::HeaderMap;
use ureq::{Error, Timeout};

use super::HubError;
use crate::FetchError;

/// The most of somebody else's words that an error repeats, in characters.
const WORDS_LIMIT: usize = 200;

/// In seconds: whoever asks for longer means never.
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// What a request was for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asked<'a> {
    /// The model's list of files at this revision.
    List(&'a str),
    /// One file of it.
    File(&'a str),
}

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(_) => f.write_str("the list of files"),
            Self::File(name) => f.write_str(name),
        }
    }
}

/// Why a request brought nothing, and whether to ask again.
#[derive(Debug)]
pub(super) struct Setback {
    pub(super) error: HubError,
    pub(super) again: Again,
    /// Whether so much arrived before that this is not one more failure in a row.
    pub(super) moved: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// The answer will be the same.
    Never,
    /// Something broke that may work next time. The hub may have said when.
    Broken(Option<Duration>),
    /// The hub limits requests. It may have said for how long.
    Limited(Option<Duration>),
}

impl Setback {
    pub(super) fn refused(reason: impl Into<String>) -> Self {
        Self { error: HubError::Refused(reason.into()), again: Again::Never, moved: false }
    }

    pub(super) fn unreachable(reason: impl Into<String>) -> Self {
        Self { error: HubError::Unreachable(reason.into()), again: Again::Never, moved: false }
    }

    pub(super) fn local(error: FetchError) -> Self {
        Self { error: HubError::Local(error), again: Again::Never, moved: false }
    }

    pub(super) fn broken(reason: impl Into<String>) -> Self {
        Self { again: Again::Broken(None), ..Self::unreachable(reason) }
    }
}

/// What an answer with another status than success means; `body` is its beginning.
pub(super) fn refusal(
    asked: Asked<'_>,
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    has_token: bool,
) -> Setback {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let code = header("x-error-code");
    let is_hub = code.is_some() || body.starts_with(b"{");
    let said = said(header("x-error-message"), body);
    let token = if has_token { "set HF_TOKEN to a token that may read it" } else { "set HF_TOKEN" };
    let consent = "its owners ask for consent first: give it on the model's page";
    match (status, code, asked) {
        (429, ..) => {
            let again = Again::Limited(patience(headers));
            Setback { again, ..Setback::unreachable(format!("{asked}: {LIMITED}")) }
        }
        (408 | 500..=599, ..) => {
            let again = Again::Broken(patience(headers));
            let reason = format!("{asked}: the hub has a fault of its own (HTTP {status}{said})");
            Setback { again, ..Setback::unreachable(reason) }
        }
        (407, ..) => Setback::unreachable(
            "the proxy wants a name and a password (HTTP 407): put them into HTTPS_PROXY",
        ),
        (_, Some("RevisionNotFound"), Asked::List(revision)) => {
            Setback::refused(format!("the hub has no revision '{revision}' of it"))
        }
        (_, Some("GatedRepo"), Asked::List(_)) => {
            Setback::refused(format!("{consent}, and {token}"))
        }
        (_, Some("GatedRepo"), Asked::File(name)) => {
            Setback::refused(format!("{name}: {consent}, and {token}"))
        }
        (404 | 410, _, Asked::List(_)) if is_hub => {
            Setback::refused("the hub has no such model: check the name")
        }
        (401 | 403, _, Asked::List(_)) if is_hub => Setback::refused(format!(
            "the hub has no such model, or it is private: check the name, or {token} \
             (HTTP {status}{said})"
        )),
        (404 | 410, _, Asked::File(name)) if is_hub => Setback::refused(format!(
            "{name}: the hub lists this file but does not have it (HTTP {status}): its owners \
             may be changing the model; try again later, or name a revision"
        )),
        (401 | 403, _, Asked::File(name)) if is_hub => Setback::refused(format!(
            "{name}: the hub lists this file but does not give it (HTTP {status}{said}): it is \
             for those whom the owners let in: give consent on the model's page, and {token}"
        )),
        (400..=499, ..) if is_hub => {
            Setback::refused(format!("{asked}: the hub refuses it (HTTP {status}{said})"))
        }
        _ => Setback::unreachable(format!(
            "{asked}: HTTP status {status} from something that is not the hub, perhaps a proxy"
        )),
    }
}

/// Of a status that asks for patience.
pub(super) const LIMITED: &str = "the hub limits requests (HTTP 429)";

/// The hub's own words, if it gave any.
fn said(header: Option<&str>, body: &[u8]) -> String {
    let answer: Option<Value> = serde_json::from_slice(body).ok();
    let error = answer.as_ref().and_then(|answer| answer.get("error")).and_then(Value::as_str);
    header.or(error).map(|words| format!(": {}", shortened(words))).unwrap_or_default()
}

/// Somebody else's words on one line, and not too many.
pub(super) fn shortened(words: &str) -> String {
    let printable = words.chars().map(|letter| if letter.is_control() { ' ' } else { letter });
    let mut short: String = printable.take(WORDS_LIMIT).collect();
    if words.chars().nth(WORDS_LIMIT).is_some() {
        short.push('…');
    }
    short.trim().to_owned()
}

/// How long an answer asks to wait: `Retry-After` in seconds or as a date, or the rest of the window
/// of the hub's `RateLimit`.
fn patience(headers: &HeaderMap) -> Option<Duration> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let window = || {
        let mut parts = header("ratelimit")?.split(';');
        parts.find_map(|part| part.trim().strip_prefix("t=")?.parse().ok())
    };
    let Some(after) = header("retry-after").map(str::trim) else {
        return window().map(Duration::from_secs);
    };
    if let Some(seconds) = after.parse::<f64>().ok().filter(|seconds| !seconds.is_nan()) {
        return Duration::try_from_secs_f64(seconds.min(YEAR.as_secs_f64())).ok();
    }
    let date = httpdate::parse_http_date(after).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// What it means that `host` gave no answer. Whether it may pass is only known `after_others`.
pub(super) fn no_answer(
    asked: Asked<'_>,
    host: &str,
    proxy: Option<&str>,
    error: &Error,
    after_others: bool,
) -> Setback {
    let through = proxy.map(|proxy| format!(", through the proxy {proxy}")).unwrap_or_default();
    let (words, may_pass) = match error {
        Error::HostNotFound => (unknown(host, &through), true),
        // The system's resolver has no error kind of its own.
        Error::Io(io) if io.to_string().contains("failed to lookup address") => {
            (unknown(host, &through), true)
        }
        Error::Io(io) if io.kind() == ErrorKind::ConnectionRefused => {
            (format!("{host} refuses connections{through}: does anything listen there?"), true)
        }
        Error::Timeout(Timeout::Resolve) => {
            (format!("looking up the name {host} took too long (DNS){through}"), true)
        }
        Error::Timeout(Timeout::Connect) => {
            (format!("no connection to {host} came about in time{through}"), true)
        }
        Error::Timeout(Timeout::PerRead | Timeout::RecvBody) => {
            (format!("{asked}: the download stood still: {host} sends no more"), true)
        }
        Error::Timeout(_) => (format!("{asked}: {host} did not answer in time{through}"), true),
        Error::Rustls(_) | Error::Tls(_) | Error::TlsRequired | Error::Pem(_) => {
            (untrusted(host, &through, error), false)
        }
        Error::Io(io) if io.kind() == ErrorKind::InvalidData => {
            (untrusted(host, &through, error), false)
        }
        Error::Io(io) => {
            let io = shortened(&io.to_string());
            (format!("{asked}: the connection to {host} failed or broke off{through}: {io}"), true)
        }
        Error::ConnectProxyFailed(words) => (
            format!("the proxy refused to connect to {host}{through}: {}", shortened(words)),
            false,
        ),
        Error::InvalidProxyUrl => {
            ("HTTPS_PROXY is no address: expected http://host:port".to_owned(), false)
        }
        Error::BadUri(_) | Error::Http(_) => {
            (format!("'{}' is no address: check HF_ENDPOINT", shortened(host)), false)
        }
        error => {
            let error = shortened(&error.to_string());
            (format!("{asked}: what {host} sends{through} is not what a hub would: {error}"), true)
        }
    };
    if may_pass && after_others { Setback::broken(words) } else { Setback::unreachable(words) }
}

fn unknown(host: &str, through: &str) -> String {
    format!("the name {host} is not known (DNS){through}: is this machine online?")
}

fn untrusted(host: &str, through: &str, error: &Error) -> String {
    format!(
        "{host} can't be trusted (TLS){through}: {}: does a proxy open connections here? vecmill \
         knows the public certificate authorities only",
        shortened(&error.to_string())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_asked_for_in_many_forms() {
        let asked = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            patience(&headers).map(|wait| wait.as_secs())
        };
        for (value, expected) in [
            ("120", Some(120)),
            (" 1.5", Some(1)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("1e300", Some(YEAR.as_secs())),
            ("inf", Some(YEAR.as_secs())),
            ("-1", None),
            ("NaN", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(asked("retry-after", value), expected, "{value}");
        }
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!(asked("retry-after", &later).is_some_and(|wait| (50..=100).contains(&wait)));
        let window = "\"resolvers\";r=0;t=55";
        assert_eq!(asked("ratelimit", window), Some(55));
        assert_eq!(asked("ratelimit", "t=x"), None);
        assert_eq!(patience(&HeaderMap::new()), None);
    }

    #[test]
    fn words_of_others_are_short_and_on_one_line() {
        let words = shortened(&"a\n\u{1b}[31m".repeat(200));
        assert!(words.chars().count() <= WORDS_LIMIT + 1 && !words.contains(['\n', '\u{1b}']));
    }
}
