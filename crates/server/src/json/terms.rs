//! On which terms a request waits, as two headers say: they are of neither contract's body.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use vecmill_engine::{Priority, Request};

use crate::failure::Failure;

/// `interactive` or `bulk`.
const PRIORITY: HeaderName = HeaderName::from_static("x-vecmill-priority");
/// Milliseconds that the answer may take.
const TIMEOUT: HeaderName = HeaderName::from_static("x-vecmill-timeout-ms");

/// A request's priority and how long its answer is of use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct WaitingTerms {
    /// Counts before what the body says.
    priority: Option<Priority>,
    timeout: Option<Duration>,
}

impl WaitingTerms {
    /// The request on these terms.
    pub(crate) fn apply(self, request: Request) -> Request {
        let priority = self.priority.unwrap_or(request.priority);
        Request { priority, timeout: self.timeout, ..request }
    }

    fn read(headers: &HeaderMap) -> Result<Self, Failure> {
        let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let wrong = |name: &HeaderName, expected: &str| Failure::Field {
            param: name.to_string(),
            problem: format!("is no such value: expected {expected}"),
        };
        let priority = match text(&PRIORITY) {
            None => None,
            Some("interactive") => Some(Priority::Interactive),
            Some("bulk") => Some(Priority::Bulk),
            Some(_) => return Err(wrong(&PRIORITY, "interactive or bulk")),
        };
        let timeout = text(&TIMEOUT).map(|text| match text.parse() {
            Ok(milliseconds @ 1..) => Ok(Duration::from_millis(milliseconds)),
            _ => Err(wrong(&TIMEOUT, "a number of milliseconds, of at least 1")),
        });
        Ok(Self { priority, timeout: timeout.transpose()? })
    }
}

impl<S: Sync> FromRequestParts<S> for WaitingTerms {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        Self::read(&parts.headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&HeaderName, &str)]) -> Result<WaitingTerms, String> {
        let headers = headers.iter().map(|(name, value)| ((*name).clone(), value.parse().unwrap()));
        WaitingTerms::read(&headers.collect()).map_err(|failure| failure.to_string())
    }

    #[test]
    fn headers_say_who_waits_and_how_long() {
        assert_eq!(read(&[]), Ok(WaitingTerms::default()));
        let terms = read(&[(&PRIORITY, "bulk"), (&TIMEOUT, "250")]).unwrap();
        let request = terms.apply(Request::new(["a"]));
        assert_eq!(request.priority, Priority::Bulk);
        assert_eq!(request.timeout, Some(Duration::from_millis(250)));
        for (name, value) in
            [(&PRIORITY, "high"), (&TIMEOUT, "0"), (&TIMEOUT, "1.5"), (&TIMEOUT, "-1")]
        {
            let complaint = read(&[(name, value)]).unwrap_err();
            assert!(complaint.contains(name.as_str()), "{complaint}");
        }
    }
}
