//! What a request asks for beside its inputs: by the fields of its body, whichever server's word for
//! it was used, and by two headers that say on which terms it waits.
//!
//! Contracts have several words for one thing (`dimensions`, `output_dimension`). Any of them is
//! taken on each route that makes vectors; of two that contradict each other the request is refused.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};

use vecmill_engine::{Info, Priority, Request, RequestError};

use super::numbers::Whole;
use super::object::{BOOLEAN, Object, agreed, wrong};
use super::prompts::prompt;
use super::truncation::truncation;
use crate::Settings;
use crate::failure::Failure;

const DIMENSIONS: &str = "a whole number of at least 1";

/// What is asked for beside the inputs.
pub(crate) fn request(
    object: &Object<'_>,
    info: &Info,
    settings: &Settings,
) -> Result<Request, Failure> {
    Ok(Request {
        truncation: truncation(object, info, settings)?,
        normalize: normalize(object)?,
        dimensions: dimensions(object, info)?,
        prompt: prompt(object, info)?,
        priority: priority(object)?,
        ..Request::default()
    })
}

fn normalize(object: &Object<'_>) -> Result<Option<bool>, Failure> {
    let flag = |name| Ok::<_, Failure>((name, object.field(name).optional(BOOLEAN)?));
    let norm = object.field("embd_normalize").optional::<Whole>("2, or -1")?;
    let norm = norm.map(|norm| match norm.0 {
        2 => Ok(true),
        -1 => Ok(false),
        _ => Err(wrong("embd_normalize", "must be 2, or -1 for vectors as they are")),
    });
    agreed([
        flag("normalize")?,
        flag("normalized")?,
        flag("use_activation")?,
        ("embd_normalize", norm.transpose()?),
    ])
}

fn dimensions(object: &Object<'_>, info: &Info) -> Result<Option<usize>, Failure> {
    let available = info.dimensions;
    let caps = object.contract.caps_dimensions;
    let count = |name| {
        let asked = object.field(name).optional::<Whole>(DIMENSIONS)?;
        let asked = asked.map(|Whole(asked)| match usize::try_from(asked) {
            Ok(asked) if (1..=available).contains(&asked) => Ok(asked),
            Ok(1..) if caps => Ok(available),
            Ok(asked) => {
                let error = RequestError::Dimensions { asked, available };
                Err(wrong(name, &format!("can't be had: {error}")))
            }
            Err(_) => Err(wrong(name, &format!("must be {DIMENSIONS}"))),
        });
        Ok::<_, Failure>((name, asked.transpose()?))
    };
    agreed([count("dimensions")?, count("output_dimension")?])
}

pub(crate) fn priority(object: &Object<'_>) -> Result<Priority, Failure> {
    let priority = object.field("priority").optional::<Whole>("a whole number")?;
    Ok(match priority {
        Some(Whole(1..)) => Priority::Bulk,
        _ => Priority::Interactive,
    })
}

/// `interactive` or `bulk`.
const PRIORITY: HeaderName = HeaderName::from_static("x-vecmill-priority");
/// Milliseconds that the answer may take.
const TIMEOUT: HeaderName = HeaderName::from_static("x-vecmill-timeout-ms");

/// A request's priority and how long its answer is of use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct WaitingTerms {
    /// Counts before what the body says.
    priority: Option<Priority>,
    pub(crate) timeout: Option<Duration>,
}

impl WaitingTerms {
    /// The request on these terms.
    pub(crate) fn apply(self, request: Request) -> Request {
        let priority = self.priority(request.priority);
        Request { priority, timeout: self.timeout, ..request }
    }

    /// The priority of a request whose body asks for `asked`.
    pub(crate) fn priority(self, asked: Priority) -> Priority {
        self.priority.unwrap_or(asked)
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
