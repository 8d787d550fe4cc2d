//! Work goes to the device that will finish it first: the default.
//!
//! The backlog stays in one place until a device can begin. Then the devices' speeds say when all of
//! them together would be done with it (the level), and how much of it is this device's part:
//!
//! - None: another will finish it sooner, so this one waits.
//! - The front, if this device would finish that first of all.
//! - Otherwise what lies so far behind that those who would finish the front sooner would not have
//!   come to it earlier. A slow device so never holds up the oldest work, and never gets more than it can do in time.
//!
//! The parts make the devices finish together, which is what bulk work needs; and while little waits,
//! each input is done as early as it can be. Nothing waits for good: the device that would finish the
//! front first takes it, and one that is late counts as later the longer it takes.

use super::level::level_near;
use super::{Policy, PolicyName, Take, View};
use crate::job::whole;

/// Batches that each of the others runs, on average, before an idle device's speed is measured again,
/// with a small one: one that was wrongly taken for slow would otherwise get no work for ever. So few
/// that the 99th percentile doesn't notice, however many devices there are.
const MEASURE_AFTER: u64 = 500;

/// A second batch is taken so long before the first is done, in parts of what a full batch takes and
/// at least in seconds, unless a full one waits: the later, the fuller it is.
const AHEAD: f64 = 0.05;
const AHEAD_SECONDS: f64 = 0.001;

/// Gives work to whoever finishes it first.
#[derive(Debug, Default)]
pub struct EarliestFinish {
    /// When all devices together would be done with the backlog, in seconds.
    level: f64,
    /// Who would finish the front of the backlog first of all. Of several that would finish it at the
    /// same time, the first counts.
    first: Option<usize>,
    /// The tokens of that front.
    front: f64,
    /// How many serve.
    serving: usize,
}

impl Policy for EarliestFinish {
    fn name(&self) -> PolicyName {
        PolicyName::EarliestFinish
    }

    fn anew(&self) -> Box<dyn Policy> {
        Box::new(Self::default())
    }

    fn update(&mut self, backlog: usize, devices: &[View]) {
        let serving = || devices.iter().enumerate().filter(|(_, view)| view.serves);
        let (mut count, mut front, mut begin) = (0, backlog, f64::INFINITY);
        for (_, view) in serving() {
            count += 1;
            front = front.min(view.limit);
            begin = begin.min(view.begin());
        }
        self.front = front as f64;
        let finish = serving().map(|(index, view)| (index, view.finish(self.front)));
        let first = finish.min_by(|(_, a), (_, b)| a.total_cmp(b));
        self.first = first.map(|(first, _)| first);
        self.serving = count;
        let guess = if self.level.is_finite() { self.level } else { 0.0 };
        self.level = level_near(devices, backlog as f64, (begin, guess));
    }

    fn take(&mut self, device: usize, devices: &[View]) -> Take {
        let own = &devices[device];
        let others = self.serving.saturating_sub(1) as u64;
        if others > 0 && own.running == 0 && own.unmeasured > MEASURE_AFTER * others {
            return Take::Batch { skip: 0, tokens: 1 };
        }
        let part = own.tokens_by(self.level).min(own.limit as f64);
        let front = self.first == Some(device);
        if !front && part < 1.0 {
            return Take::Wait { seconds: f64::INFINITY };
        }
        let ahead = AHEAD_SECONDS.max(AHEAD * own.slope * own.limit as f64);
        if own.running > 0 && own.due_in > ahead && part < own.limit as f64 {
            return Take::Wait { seconds: own.due_in - ahead };
        }
        let skip = if front {
            0.0
        } else {
            left_to_others(device, (self.front, own.finish(part)), devices)
        };
        Take::Batch { skip: whole(skip.round()), tokens: whole(part.round()).max(1) }
    }
}

/// Tokens that those who would finish the front sooner will have done by then. Those who come to it
/// later don't count: with many devices nearly all is done by then by somebody, and each would leave
/// the front to another.
fn left_to_others(device: usize, (front, done): (f64, f64), devices: &[View]) -> f64 {
    let order = |(index, view): (usize, &View)| (view.finish(front), index);
    let own = order((device, &devices[device]));
    let sooner = devices.iter().enumerate().filter(|&(index, view)| order((index, view)) < own);
    sooner.filter(|(_, view)| view.serves).map(|(_, view)| view.tokens_by(done)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::tests::IDLE;
    use super::*;

    const SLOW: View = View { fixed: 0.05, per_token: 5e-5, slope: 1e-4, ..IDLE };

    fn take(device: usize, backlog: usize, devices: &[View]) -> Take {
        let mut policy = EarliestFinish::default();
        policy.update(backlog, devices);
        policy.take(device, devices)
    }

    fn waits(take: Take) -> bool {
        matches!(take, Take::Wait { .. })
    }

    #[test]
    fn a_slow_device_leaves_little_work_to_a_fast_one_even_if_that_is_busy() {
        let busy = View { free_in: 0.01, running: 1, ..IDLE };
        assert!(waits(take(1, 500, &[busy, SLOW])));
        assert_eq!(take(0, 500, &[IDLE, SLOW]), Take::Batch { skip: 0, tokens: 500 });
    }

    #[test]
    fn of_much_work_a_slow_device_takes_what_the_fast_one_comes_to_late() {
        let busy = View { free_in: 0.001, running: 1, ..IDLE };
        let Take::Batch { skip, tokens } = take(1, 100_000, &[busy, SLOW]) else {
            panic!("there is work for both");
        };
        let done = SLOW.finish(tokens as f64);
        assert!((busy.tokens_by(done) - skip as f64).abs() < 1.0);
        assert!(skip + tokens <= 100_000 && tokens == 1000);
    }

    #[test]
    fn the_last_of_the_work_is_shared_so_that_all_finish_together() {
        let devices = [IDLE, IDLE];
        assert_eq!(take(0, 1000, &devices), Take::Batch { skip: 0, tokens: 500 });
        assert_eq!(take(1, 1000, &devices), Take::Batch { skip: 500, tokens: 500 });
    }

    #[test]
    fn when_those_that_it_waits_for_are_gone_or_late_a_slow_device_takes_the_work() {
        let gone = View { serves: false, ..IDLE };
        assert!(!waits(take(1, 500, &[gone, SLOW])));
        let late = View { free_in: 1.0, ..IDLE };
        assert!(!waits(take(1, 500, &[late, SLOW])));
    }

    #[test]
    fn a_second_batch_is_taken_late_unless_it_is_full() {
        let busy = View { free_in: 0.1, due_in: 0.1, running: 1, ..IDLE };
        let Take::Wait { seconds } = take(0, 500, &[busy]) else { panic!("it is early") };
        assert!(seconds < 0.1 && seconds > 0.09);
        assert!(!waits(take(0, 5000, &[busy])));
        assert!(!waits(take(0, 500, &[View { free_in: 0.001, due_in: 0.001, ..busy }])));
        assert!(!waits(take(0, 500, &[View { due_in: -0.1, ..busy }])), "the first one is late");
    }

    #[test]
    fn a_speed_that_is_not_known_for_sure_is_measured_with_a_small_batch() {
        let unknown = View { unmeasured: u64::MAX, per_token: 1.0, slope: 1.0, ..SLOW };
        assert_eq!(take(1, 500, &[IDLE, unknown]), Take::Batch { skip: 0, tokens: 1 });
        let busy = View { running: 1, ..unknown };
        assert!(waits(take(1, 500, &[IDLE, busy])), "one at a time");
    }
}
