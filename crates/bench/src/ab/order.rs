//! In which order the arms take their turns.

/// A pass to come: one arm, with the requests of one repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) arm: usize,
    pub(super) repeat: usize,
}

/// A B B A A B …: every arm once per repeat, every second time backwards, so that what drifts evenly
/// adds the same to all.
pub(super) fn turns(arms: usize, repeats: usize) -> Vec<Turn> {
    let turn = |repeat: usize, place: usize| {
        let arm = if repeat.is_multiple_of(2) { place } else { arms - 1 - place };
        Turn { arm, repeat }
    };
    (0..repeats).flat_map(|repeat| (0..arms).map(move |place| turn(repeat, place))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_alternate_and_repeats_pair_them() {
        let arms = |arms, repeats| -> String {
            turns(arms, repeats).iter().map(|turn| ["A", "B", "C"][turn.arm]).collect()
        };
        assert_eq!(arms(2, 5), "ABBAABBAAB");
        assert_eq!(arms(3, 2), "ABCCBA");
        for pair in turns(2, 5).chunks(2) {
            assert_eq!(pair[0].repeat, pair[1].repeat);
            assert_ne!(pair[0].arm, pair[1].arm);
        }
    }

    #[test]
    fn an_even_drift_is_the_same_for_all_arms() {
        for arms in 2..4 {
            let mut sums = vec![0; arms];
            for (place, turn) in turns(arms, 6).into_iter().enumerate() {
                sums[turn.arm] += place;
            }
            assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
        }
    }
}
