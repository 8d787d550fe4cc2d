//! To the device with the fewest tokens ahead. It needs no speeds, and so takes a short queue of a
//! slow device for the better one.

use super::{Policy, PolicyName, View};

/// Assigns each request to the device that has the fewest tokens to do.
#[derive(Debug)]
pub struct LeastLoaded;

impl Policy for LeastLoaded {
    fn name(&self) -> PolicyName {
        PolicyName::LeastLoaded
    }

    fn anew(&self) -> Box<dyn Policy> {
        Box::new(Self)
    }

    fn assigns(&self) -> bool {
        true
    }

    fn assign(&mut self, devices: &[View]) -> usize {
        let serving = devices.iter().enumerate().filter(|(_, device)| device.serves);
        let least =
            serving.min_by_key(|(_, device)| device.assigned_tokens + device.running_tokens);
        least.map_or(0, |(index, _)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::IDLE;
    use super::*;

    #[test]
    fn what_waits_and_what_runs_both_count() {
        let devices = [
            View { assigned_tokens: 300, ..IDLE },
            View { running_tokens: 200, ..IDLE },
            View { serves: false, ..IDLE },
            View { running_tokens: 100, assigned_tokens: 150, ..IDLE },
        ];
        assert_eq!(LeastLoaded.assign(&devices), 1);
    }
}
