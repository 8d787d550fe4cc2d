//! In turn, whatever the devices are: what most services do, and what the others are compared with.

use super::{Policy, PolicyName, View};

/// Assigns each request to the next device.
#[derive(Debug, Default)]
pub struct RoundRobin {
    next: usize,
}

impl Policy for RoundRobin {
    fn name(&self) -> PolicyName {
        PolicyName::RoundRobin
    }

    fn anew(&self) -> Box<dyn Policy> {
        Box::new(Self::default())
    }

    fn assigns(&self) -> bool {
        true
    }

    fn assign(&mut self, devices: &[View]) -> usize {
        let turns = (0..devices.len()).map(|turn| (self.next + turn) % devices.len());
        let device = turns.into_iter().find(|&device| devices[device].serves).unwrap_or(0);
        self.next = device + 1;
        device
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::IDLE;
    use super::*;

    #[test]
    fn those_that_do_not_serve_are_passed_over() {
        let devices = [IDLE, View { serves: false, ..IDLE }, IDLE];
        let mut policy = RoundRobin::default();
        assert_eq!([0; 4].map(|_| policy.assign(&devices)), [0, 2, 0, 2]);
    }
}
