//! The synchronisation of the lock-free path: the standard library's, or loom's where it checks
//! every interleaving (`just loom`).

#[cfg(loom)]
pub(crate) use loom::sync::{
    Condvar, Mutex,
    atomic::{AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(not(loom))]
pub(crate) use mea::atomicbox::AtomicOptionBox;
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Condvar, Mutex,
    atomic::{AtomicU64, AtomicUsize, Ordering, fence},
};

/// A box that is exchanged in one operation, for loom: two who are at it at once are found out.
#[cfg(loom)]
pub(crate) struct AtomicOptionBox<T>(Mutex<Option<Box<T>>>);

#[cfg(loom)]
impl<T> AtomicOptionBox<T> {
    pub(crate) fn none() -> Self {
        Self(Mutex::new(None))
    }

    pub(crate) fn take(&self) -> Option<Box<T>> {
        self.exchange(None)
    }

    pub(crate) fn store(&self, value: Option<Box<T>>) {
        self.exchange(value);
    }

    fn exchange(&self, value: Option<Box<T>>) -> Option<Box<T>> {
        let mut place = self.0.try_lock().unwrap_or_else(|_| panic!("two owners at once"));
        std::mem::replace(&mut *place, value)
    }
}
