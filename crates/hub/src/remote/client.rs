//! Requests to the hub: redirects, the token, limits on time, and patience.
//!
//! Redirects are followed here, because the hub says what a file's hash is where it redirects, and
//! because the token is for the hub alone. What may pass is asked for again, as often and as long as
//! [`Patience`] says.

use std::cell::Cell;
use std::thread;
use std::time::Duration;

use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RANGE};
use ureq::http::{HeaderMap, Uri};
use ureq::{Agent, Body, Proxy};

use super::answer::{self, Again, Asked, LIMITED, Setback};
use super::{Hub, HubError, Token};
use crate::{Progress, Stage};

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const REDIRECTS: usize = 10;
/// The most of a list that is read, and of a refusal.
const LIST_LIMIT: u64 = 8 << 20;
const REFUSAL_LIMIT: u64 = 8 << 10;

/// How often and how long to ask again.
#[derive(Debug, Clone)]
pub(crate) struct Patience {
    /// The first wait where the hub names none; each further one is twice as long.
    pub(crate) first: Duration,
    /// The longest that one fetch waits in all.
    pub(crate) total: Duration,
    /// How often in a row one question is asked again where the hub limits requests.
    pub(crate) limited: u32,
    /// How often in a row after something broke.
    pub(crate) broken: u32,
}

impl Default for Patience {
    /// The hub counts requests in windows of five minutes.
    fn default() -> Self {
        let total = Duration::from_secs(600);
        Self { first: Duration::from_secs(1), total, limited: 6, broken: 3 }
    }
}

/// Asks the hub for what one model consists of.
pub(super) struct Client<'a> {
    hub: &'a Hub,
    agent: Agent,
    pub(super) progress: &'a Progress,
    waited: Cell<Duration>,
    /// Whether the hub has answered anything yet.
    reached: Cell<bool>,
}

/// An answer, and what the hub said on the way to it.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    /// The headers of the hub's own answers, where others gave the last one.
    pub(super) of_hub: HeaderMap,
    /// Who gave the last answer.
    pub(super) host: String,
}

impl<'a> Client<'a> {
    pub(super) fn new(hub: &'a Hub, progress: &'a Progress) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("vecmill/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity") // sizes and ranges are those of the file
            .timeout_resolve(Some(RESOLVE_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT.min(hub.stall)))
            .timeout_per_read(Some(hub.stall))
            .build()
            .new_agent();
        let (waited, reached) = (Cell::default(), Cell::new(false));
        Self { hub, agent, progress, waited, reached }
    }

    pub(super) fn stall(&self) -> Duration {
        self.hub.stall
    }

    /// Does `ask` until it succeeds or will not.
    pub(super) fn patiently<T>(
        &self,
        mut ask: impl FnMut() -> Result<T, Setback>,
    ) -> Result<T, HubError> {
        let patience = &self.hub.patience;
        let mut failures = 0;
        loop {
            let Setback { error, again, moved } = match ask() {
                Ok(answer) => return Ok(answer),
                Err(setback) => setback,
            };
            failures = if moved { 1 } else { failures + 1 };
            let (wait, tries) = match again {
                Again::Never => return Err(self.hub.clean(error)),
                Again::Broken(wait) => (wait, patience.broken),
                Again::Limited(wait) => (wait, patience.limited),
            };
            let own = patience.first.saturating_mul(1 << (failures - 1).min(16));
            // Told to wait for no time at all, it waits a little nevertheless.
            let wait = wait.map_or(own, |told| told.max(patience.first));
            let left = patience.total.saturating_sub(self.waited.get());
            if failures > tries || wait > left {
                return Err(self.given_up(error, again, wait, failures));
            }
            let reason = self.hub.redacted(&error);
            tracing::debug!(reason, ?wait, "asking the hub again");
            (self.progress)(Stage::Waiting { reason, wait });
            pause(wait);
            self.waited.set(self.waited.get() + wait);
        }
    }

    /// The error of what was asked for in vain.
    fn given_up(&self, error: HubError, again: Again, wait: Duration, asked: u32) -> HubError {
        let words = self.hub.redacted(&error);
        if !matches!(again, Again::Limited(_)) {
            return match error {
                HubError::Unreachable(_) if asked > 1 => {
                    HubError::Unreachable(format!("{words}; asked {asked} times"))
                }
                error => self.hub.clean(error),
            };
        }
        let waited = self.waited.get().as_secs();
        let tried = format!("asked {asked} times, waited {waited} s in all");
        let left = self.hub.patience.total.saturating_sub(self.waited.get());
        let longer = if wait > left {
            format!(", and was then told to wait {} s, which is too long", wait.as_secs())
        } else {
            String::new()
        };
        let advice = match &self.hub.token {
            None => "a token raises the limit: set HF_TOKEN, or try again later",
            Some(_) => {
                "the limit of this HF_TOKEN is used up (a token of an account with a higher \
                        limit raises it): try again later"
            }
        };
        let words = if words.contains(LIMITED) { words } else { format!("{LIMITED}: {words}") };
        HubError::Unreachable(format!("{words}; {tried}{longer}; {advice}"))
    }

    /// A question with a short answer in JSON.
    pub(super) fn json(
        &self,
        asked: Asked<'_>,
        address: &str,
    ) -> Result<serde_json::Value, Setback> {
        let mut reply = self.get(asked, address, None, Some(ANSWER_TIMEOUT))?;
        if !(200..300).contains(&reply.status) {
            return Err(self.refusal(asked, reply));
        }
        let body = reply.body.with_config().limit(LIST_LIMIT).read_to_vec();
        let body = body.map_err(|error| self.no_answer(asked, &reply.host, &error))?;
        serde_json::from_slice(&body).map_err(|_| not_the_hub(asked, &reply.host, &reply.headers))
    }

    /// What a reply with another status than success means.
    pub(super) fn refusal(&self, asked: Asked<'_>, mut reply: Reply) -> Setback {
        let body = reply.body.with_config().limit(REFUSAL_LIMIT).read_to_vec();
        let (body, headers) = (body.unwrap_or_default(), &reply.headers);
        answer::refusal(asked, reply.status, headers, &body, self.hub.token.is_some())
    }

    /// A file, from a byte on.
    pub(super) fn file(&self, name: &str, address: &str, from: u64) -> Result<Reply, Setback> {
        let asked = Asked::File(name);
        let reply = self.get(asked, address, (from > 0).then_some(from), None)?;
        if !(200..300).contains(&reply.status) && reply.status != 416 {
            return Err(self.refusal(asked, reply));
        }
        if is_page(&reply.headers) {
            return Err(not_the_hub(asked, &reply.host, &reply.headers));
        }
        Ok(reply)
    }

    fn get(
        &self,
        asked: Asked<'_>,
        address: &str,
        from: Option<u64>,
        within: Option<Duration>,
    ) -> Result<Reply, Setback> {
        let mut address = address.to_owned();
        let mut of_hub = HeaderMap::new();
        for _ in 0..=REDIRECTS {
            let to_hub = same_origin(&address, &self.hub.endpoint);
            let mut request = self.agent.get(&address).config().timeout_global(within).build();
            if let Some(Token(token)) = self.hub.token.as_ref().filter(|_| to_hub) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            if let Some(from) = from {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let host = host(&address);
            let response = request.call().map_err(|error| self.no_answer(asked, &host, &error))?;
            self.reached.set(true);
            let (head, body) = response.into_parts();
            if to_hub {
                of_hub.extend(head.headers.clone());
            }
            let location = head.headers.get(LOCATION).and_then(|location| location.to_str().ok());
            let Some(location) = location.filter(|_| head.status.is_redirection()) else {
                let (status, headers) = (head.status.as_u16(), head.headers);
                return Ok(Reply { status, headers, body, of_hub, host });
            };
            let next = resolved(&address, location);
            if address.starts_with("https:") && !next.starts_with("https:") {
                let (from, to) = (host, self::host(&next));
                return Err(Setback::unreachable(format!(
                    "{asked}: {from} leads to an unencrypted address at {to}: a login page of this \
                     network may stand between"
                )));
            }
            address = next;
        }
        Err(Setback::unreachable(format!(
            "{asked}: redirected more than {REDIRECTS} times, at last by {}: a proxy or a login \
             page may stand between",
            host(&address)
        )))
    }

    /// What it means that `error` ended an exchange with `host`.
    pub(super) fn no_answer(&self, asked: Asked<'_>, host: &str, error: &ureq::Error) -> Setback {
        let proxy = Proxy::try_from_env()
            .filter(|proxy| {
                let hub = self.hub.endpoint.parse::<Uri>();
                !hub.is_ok_and(|hub| proxy.is_no_proxy(&hub))
            })
            .map(|proxy| format!("{}:{}", proxy.host(), proxy.port()));
        answer::no_answer(asked, host, proxy.as_deref(), error, self.reached.get())
    }
}

