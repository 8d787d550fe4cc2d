//! Batches that are started before others are collected.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex};

use super::*;

/// Where batches wait to be let through, one by one.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate(Arc<(Mutex<usize>, Condvar)>);

impl Gate {
    pub(super) fn pass(&self) {
        let (permits, changed) = &*self.0;
        let mut permits = changed.wait_while(permits.lock().unwrap(), |left| *left == 0).unwrap();
        *permits -= 1;
    }

    pub(super) fn open(&self, batches: usize) {
        let (permits, changed) = &*self.0;
        *permits.lock().unwrap() = batches;
        changed.notify_all();
    }
}

/// Counts the calls of a hook.
#[derive(Debug, Clone, Default)]
pub(super) struct Count(Arc<AtomicUsize>);

impl Count {
    /// How many there were before this one.
    pub(super) fn next(&self) -> usize {
        self.0.fetch_add(1, SeqCst)
    }

    pub(super) fn get(&self) -> usize {
        self.0.load(SeqCst)
    }
}

/// One input per batch, never more than so many batches at once, and results that wait at the gate.
fn gated(in_flight: usize) -> (Rig, Count, Gate) {
    let rig = Rig::of(Setup { batch_tokens: INPUT_TOKENS, ..Setup::default() });
    let (starts, collected, gate) = (Count::default(), Count::default(), Gate::default());
    let (counted, done, gated) = (starts.clone(), collected.clone(), gate.clone());
    rig.faults().overlap(in_flight);
    rig.faults().at_start(move || {
        assert!(counted.next() - collected.get() < in_flight, "too many batches at once");
        Ok(())
    });
    rig.faults().at_collect(move || {
        gated.pass();
        done.next();
        Ok(())
    });
    (rig, starts, gate)
}

#[test]
fn the_next_batch_starts_before_the_last_one_is_collected() {
    for in_flight in [1, 2, 3] {
        let (mut rig, starts, gate) = gated(in_flight);
        let answer = rig.ask(6);
        rig.queued(6);
        rig.start();
        wait_until(|| starts.get() == in_flight);
        assert_eq!(rig.core.queue.backlog().0, 6 - in_flight);
        wait_until(|| rig.statistics().leased_bytes == 0); // slabs are back before the results
        gate.open(1);
        wait_until(|| starts.get() == in_flight + 1);
        gate.open(5);
        let overlapped = vectors(answer.recv().unwrap());

        let mut alone = Rig::of(Setup::default());
        alone.start();
        assert_eq!(overlapped, vectors(alone.ask(6).recv().unwrap()));
    }
}

#[test]
fn an_answer_does_not_wait_for_more_work() {
    let (mut rig, starts, gate) = gated(2);
    rig.start();
    gate.open(100);
    for count in 1..=20 {
        assert_eq!(vectors(rig.ask(1).recv().unwrap()).len(), 1);
        assert_eq!(starts.get(), count);
    }
}

#[test]
fn answers_come_while_another_batch_waits_for_memory() {
    let (mut rig, starts, gate) = gated(2);
    let first = rig.ask(1);
    rig.queued(1);
    rig.start();
    wait_until(|| starts.get() == 1 && rig.statistics().leased_bytes == 0);
    rig.device().trim_memory();
    rig.faults().leave(0);
    let second = rig.ask(1);
    wait_until(|| rig.statistics().leases.refused > 3);
    gate.open(2);
    assert_eq!(vectors(first.recv().unwrap()).len(), 1);
    assert!(second.try_recv().is_err());
    rig.faults().leave(usize::MAX);
    assert_eq!(vectors(second.recv().unwrap()).len(), 1);
}

#[test]
fn what_was_started_is_answered_when_the_engine_closes() {
    let (mut rig, starts, gate) = gated(2);
    let answer = rig.ask(5);
    rig.queued(5);
    rig.start();
    wait_until(|| starts.get() == 2);
    rig.core.queue.close();
    gate.open(5);
    assert_eq!(vectors(answer.recv().unwrap()).len(), 5);
}

#[test]
fn a_batch_is_timed_from_the_end_of_the_one_before() {
    let (mut rig, starts, gate) = gated(2);
    let answer = rig.ask(2);
    rig.queued(2);
    let began = Instant::now();
    rig.start();
    wait_until(|| starts.get() == 2);
    let both_started = Instant::now();
    wait_until(|| both_started.elapsed() >= Duration::from_millis(200));
    gate.open(2);
    answer.recv().unwrap().unwrap();
    wait_until(|| {
        rig.metrics()
            .contains("vecmill_batch_duration_seconds_count{device=\"cpu\",model=\"model\"} 2")
    });
    let sum = "vecmill_batch_duration_seconds_sum{device=\"cpu\",model=\"model\"} ";
    let metrics = rig.metrics();
    let sum: f64 =
        metrics.lines().find_map(|line| line.strip_prefix(sum)).unwrap().parse().unwrap();
    let all = began.elapsed().as_secs_f64();
    assert!(sum > 0.0 && sum <= all, "{sum} s of {all}: the second batch waited for the first");
}
