//! The pool against a model of itself: random leases, returns, trims and a source that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use proptest::prelude::*;
use vecmill_memory::{HostSource, LeaseError, Pool, Source, SourceError};

const MIB: usize = 1 << 20;

/// Memory that is only counted, and that can be made to fail.
#[derive(Debug, Clone, Default)]
struct Counted {
    taken: Arc<AtomicUsize>,
    failing: Arc<AtomicBool>,
}

#[derive(Debug)]
struct CountedBlock {
    bytes: usize,
    taken: Arc<AtomicUsize>,
}

impl Drop for CountedBlock {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

impl Source for Counted {
    type Block = CountedBlock;

    fn allocate(&self, bytes: usize) -> Result<CountedBlock, SourceError> {
        if self.failing.load(Ordering::SeqCst) {
            return Err(SourceError { bytes, from: "test", reason: "told to fail".into() });
        }
        self.taken.fetch_add(bytes, Ordering::SeqCst);
        Ok(CountedBlock { bytes, taken: Arc::clone(&self.taken) })
    }
}

#[derive(Debug, Clone)]
enum Step {
    Lease(usize),
    Return(usize),
    Trim,
    Fail(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1usize..40 * MIB).prop_map(Step::Lease),
        3 => (0usize..16).prop_map(Step::Return),
        1 => Just(Step::Trim),
        1 => any::<bool>().prop_map(Step::Fail),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn the_budget_holds_and_every_byte_is_accounted_for(steps in steps()) {
        let source = Counted::default();
        let budget = 100 * MIB;
        let pool = Pool::new(source.clone(), budget);
        let mut leases = Vec::new();
        for step in steps {
            match step {
                Step::Lease(bytes) => match pool.lease(bytes) {
                    Ok(lease) => {
                        prop_assert!(lease.bytes() >= bytes);
                        leases.push(lease);
                    }
                    Err(LeaseError::Busy { needed, leased, .. }) => {
                        prop_assert!(leased > 0 && leased + needed > budget);
                    }
                    Err(LeaseError::Source(_)) => {
                        prop_assert!(source.failing.load(Ordering::SeqCst));
                    }
                    Err(other) => prop_assert!(false, "{other}"),
                },
                Step::Return(index) if !leases.is_empty() => {
                    drop(leases.swap_remove(index % leases.len()));
                }
                Step::Return(_) => {}
                Step::Trim => {
                    pool.trim();
                    let now = pool.statistics();
                    prop_assert_eq!(now.held_bytes, now.leased_bytes);
                }
                Step::Fail(fail) => source.failing.store(fail, Ordering::SeqCst),
            }
            let now = pool.statistics();
            let leased: usize = leases.iter().map(vecmill_memory::Lease::bytes).sum();
            prop_assert_eq!(now.leased_bytes, leased);
            prop_assert_eq!(now.held_bytes, source.taken.load(Ordering::SeqCst));
            prop_assert!(now.leased_bytes <= now.held_bytes && now.held_bytes <= budget);
            prop_assert!(now.peak_held_bytes <= budget);
        }
    }
}

#[test]
fn a_returned_slab_serves_the_next_lease() {
    let pool = Pool::new(HostSource, 64 * MIB);
    drop(pool.lease(5 * MIB).unwrap());
    drop(pool.lease(5 * MIB).unwrap());
    drop(pool.lease(4 * MIB).unwrap());
    let now = pool.statistics();
    assert_eq!((now.grown_leases, now.warm_leases, now.held_bytes), (1, 2, 6 * MIB));
}

#[test]
fn a_larger_slab_takes_the_place_of_a_smaller_one() {
    let pool = Pool::new(HostSource, 1 << 30);
    for size in [1, 30, 3, 60, 7, 100, 2, 99] {
        drop(pool.lease(size * MIB).unwrap());
    }
    let held = pool.statistics().held_bytes;
    assert!((100 * MIB..=104 * MIB).contains(&held), "one batch at a time holds {held} bytes");
    assert_eq!(pool.statistics().grown_leases, 4, "small batches run in the large slab");
}

#[test]
fn what_can_never_fit_is_told_apart_from_what_must_wait() {
    let pool = Pool::new(HostSource, 16 * MIB);
    let _weights = pool.reserve(4 * MIB).unwrap();
    assert!(matches!(pool.lease(13 * MIB), Err(LeaseError::TooLarge { .. })));
    let held = pool.lease(10 * MIB).unwrap();
    assert!(matches!(pool.lease(10 * MIB), Err(LeaseError::Busy { .. })));
    drop(held);
    assert!(pool.lease(10 * MIB).is_ok());
    assert!(matches!(pool.reserve(15 * MIB), Err(LeaseError::TooLarge { .. })));
    assert_eq!(pool.statistics().refused_leases, 2);
}

#[test]
fn a_panicking_batch_returns_its_slab() {
    let pool = Pool::new(HostSource, 16 * MIB);
    let inner = pool.clone();
    let result = std::thread::spawn(move || {
        let _lease = inner.lease(MIB).unwrap();
        panic!("the batch failed");
    })
    .join();
    assert!(result.is_err());
    assert_eq!(pool.statistics().leased_bytes, 0);
    assert_eq!(pool.trim(), 2 * MIB);
}

#[test]
fn threads_never_share_a_slab() {
    let pool = Pool::new(HostSource, 64 * MIB);
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let pool = pool.clone();
            scope.spawn(move || {
                for _ in 0..200 {
                    let mut lease = pool.lease(MIB).unwrap();
                    let bytes = lease.block_mut().bytes_mut();
                    bytes[..64].fill(thread);
                    std::thread::yield_now();
                    assert!(bytes[..64].iter().all(|&byte| byte == thread));
                }
            });
        }
    });
    let now = pool.statistics();
    assert!(now.leased_bytes == 0 && now.held_bytes <= 8 * 2 * MIB);
}
