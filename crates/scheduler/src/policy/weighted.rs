//! In turn, but each device as often as its learned share says: smooth weighted round-robin, as
//! nginx has it, which spreads a device's turns evenly.

use super::{Policy, PolicyName, View};

/// The part of an even share that each device gets at least: work too seldom to be measured would
/// never correct a wrong share.
const LEAST: f64 = 0.02;

/// Assigns requests in proportion to the devices' shares.
#[derive(Debug, Default)]
pub struct Weighted {
    /// Of each device, the turns that it is owed.
    owed: Vec<f64>,
}

impl Policy for Weighted {
    fn name(&self) -> PolicyName {
        PolicyName::Weighted
    }

    fn anew(&self) -> Box<dyn Policy> {
        Box::new(Self::default())
    }

    fn assigns(&self) -> bool {
        true
    }

    fn assign(&mut self, devices: &[View]) -> usize {
        self.owed.resize(devices.len(), 0.0);
        let least = LEAST / devices.len() as f64;
        let (mut chosen, mut all) = (None, 0.0);
        for (index, device) in devices.iter().enumerate() {
            if !device.serves {
                self.owed[index] = 0.0;
                continue;
            }
            let share = device.share.max(least);
            all += share;
            self.owed[index] += share;
            if chosen.is_none_or(|chosen: usize| self.owed[index] > self.owed[chosen]) {
                chosen = Some(index);
            }
        }
        let chosen = chosen.unwrap_or(0);
        self.owed[chosen] -= all;
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::IDLE;
    use super::*;

    #[test]
    fn turns_follow_the_shares_evenly_spread() {
        let of = |share| View { share, ..IDLE };
        let devices = [of(5.0 / 7.0), of(1.0 / 7.0), of(1.0 / 7.0)];
        let mut policy = Weighted::default();
        assert_eq!([0; 7].map(|_| policy.assign(&devices)), [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn no_share_is_too_small_to_be_measured() {
        let devices = [View { share: 1.0, ..IDLE }, View { share: 0.0, ..IDLE }];
        let mut policy = Weighted::default();
        let turns = (0..1000).filter(|_| policy.assign(&devices) == 1).count();
        assert!((5..20).contains(&turns), "{turns}");
    }
}
