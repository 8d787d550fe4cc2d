//! When devices that share some work are done with it, if each takes what it can do by then.

use super::View;

/// When devices that share so many tokens are done with them, if each takes what it can do by then;
/// infinite if none serves.
///
/// What is done by a time grows in straight pieces, so that Newton's method, kept between what is too
/// early and what is too late, ends after a few steps.
#[must_use]
pub fn level(devices: &[View], tokens: f64) -> f64 {
    let begin = devices.iter().filter(|view| view.serves).map(View::begin);
    level_near(devices, tokens, (begin.fold(f64::INFINITY, f64::min), 0.0))
}

/// The same, if the first of those that serve begins at `begin`; sooner found if it is near a guess.
pub(super) fn level_near(devices: &[View], tokens: f64, (begin, guess): (f64, f64)) -> f64 {
    let serving = || devices.iter().filter(|view| view.serves);
    let (mut early, mut late, mut time) = (begin, f64::INFINITY, begin.max(guess));
    for _ in 0..STEPS {
        let (mut done, mut rate) = (0.0, 0.0);
        for view in serving() {
            let (tokens, each) = view.pace(time);
            done += tokens;
            rate += each;
        }
        let lacking = tokens - done;
        if lacking.abs() < ENOUGH || rate == 0.0 {
            break;
        }
        if lacking > 0.0 {
            early = time;
        } else {
            late = time;
        }
        let next = time + lacking / rate;
        time = if next > early && next < late { next } else { f64::midpoint(early, late) };
    }
    time
}

/// Steps by which a level is come closer to, and tokens that make no difference.
const STEPS: usize = 40;
const ENOUGH: f64 = 0.1;

#[cfg(test)]
mod tests {
    use super::super::tests::IDLE;
    use super::*;

    #[test]
    fn the_level_is_where_all_that_take_part_are_done() {
        let busy = View { free_in: 10.0, ..IDLE };
        let out = View { serves: false, ..IDLE };
        let alone = level(&[IDLE, busy, out], 1000.0);
        assert_eq!(alone, level(&[IDLE], 1000.0), "who begins later takes no part");
        assert!((IDLE.tokens_by(alone) - 1000.0).abs() < 1.0);
        let slow = View { per_token: 4e-6, slope: 5e-6, ..IDLE };
        for tokens in [1.0, 300.0, 1e3, 2e3, 1e6] {
            let both = level(&[IDLE, slow], tokens);
            let done = IDLE.tokens_by(both) + slow.tokens_by(both);
            assert!((done - tokens).abs() < 1.0, "{done} instead of {tokens}");
        }
        assert_eq!(level(&[out], 1.0), f64::INFINITY);
    }
}
