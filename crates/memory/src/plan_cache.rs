//! Plans by key, the most recently used ones.
//!
//! Planning takes longer than leasing by far, and batches of similar shapes share a plan: whoever
//! asks chooses keys that stand for many shapes. How many plans are kept is bounded, because shapes
//! come from outside.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::plan::Plan;

/// Plans that were made before, shared by threads.
///
/// ```
/// use vecmill_memory::{PlanCache, Planner};
///
/// let plans = PlanCache::new(2);
/// let make = || Planner::new().plan();
/// for tokens in [512, 512, 1024, 2048, 512] {
///     plans.get_or_plan(tokens, make);
/// }
/// let seen = plans.statistics();
/// assert_eq!((seen.hits, seen.misses, seen.evictions), (1, 4, 2));
/// assert_eq!(plans.len(), 2);
/// ```
pub struct PlanCache<K> {
    state: Mutex<State<K>>,
    capacity: usize,
}

#[derive(Debug)]
struct State<K> {
    plans: HashMap<K, Used>,
    /// Counts look-ups: the time by which the least recently used plan is told.
    now: u64,
    statistics: PlanCacheStatistics,
}

#[derive(Debug)]
struct Used {
    plan: Arc<Plan>,
    last: u64,
}

/// What a [`PlanCache`] has been asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlanCacheStatistics {
    /// Plans that are kept now.
    pub plans: usize,
    /// Plans that were there.
    pub hits: u64,
    /// Plans that had to be made.
    pub misses: u64,
    /// Plans that were dropped for newer ones.
    pub evictions: u64,
}

impl<K: Eq + Hash + Copy> PlanCache<K> {
    /// As many as [`default`](Self::default) keeps: at about 5 KB for a plan of twelve layers, 5 MB.
    pub const CAPACITY: usize = 1024;

    /// Keeps at most `capacity` plans, at least one.
    pub fn new(capacity: usize) -> Self {
        let state = State { plans: HashMap::new(), now: 0, statistics: Default::default() };
        Self { state: Mutex::new(state), capacity: capacity.max(1) }
    }

    /// The plan for `key`, made by `plan` if it is not there. Other threads are not held up
    /// meanwhile; two that miss the same key both make it, and one of the two plans is kept.
    pub fn get_or_plan(&self, key: K, plan: impl FnOnce() -> Plan) -> Arc<Plan> {
        if let Some(plan) = self.state().find(key) {
            return plan;
        }
        let plan = Arc::new(plan());
        self.state().keep(key, plan, self.capacity)
    }

    /// Plans that are kept.
    pub fn len(&self) -> usize {
        self.state().plans.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was asked for so far.
    pub fn statistics(&self) -> PlanCacheStatistics {
        let state = self.state();
        PlanCacheStatistics { plans: state.plans.len(), ..state.statistics }
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash + Copy> State<K> {
    fn find(&mut self, key: K) -> Option<Arc<Plan>> {
        self.now += 1;
        let Some(used) = self.plans.get_mut(&key) else {
            self.statistics.misses += 1;
            return None;
        };
        used.last = self.now;
        self.statistics.hits += 1;
        Some(Arc::clone(&used.plan))
    }

    /// Keeps `plan`, or returns the one that another thread has put there meanwhile.
    fn keep(&mut self, key: K, plan: Arc<Plan>, capacity: usize) -> Arc<Plan> {
        if !self.plans.contains_key(&key) && self.plans.len() == capacity {
            // Looking at all of them takes microseconds, less than the planning before it.
            let oldest = self.plans.iter().min_by_key(|(_, used)| used.last).map(|(&key, _)| key);
            if let Some(oldest) = oldest {
                self.plans.remove(&oldest);
                self.statistics.evictions += 1;
            }
        }
        let used = self.plans.entry(key).or_insert(Used { plan, last: self.now });
        Arc::clone(&used.plan)
    }
}

impl<K: Eq + Hash + Copy> Default for PlanCache<K> {
    fn default() -> Self {
        Self::new(Self::CAPACITY)
    }
}

impl<K> fmt::Debug for PlanCache<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlanCache").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Planner;

    fn plan(bytes: usize) -> Plan {
        let mut planner = Planner::new();
        planner.buffer(bytes, 0..=0);
        planner.plan()
    }

    #[test]
    fn the_least_recently_used_plan_goes() {
        let plans = PlanCache::new(3);
        for key in [1, 2, 3, 1, 4] {
            plans.get_or_plan(key, || plan(key * 64));
        }
        let made = |key: usize| {
            let before = plans.statistics().misses;
            let found = plans.get_or_plan(key, || plan(key * 64));
            assert_eq!(found.peak_bytes(), key * 64, "the plan of another key");
            plans.statistics().misses > before
        };
        assert!(!made(1) && !made(3) && !made(4));
        assert!(made(2), "it was used least recently when 4 came");
        assert_eq!(plans.len(), 3);
    }

    #[test]
    fn threads_share_one_plan_for_a_key() {
        let plans = PlanCache::new(8);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..1000 {
                        let key = round % 16;
                        assert_eq!(
                            plans.get_or_plan(key, || plan(key * 64)).peak_bytes(),
                            key * 64
                        );
                    }
                });
            }
        });
        let seen = plans.statistics();
        assert_eq!(seen.hits + seen.misses, 4000);
        assert_eq!(plans.len(), 8);
    }
}
