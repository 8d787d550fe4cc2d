//! Room for inputs, from before they are tokenised until they are answered, and why there is none.

use std::time::Duration;

/// There is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{admitted} inputs are admitted already, of at most {capacity}")]
pub struct Full {
    /// Inputs admitted and not yet released.
    pub admitted: usize,
    /// The most that may be.
    pub capacity: usize,
}

/// Why a request is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no room.
    #[error(transparent)]
    Full(#[from] Full),
    /// No device serves.
    #[error("no device serves")]
    NoDevice,
    /// It would not be done in time.
    #[error("it would be done in {predicted:?}, and has only {left:?}; allow more, or send less")]
    TooLate {
        /// How long it would take.
        predicted: Duration,
        /// How long it may.
        left: Duration,
    },
}

/// Room for so many inputs.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    admitted: usize,
    capacity: usize,
}

impl Room {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { admitted: 0, capacity }
    }

    /// Inputs that have room.
    pub(crate) fn admitted(&self) -> usize {
        self.admitted
    }

    /// Makes room for all or none. Where nothing is admitted, any number is: a request larger than
    /// the capacity could otherwise never be served.
    pub(crate) fn admit(&mut self, inputs: usize) -> Result<(), Full> {
        if self.admitted > 0 && self.admitted.saturating_add(inputs) > self.capacity {
            return Err(Full { admitted: self.admitted, capacity: self.capacity });
        }
        self.admitted += inputs;
        Ok(())
    }

    pub(crate) fn release(&mut self, inputs: usize) {
        self.admitted = self.admitted.saturating_sub(inputs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_room_says_so_and_an_empty_one_takes_anything() {
        let mut room = Room::new(10);
        room.admit(8).unwrap();
        assert_eq!(room.admit(3), Err(Full { admitted: 8, capacity: 10 }));
        room.admit(2).unwrap();
        room.release(10);
        room.admit(50).unwrap();
        assert!(room.admit(1).is_err());
    }
}
