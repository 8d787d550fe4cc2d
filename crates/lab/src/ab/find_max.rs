//! The highest load at which a policy keeps a promise of latency.

use std::time::Duration;

use serde::Serialize;

use super::error::AbError;
use super::figures::Figures;

/// The highest load that is tried, as a part of the capacity.
const HIGHEST: f64 = 1.28;

/// Loads that are tried: each halves what is uncertain, down to 2 % of the capacity.
pub(super) const LOADS: usize = 6;

/// What one search found.
#[derive(Debug, Clone, Serialize)]
pub(super) struct MaxLoad {
    pub(super) policy: String,
    pub(super) repeat: usize,
    /// As a part of the capacity.
    pub(super) load: f64,
}

/// Whether the 99th percentile of a pass keeps the promise and everybody was answered.
pub(super) fn holds(figures: &Figures, slo: Duration) -> bool {
    figures.requests > 0 && figures.p99 <= slo.as_secs_f64() && figures.lost() == 0
}

/// Bisects: the highest load at which `holds` said yes, 0 if it never did.
pub(super) fn search(mut holds: impl FnMut(f64) -> Result<bool, AbError>) -> Result<f64, AbError> {
    let (mut low, mut high) = (0.0, HIGHEST);
    for _ in 0..LOADS {
        let load = (low + high) / 2.0;
        if holds(load)? { low = load } else { high = load }
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_found_holds_and_a_little_more_does_not() {
        for limit in [0.03, 0.5, 0.87, 1.1] {
            let mut tried = 0;
            let found = search(|load| {
                tried += 1;
                Ok(load <= limit)
            });
            let found = found.unwrap();
            assert!(found <= limit && limit < found + 0.021, "{limit}: {found}");
            assert_eq!(tried, LOADS);
        }
        assert_eq!(search(|_| Ok(false)).unwrap(), 0.0);
        assert!(search(|_| Err(AbError::TooFewPolicies { found: 1 })).is_err());
    }

    #[test]
    fn a_request_that_got_no_answer_breaks_the_promise() {
        let slo = Duration::from_millis(100);
        let good = Figures { requests: 500, p99: 0.09, ..Figures::default() };
        assert!(holds(&good, slo));
        assert!(!holds(&Figures { refused: 1, ..good.clone() }, slo));
        assert!(!holds(&Figures { p99: 0.11, ..good.clone() }, slo));
        assert!(!holds(&Figures { requests: 0, ..good }, slo));
    }
}