#[expect(clippy::disallowed_methods, reason = "the other side named the time to wait")]
fn pause(wait: Duration) {
    thread::sleep(wait);
}

/// What it means that a page for people came where a file was asked for.
fn not_the_hub(asked: Asked<'_>, host: &str, headers: &HeaderMap) -> Setback {
    let what = if is_page(headers) { "a web page" } else { "something else" };
    Setback::unreachable(format!(
        "{asked}: {host} answered with {what}, so it is not the hub: a login page of this network \
         or a proxy may stand between"
    ))
}

fn is_page(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.trim_start().to_ascii_lowercase().starts_with("text/html")
}

fn same_origin(address: &str, other: &str) -> bool {
    let origin = |text: &str| {
        let uri = text.parse::<Uri>().ok()?;
        Some((uri.scheme()?.clone(), uri.authority()?.clone()))
    };
    origin(address).is_some_and(|found| Some(found) == origin(other))
}

fn host(address: &str) -> String {
    let uri = address.parse::<Uri>().ok();
    let host = uri.as_ref().and_then(Uri::host).map(str::to_owned);
    answer::shortened(&host.unwrap_or_else(|| address.to_owned()))
}

/// Where a `Location` leads to.
fn resolved(base: &str, location: &str) -> String {
    let (scheme, rest) = base.split_once("://").unwrap_or(("https", base));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if location.contains("://") {
        location.to_owned()
    } else if let Some(other) = location.strip_prefix("//") {
        format!("{scheme}://{other}")
    } else if let Some(path) = location.strip_prefix('/') {
        format!("{scheme}://{authority}/{path}")
    } else {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let slash = if folder.is_empty() { "" } else { "/" };
        format!("{scheme}://{authority}/{folder}{slash}{location}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_against_where_they_come_from() {
        let base = "https://hub.example:81/a/b/c?x=1/2";
        for (location, expected) in [
            ("http://other/d", "http://other/d"),
            ("//other/d?e", "https://other/d?e"),
            ("/d", "https://hub.example:81/d"),
            ("d", "https://hub.example:81/a/b/d"),
        ] {
            assert_eq!(resolved(base, location), expected);
        }
        assert!(same_origin(base, "https://hub.example:81"));
        for other in ["http://hub.example:81", "https://hub.example", "https://hub.example:81@b"] {
            assert!(!same_origin(other, base), "{other}");
        }
    }
}
