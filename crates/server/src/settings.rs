//! What can be set, with its defaults and limits.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::http::HeaderValue;

use crate::token_inputs::cl100k_base;
use crate::{ApiKey, ServeError, TokenInputs};

/// Timers take any time up to here; longer ones would overflow some clocks.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// How the server behaves. Every field has a working default:
///
/// ```
/// use vecmill_server::Settings;
///
/// let settings = Settings { auto_truncate: false, ..Settings::default() };
/// assert_eq!(settings.max_client_batch_size, 2048);
/// ```
#[derive(Debug, Clone)]
pub struct Settings {
    /// The most inputs in one request. Default 2048, the limit of OpenAI's contract (that of TEI's
    /// server is 32 unless set).
    pub max_client_batch_size: usize,
    /// The most requests for work at once; one more is told 429 immediately. Default 512.
    pub max_concurrent_requests: usize,
    /// The most open connections; more wait in the system's queue. Default 8192, or less where
    /// [`max_request_memory`](Self::max_request_memory) has room for fewer.
    pub max_connections: usize,
    /// The most bytes that connections, requests and their replies may hold together; a request
    /// that needs more than is left is told 429, one that needs more than there is 413. Up to
    /// half of it is for connections. Default 1 GiB. It is the caller's to see that the machine has it
    /// beside what devices may take.
    pub max_request_memory: usize,
    /// The most bytes in a request's body. Default 2,000,000.
    pub payload_limit: usize,
    /// Keys of which clients must send one. None, the default, asks for no key.
    pub api_keys: Vec<ApiKey>,
    /// Whether there are the operator's addresses under `/admin`, which show the devices' memory
    /// and have it given back. Default: no. Where there are keys, they are asked for one too.
    pub admin: bool,
    /// The name that replies give the model. Default: the model's id.
    pub served_model_name: Option<String>,
    /// Whether inputs that are too long are cut, unless a request says otherwise, or refused.
    /// Default: cut; the header `x-vecmill-truncated` tells how many were.
    pub auto_truncate: bool,
    /// What token ids in place of text are. Default: the model's own.
    pub token_inputs: TokenInputs,
    /// How long a client may take to send a body, and a second more for each 64 KiB of it that have
    /// come. Default 30 s.
    pub read_timeout: Duration,
    /// How long a connection may be quiet between requests or take to send a request's head.
    /// Default 75 s, longer than common proxies keep idle connections.
    pub idle_timeout: Duration,
    /// How long a client may take to accept the next part of a reply, and, with a second more for
    /// each 64 KiB, all of it. Default 30 s.
    pub write_timeout: Duration,
    /// How long the work for one request may take. Default 10 minutes, as long as OpenAI's clients
    /// wait.
    pub request_timeout: Duration,
    /// How long a stopping server waits for accepted requests to finish; those that have not are cut
    /// off. Default 30 s.
    pub shutdown_grace: Duration,
    /// Origins whose web pages may use the server from a browser, for example
    /// `https://app.example.com`, or `*` for all. Default: none.
    pub cors_allow_origin: Vec<String>,
    /// Lines of the log that were lost, counted by whoever writes it; `/metrics` shows it as
    /// `vecmill_log_lines_lost_total`.
    pub lost_log_lines: Arc<AtomicU64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_client_batch_size: 2048,
            max_concurrent_requests: 512,
            max_connections: 8192,
            max_request_memory: 1 << 30,
            payload_limit: 2_000_000,
            api_keys: Vec::new(),
            admin: false,
            served_model_name: None,
            auto_truncate: true,
            token_inputs: TokenInputs::Model,
            read_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(600),
            shutdown_grace: Duration::from_secs(30),
            cors_allow_origin: Vec::new(),
            lost_log_lines: Arc::default(),
        }
    }
}

impl Settings {
    /// Refuses values that could serve nobody.
    pub(crate) fn check(&self) -> Result<(), ServeError> {
        let counts = [
            ("max_client_batch_size", self.max_client_batch_size),
            ("max_concurrent_requests", self.max_concurrent_requests),
            ("max_connections", self.max_connections),
            ("max_request_memory", self.max_request_memory),
            ("payload_limit", self.payload_limit),
        ];
        if let Some((setting, _)) = counts.into_iter().find(|&(_, count)| count == 0) {
            return Err(wrong(setting, "must be at least 1"));
        }
        let times = [
            ("read_timeout", self.read_timeout),
            ("idle_timeout", self.idle_timeout),
            ("write_timeout", self.write_timeout),
            ("request_timeout", self.request_timeout),
        ];
        if self.shutdown_grace > LONGEST {
            return Err(wrong("shutdown_grace", "must be at most a day"));
        }
        let senseless = |time: Duration| time.is_zero() || time > LONGEST;
        if let Some((setting, _)) = times.into_iter().find(|&(_, time)| senseless(time)) {
            return Err(wrong(setting, "must be more than nothing and at most a day"));
        }
        if self.served_model_name.as_ref().is_some_and(|name| name.trim().is_empty()) {
            return Err(wrong("served_model_name", "must not be empty"));
        }
        if self.token_inputs == TokenInputs::Cl100kBase && cl100k_base().is_none() {
            return Err(wrong("token_inputs", "the vocabulary cl100k_base can't be read"));
        }
        self.cors_origins().map(drop)
    }

    /// The origins that may use the server from a browser.
    pub(crate) fn cors_origins(&self) -> Result<Origins, ServeError> {
        if self.cors_allow_origin.iter().any(|origin| origin == "*") {
            return Ok(Origins::Any);
        }
        let parse = |origin: &String| {
            HeaderValue::from_str(origin)
                .ok()
                .filter(|_| origin.contains("://") && !origin.ends_with('/'))
                .ok_or_else(|| {
                    let example = "use the form https://app.example.com, or *";
                    wrong("cors_allow_origin", &format!("'{origin}' is not an origin: {example}"))
                })
        };
        self.cors_allow_origin.iter().map(parse).collect::<Result<_, _>>().map(Origins::These)
    }
}

/// Origins as header values.
pub(crate) enum Origins {
    Any,
    These(Vec<HeaderValue>),
}

fn wrong(setting: &'static str, reason: &str) -> ServeError {
    ServeError::Setting { setting, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(settings: &Settings) -> String {
        settings.check().unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_accepted() {
        Settings::default().check().unwrap();
    }

    #[test]
    fn useless_values_are_named() {
        let settings = Settings { max_concurrent_requests: 0, ..Settings::default() };
        assert_eq!(complaint(&settings), "max_concurrent_requests: must be at least 1");
        let settings = Settings { read_timeout: Duration::ZERO, ..Settings::default() };
        assert!(complaint(&settings).starts_with("read_timeout: "));
        let settings = Settings { write_timeout: Duration::MAX, ..Settings::default() };
        assert!(complaint(&settings).starts_with("write_timeout: "));
        let settings = Settings { served_model_name: Some(" ".into()), ..Settings::default() };
        assert!(complaint(&settings).starts_with("served_model_name: "));
        for origin in ["example.com", "https://example.com/", "https://a\nb"] {
            let settings =
                Settings { cors_allow_origin: vec![origin.into()], ..Settings::default() };
            assert!(complaint(&settings).starts_with("cors_allow_origin: "), "{origin}");
        }
    }
}
