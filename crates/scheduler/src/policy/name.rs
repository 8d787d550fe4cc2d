//! The policies by their names.

use std::fmt;
use std::str::FromStr;

use super::{EarliestFinish, LeastLoaded, Policy, RoundRobin, Weighted};

/// The name of a policy, as settings and metrics have it.
///
/// ```
/// use vecmill_scheduler::policy::PolicyName;
///
/// let name: PolicyName = "least-loaded".parse()?;
/// assert_eq!(name, PolicyName::LeastLoaded);
/// assert_eq!(name.to_string(), "least-loaded");
/// assert!("fastest".parse::<PolicyName>().unwrap_err().to_string().contains("earliest-finish"));
/// # Ok::<(), vecmill_scheduler::policy::UnknownPolicy>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum PolicyName {
    /// [`EarliestFinish`].
    #[default]
    EarliestFinish,
    /// [`Weighted`].
    Weighted,
    /// [`LeastLoaded`].
    LeastLoaded,
    /// [`RoundRobin`].
    RoundRobin,
}

impl PolicyName {
    /// All of them, the default first.
    pub const ALL: [Self; 4] =
        [Self::EarliestFinish, Self::Weighted, Self::LeastLoaded, Self::RoundRobin];

    /// The name itself.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EarliestFinish => "earliest-finish",
            Self::Weighted => "weighted",
            Self::LeastLoaded => "least-loaded",
            Self::RoundRobin => "round-robin",
        }
    }

    /// The policy of this name, which has seen nothing yet.
    #[must_use]
    pub fn policy(self) -> Box<dyn Policy> {
        match self {
            Self::EarliestFinish => Box::new(EarliestFinish::default()),
            Self::Weighted => Box::new(Weighted::default()),
            Self::LeastLoaded => Box::new(LeastLoaded),
            Self::RoundRobin => Box::new(RoundRobin::default()),
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for PolicyName {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        let found = Self::ALL.into_iter().find(|known| known.as_str() == name);
        found.ok_or_else(|| UnknownPolicy(name.to_owned()))
    }
}

/// No policy has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no policy `{0}`, only {all}", all = PolicyName::ALL.map(PolicyName::as_str).join(", "))]
pub struct UnknownPolicy(pub String);

/// Which of so many policies is on turn when they are compared: A B B A A B …, every second time
/// backwards, so that what drifts evenly adds the same to all.
#[must_use]
pub fn on_turn(turn: usize, policies: usize) -> usize {
    let policies = policies.max(1);
    let place = turn % policies;
    if (turn / policies).is_multiple_of(2) { place } else { policies - 1 - place }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_policies_of_that_name() {
        for name in PolicyName::ALL {
            assert_eq!(name.to_string().parse(), Ok(name));
            assert_eq!(name.policy().name(), name);
        }
        let error = "random".parse::<PolicyName>().unwrap_err().to_string();
        assert!(error.contains("`random`") && error.contains("earliest-finish"), "{error}");
    }

    #[test]
    fn policies_take_turns_forth_and_back_so_that_an_even_drift_is_the_same_for_all() {
        let turns = |policies| (0..4 * policies).map(move |turn| on_turn(turn, policies));
        assert_eq!(turns(2).collect::<Vec<_>>(), [0, 1, 1, 0, 0, 1, 1, 0]);
        assert_eq!(turns(3).collect::<Vec<_>>(), [0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0]);
        for policies in 1..5 {
            let mut sums = vec![0; policies];
            turns(policies).enumerate().for_each(|(place, policy)| sums[policy] += place);
            assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
        }
    }
}
