//! In which order the arms take their turns.

use vecmill_scheduler::policy::on_turn;

/// A pass to come: one arm, with the requests of one repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) arm: usize,
    pub(super) repeat: usize,
}

/// Every arm once per repeat.
pub(super) fn turns(arms: usize, repeats: usize) -> impl Iterator<Item = Turn> {
    (0..arms * repeats).map(move |turn| Turn { arm: on_turn(turn, arms), repeat: turn / arms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_alternate_and_repeats_pair_them() {
        let turns: Vec<Turn> = turns(2, 5).collect();
        let arms: String = turns.iter().map(|turn| ["A", "B"][turn.arm]).collect();
        assert_eq!(arms, "ABBAABBAAB");
        for pair in turns.chunks(2) {
            assert_eq!(pair[0].repeat, pair[1].repeat);
            assert_ne!(pair[0].arm, pair[1].arm);
        }
    }
}
