//! The calls that a driver offers, what undoes each, and the time it takes.
//!
//! - [`DriverCall`] names them as CUDA's virtual memory management does.
//! - [`Costs`] is how long each takes, by size.

use super::GRANULARITY;

/// One kind of call to the simulated driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DriverCall {
    /// Reserves addresses for a block.
    AddressReserve,
    /// Takes physical memory.
    Create,
    /// Puts physical memory behind reserved addresses.
    Map,
    /// Lets the device use mapped memory.
    SetAccess,
    /// Takes physical memory from its addresses.
    Unmap,
    /// Gives physical memory back.
    Release,
    /// Gives reserved addresses back.
    AddressFree,
    /// Takes memory with its addresses, on a device that does not resize in place.
    Allocate,
    /// Gives back what `Allocate` took.
    Free,
    /// Makes an event.
    Event,
    /// Records an event in a stream.
    Record,
    /// Makes a stream wait for an event.
    Wait,
    /// Asks whether an event has passed.
    Query,
}

impl DriverCall {
    /// Every kind, in the order in which they are declared.
    pub const ALL: [Self; 13] = [
        Self::AddressReserve,
        Self::Create,
        Self::Map,
        Self::SetAccess,
        Self::Unmap,
        Self::Release,
        Self::AddressFree,
        Self::Allocate,
        Self::Free,
        Self::Event,
        Self::Record,
        Self::Wait,
        Self::Query,
    ];

    /// The name in errors and in [`Source::calls`](vecmill_memory::Source::calls), for example `set_access`.
    pub fn name(self) -> &'static str {
        match self {
            Self::AddressReserve => "address_reserve",
            Self::Create => "create",
            Self::Map => "map",
            Self::SetAccess => "set_access",
            Self::Unmap => "unmap",
            Self::Release => "release",
            Self::AddressFree => "address_free",
            Self::Allocate => "allocate",
            Self::Free => "free",
            Self::Event => "event",
            Self::Record => "record",
            Self::Wait => "wait",
            Self::Query => "query",
        }
    }

    /// Whether it is about events and not about memory.
    pub(super) fn is_of_events(self) -> bool {
        matches!(self, Self::Event | Self::Record | Self::Wait | Self::Query)
    }

    /// Whether a block is taken, resized and given back with it, on a device that resizes
    /// `in_place` or on one that does not.
    pub(super) fn is_of_memory(self, in_place: bool) -> bool {
        !self.is_of_events() && in_place != matches!(self, Self::Allocate | Self::Free)
    }

    /// The calls that undo it, when a later one of the same operation fails. What ends an operation
    /// has none.
    pub(super) fn undone_by(self) -> &'static [Self] {
        match self {
            Self::AddressReserve => &[Self::AddressFree],
            Self::Create => &[Self::Release],
            Self::Map => &[Self::Unmap],
            Self::Unmap => &[Self::Map, Self::SetAccess],
            _ => &[],
        }
    }
}

/// A number for each kind of call.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ByCall<T>([T; DriverCall::ALL.len()]);

impl<T: Copy> ByCall<T> {
    pub(super) fn get(&self, call: DriverCall) -> T {
        self.0[call as usize]
    }

    pub(super) fn get_mut(&mut self, call: DriverCall) -> &mut T {
        &mut self.0[call as usize]
    }
}

/// Nanoseconds that a call takes: at 2 MiB, and at 1 GiB. Other sizes lie on the line through both.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    smallest: u64,
    gibibyte: u64,
}

/// How long each call takes.
#[derive(Debug)]
pub(super) struct Costs(ByCall<Cost>);

impl Costs {
    /// Medians of one H200 (CUDA 13.0, driver 580). Taking and giving back without mapping was
    /// measured as a pair, 81 µs at 1 MiB and 285 µs at 256 MiB: each has half of it here.
    /// Reserving addresses was not measured; it is bookkeeping, like mapping.
    pub(super) fn measured() -> Self {
        let mut costs = Self(ByCall::default());
        for call in DriverCall::ALL {
            let (smallest, gibibyte) = match call {
                DriverCall::AddressReserve | DriverCall::AddressFree | DriverCall::Map => {
                    (3_000, 3_000)
                }
                DriverCall::Create => (15_000, 100_000),
                DriverCall::SetAccess => (80_000, 80_000),
                DriverCall::Unmap => (40_000, 40_000),
                DriverCall::Release => (13_000, 468_000),
                DriverCall::Allocate | DriverCall::Free => (40_000, 450_000),
                DriverCall::Event | DriverCall::Record | DriverCall::Wait | DriverCall::Query => {
                    (500, 500)
                }
            };
            costs.set(call, smallest, gibibyte);
        }
        costs
    }

    pub(super) fn set(&mut self, call: DriverCall, smallest: u64, gibibyte: u64) {
        *self.0.get_mut(call) = Cost { smallest, gibibyte };
    }

    /// Nanoseconds that `call` takes on `bytes`.
    pub(super) fn of(&self, call: DriverCall, bytes: usize) -> u64 {
        let Cost { smallest, gibibyte } = self.0.get(call);
        let rise = u128::from(gibibyte.saturating_sub(smallest));
        let beyond = bytes.saturating_sub(GRANULARITY) as u128;
        let more = rise * beyond / ((1 << 30) - GRANULARITY) as u128;
        smallest.saturating_add(u64::try_from(more).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_lie_on_the_line_between_the_ends() {
        let mut costs = Costs::measured();
        costs.set(DriverCall::Create, 1_000, 512_000);
        let of = |mebibytes: usize| costs.of(DriverCall::Create, mebibytes << 20);
        assert_eq!([0, 2, 4].map(of), [1_000, 1_000, 2_000]);
        assert_eq!([512, 1024, 2046].map(of), [256_000, 512_000, 1_023_000]);
        assert_eq!(costs.of(DriverCall::Query, 1 << 30), 500);
    }
}
