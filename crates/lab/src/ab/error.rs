//! Why there is no comparison.

use vecmill_engine::{RequestError, StartError};
use vecmill_scheduler::policy::PolicyName;

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AbError {
    /// There is nothing to compare.
    #[error("--policies: expected two or more, each once, found {found}: name them like {example}", example = EXAMPLE)]
    TooFewPolicies {
        /// Those given, each counted once.
        found: usize,
    },
    /// No policy has this name.
    #[error("--policies: there is no policy '{name}': choose from {known}")]
    UnknownPolicy {
        /// The name given.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// A number can't be used.
    #[error("{flag}: expected {expected}, found {found}")]
    Number {
        /// The flag that gave it.
        flag: &'static str,
        /// What would be right.
        expected: &'static str,
        /// What it is.
        found: f64,
    },
    /// The part that is dropped is all there is.
    #[error(
        "the requests end after {seconds:.3} s, but the first {warm_up:.3} s of a pass are dropped: give a longer \
         trace, or a shorter --settle"
    )]
    NothingLeft {
        /// When the last request is sent.
        seconds: f64,
        /// What is dropped.
        warm_up: f64,
    },
    /// The engine could not be started.
    #[error("the model can't be started: {0}")]
    Start(#[from] StartError),
    /// The engine refused what was made for it.
    #[error("the engine refused a request of the experiment's own: {0}")]
    Request(#[from] RequestError),
    /// Nothing was answered, so nothing can be said.
    #[error("no request was answered in {what}: raise --seconds, or lower the load")]
    NoAnswers {
        /// What was run.
        what: String,
    },
    /// The devices did not come to rest.
    #[error(
        "the devices were still busy {seconds} s after a pass: raise --drain, or lower the load"
    )]
    Restless {
        /// How long was waited.
        seconds: u64,
    },
    /// The system refused threads.
    #[error("the system refused threads for the load generator: {0}")]
    System(#[from] std::io::Error),
}

/// Policies worth comparing.
const EXAMPLE: &str = "--policies round-robin,earliest-finish";

impl AbError {
    /// No policy has this name.
    pub(super) fn unknown_policy(name: String) -> Self {
        Self::UnknownPolicy { name, known: PolicyName::ALL.map(PolicyName::as_str).join(", ") }
    }

    /// Whether the command line is wrong.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::TooFewPolicies { .. } | Self::UnknownPolicy { .. } | Self::Number { .. }
        )
    }
}
