//! What a way of managing memory must offer to be replayed.

/// A way of managing a device's memory.
///
/// Times are nanoseconds since the recording began, and never go back from one call to the next.
pub(crate) trait Manager {
    /// What reports and pictures call it.
    fn name(&self) -> &str;

    /// Finds memory for `bytes` bytes of work on `stream`.
    ///
    /// # Errors
    /// [`Refused`] when there is none. Nothing has changed then, and `id` will not be given back.
    fn lease(
        &mut self,
        id: u64,
        stream: u32,
        bytes: usize,
        nanoseconds: u64,
    ) -> Result<(), Refused>;

    /// Takes back what was leased as `id`.
    fn give_back(&mut self, id: u64, nanoseconds: u64);

    /// Does what has to be done from time to time. Called also while nothing else happens.
    fn tick(&mut self, nanoseconds: u64);

    /// How much is held and used at this moment.
    fn usage(&self) -> Usage;

    /// Where everything lies that is held at this moment, in any order.
    fn blocks(&self) -> Vec<Placed>;

    /// Calls to the system or driver that took or gave memory, by kind, since any fixed moment.
    fn driver_calls(&self) -> Vec<(&'static str, u64)>;
}

/// How much memory a manager holds and uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Bytes taken from the device and not given back.
    pub(crate) held_bytes: usize,
    /// Bytes of these that nobody else can have while the leases last: at least what was asked for.
    pub(crate) leased_bytes: usize,
    /// Bytes held and not leased.
    pub(crate) free_bytes: usize,
    /// The largest lease that the free bytes would serve as they lie.
    pub(crate) largest_free_bytes: usize,
}

impl Usage {
    /// The part of the free bytes that one lease can't have because they lie apart, from 0 to 1:
    /// `1 - largest_free / free`, and 0 when nothing is free.
    pub(crate) fn external_fragmentation(&self) -> f64 {
        if self.free_bytes == 0 {
            return 0.0;
        }
        1.0 - self.largest_free_bytes as f64 / self.free_bytes as f64
    }
}

/// A piece of memory that a manager holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Its first byte on the device.
    pub(crate) address: u64,
    /// Its size.
    pub(crate) bytes: usize,
    /// The lease that has it, if any.
    pub(crate) lease: Option<u64>,
}

/// A manager had no memory for a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{manager} gives no {bytes} bytes: {reason}")]
pub(crate) struct Refused {
    /// The manager's name.
    pub(crate) manager: String,
    /// Bytes asked for.
    pub(crate) bytes: usize,
    /// Why, in the manager's words.
    pub(crate) reason: String,
}
